"""Eight virtual CPU devices, and every annotation of the package checked while the tests run."""

import os
import sys

# PyTorch loads it where it is installed; it brings an LLVM of its own, and beside TensorFlow's the process crashes.
sys.modules.setdefault("triton", None)  # type: ignore[arg-type]

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

from jaxtyping import install_import_hook

install_import_hook("cm3leon_jax", "beartype.beartype")

from pathlib import Path

import numpy as np
import pytest

from cm3leon_jax.data.corpus.array_files import read_files_record
from cm3leon_jax.data.corpus.instructions import StoredInstruction
from cm3leon_jax.data.corpus.neighbors import (
    RETRIEVAL_FORMAT,
    documents_identity,
    list_settings,
    lists_record,
    save_lists,
)
from cm3leon_jax.data.corpus.prepared import FORMAT_VERSION, PreparedCorpus, token_dtype
from cm3leon_jax.data.corpus.shard_writer import TokenFile
from cm3leon_jax.image_tokenizers.base import ImageTokenizer
from cm3leon_jax.image_tokenizers.vqgan import model as vqgan
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig
from cm3leon_jax.image_tokenizers.vqgan.tokenizer import VQGANTokenizer
from cm3leon_jax.log_handler import show_messages
from cm3leon_jax.models.config import ModelConfig
from cm3leon_jax.records import write_record
from cm3leon_jax.retrieval.config import RetrievalConfig
from cm3leon_jax.vocabulary import Vocabulary
from tests.skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401 - hooks

# As the command line does, so that a test finds messages in what is written to stdout.
show_messages()

CAPTIONS = ("a handwritten seven", "the digit 3 written by hand", "a photo of the number 9", "zero, in pencil")
IMAGE_LENGTH = 16


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return Vocabulary.train(CAPTIONS * 4, num_text_tokens=288, num_image_codes=32, num_masks=8, progress=False)


@pytest.fixture(scope="session")
def framed_vocabulary(vocabulary, tmp_path_factory) -> Vocabulary:
    """One with ids around the codes of an image, in place of two masks."""
    folder = tmp_path_factory.mktemp("vocabulary")
    vocabulary.save(folder)
    state = (folder / "tokenizer.json").read_text(encoding="utf-8")
    return Vocabulary(state.replace("<mask:6>", "<image:end>").replace("<mask:7>", "<image:begin>"))


@pytest.fixture
def tiny_model() -> ModelConfig:
    return ModelConfig(num_layers=2, model_dim=32, num_heads=4, compute_dtype="float32", remat="none", init_std=0.05)


@pytest.fixture(scope="session")
def tiny_images() -> VQGANConfig:
    """Images of IMAGE_LENGTH codes."""
    return VQGANConfig(
        resolution=8,
        in_channels=1,
        base_channels=4,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        latent_channels=4,
        embedding_dim=3,
        codebook_size=32,
    )


@pytest.fixture(scope="session")
def image_tokenizer(tiny_images) -> ImageTokenizer:
    return VQGANTokenizer(tiny_images, vqgan.initial_parameters(vqgan.abstract_vqgan(tiny_images), 0))


def write_corpus(
    path: Path, vocabulary: Vocabulary, documents: dict[str, dict[str, list[np.ndarray | StoredInstruction]]]
) -> Path:
    """A prepared corpus of {task: {split: documents}}, two shards a split, every rate 1."""
    tasks = {}
    for task, splits in documents.items():
        tasks[task] = {"rate": 1.0, "splits": {}}
        for split, found in splits.items():
            folder = path / task / split
            folder.mkdir(parents=True)
            halves = [found[: len(found) // 2], found[len(found) // 2 :]]
            shards = []
            for shard, half in enumerate(halves):
                with TokenFile(folder, shard, token_dtype(vocabulary.size)) as file:
                    for each in half:
                        if isinstance(each, StoredInstruction):
                            file.add(each.tokens, each)
                        else:
                            file.add(each)
                    shards.append(file.close())
            found = [each.tokens if isinstance(each, StoredInstruction) else each for each in found]
            num_image_tokens = sum(int(vocabulary.is_image(ids).sum()) for ids in found)
            num_text_tokens = sum(int(vocabulary.is_text(ids).sum()) for ids in found)
            tasks[task]["splits"][split] = {
                "num_documents": len(found),
                "num_tokens": sum(map(len, found)),
                "num_text_tokens": num_text_tokens,
                "num_image_tokens": num_image_tokens,
                "num_shards": 2,
                "shards": shards,
                "skipped": {"total": 0, "by_reason": {}, "first": []},
            }
    manifest = {
        "format_version": FORMAT_VERSION,
        "created_by": "a test",
        "mixture": "documents",
        "examples_per_shard": 1000,
        "vocabulary": {"fingerprint": vocabulary.fingerprint, "size": vocabulary.size},
        "image_tokenizer": {"image_length": IMAGE_LENGTH, "fingerprint": "an image tokenizer"},
        "tasks": tasks,
    }
    write_record(path / "manifest.json", manifest)
    return path


def random_document(vocabulary: Vocabulary, rng: np.random.Generator) -> np.ndarray:
    """A caption and an image of random codes."""
    text = vocabulary.encode_text(CAPTIONS[rng.integers(len(CAPTIONS))])
    codes = vocabulary.encode_image(rng.integers(0, vocabulary.num_image_codes, IMAGE_LENGTH))
    return np.concatenate([text, [vocabulary.break_], codes]).astype(np.int32)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary) -> PreparedCorpus:
    rng = np.random.default_rng(0)
    sizes = {"first": {"train": 40, "validation": 10}, "second": {"train": 7, "validation": 3}}
    documents = {
        task: {split: [random_document(vocabulary, rng) for _ in range(n)] for split, n in splits.items()}
        for task, splits in sizes.items()
    }
    path = write_corpus(tmp_path_factory.mktemp("corpus"), vocabulary, documents)
    return PreparedCorpus.open(path, vocabulary)


def write_neighbors(
    corpus: PreparedCorpus, config: RetrievalConfig, memory: list[str], kept: dict[str, dict[str, np.ndarray]]
) -> None:
    """Neighbor lists {task: {split: int64 [documents, kept]}} beside a corpus of `write_corpus`."""
    lists = {}
    for task, splits in kept.items():
        for split, places in splits.items():
            folder = corpus.path / "retrieval" / task / split
            shards = []
            for shard, half in enumerate((places[: len(places) // 2], places[len(places) // 2 :])):
                save_lists(folder, shard, half, np.full(half.shape, 0.5, np.float32))
                shards.append(read_files_record(lists_record(folder, shard), ""))
            lists[f"{task}/{split}"] = {
                "num_documents": len(places),
                "num_without": 0,
                "num_neighbors": places.size,
                "mean_score": 0.5,
                "shards": shards,
            }
    manifest = {
        "format_version": RETRIEVAL_FORMAT,
        "encoder": "an encoder",
        "corpus": documents_identity(corpus),
        "settings": list_settings(config),
        "datastore": memory,
        "fingerprint": "some lists",
        "num_rows": 0,
        "neighbors": lists,
        "files": {},
    }
    write_record(corpus.path / "retrieval" / "manifest.json", manifest)
