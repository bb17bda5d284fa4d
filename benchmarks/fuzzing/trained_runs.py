"""What a run leaves on disk and reads again: its corpus, its checkpoints, and folders of Hugging Face's formats."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import sentencepiece
from flax import nnx
from tokenizers import pre_tokenizers

from cm3leon_jax import cli, config_file
from cm3leon_jax.checkpoints import Checkpoints, abstract_on, flat
from cm3leon_jax.commands import export as export_command
from cm3leon_jax.commands import import_ as import_command
from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.encoders.base import load_encoder
from cm3leon_jax.encoders.clip.config import ClipConfig
from cm3leon_jax.encoders.clip.encoder import parameter_shapes
from cm3leon_jax.encoders.clip.model import ClipArchitecture, Tower
from cm3leon_jax.encoders.siglip.model import SiglipArchitecture
from cm3leon_jax.errors import RestartError, UserError
from cm3leon_jax.huggingface.families import clip, siglip
from cm3leon_jax.huggingface.tensor_map import TensorMap
from cm3leon_jax.image_tokenizers.base import load_image_tokenizer
from cm3leon_jax.image_tokenizers.vqgan import model as vqgan
from cm3leon_jax.image_tokenizers.vqgan.tokenizer import VQGANTokenizer
from cm3leon_jax.models.sharding import make_mesh, shardings
from cm3leon_jax.models.transformer import abstract_model
from cm3leon_jax.newest_checkpoint import read_newest
from cm3leon_jax.vocabulary import Vocabulary
from fuzzing.mutations import copied, mutate_folder
from fuzzing.raw_data import Captions

STEP = 4
_CONFIG = """
from ml_collections import ConfigDict


def get_config():
    c = ConfigDict()
    c.corpus = dict(num_sample_images=2, encode_batch_size=8, mixture="folder:FOLDER")
    c.vocabulary = dict(num_text_tokens=288, num_masks=4)
    c.image_tokenizer = dict(resolution=8, in_channels=1, base_channels=4, channel_multipliers=(1, 2),
                             num_res_blocks=1, latent_channels=4, embedding_dim=3, codebook_size=32)
    c.batch = dict(batch_size=4, sequence_length=64)
    c.model = dict(num_layers=1, model_dim=16, num_heads=2, compute_dtype="float32", remat="none")
    c.train = dict(num_tokens=1e4, compilation_cache="")
    return c
"""


class Corpus:
    """A prepared corpus, of which all documents are read."""

    share = 8

    def make(self, base: Path) -> None:
        (base / "images").mkdir()
        Captions().make(base / "images")
        config = _write_tokenizers(base)
        assert config.corpus.mixture.endswith("images")
        assert cli.main(["prepare", f"--config={base}/config.py", f"--workdir={base}/run"]) == 0

    def open(self, base: Path) -> None:
        self._vocabulary = Vocabulary.load(base / "run" / "vocabulary")
        self._written = self._read(base / "run" / "corpus")

    def mutate(self, base: Path, work: Path, rng: np.random.Generator) -> None:
        copied(base / "run" / "corpus", work)
        for _ in range(int(rng.integers(1, 3))):
            mutate_folder(
                work, rng, only="" if rng.random() < 0.5 else str(rng.choice(["manifest.json", ".bin", ".npy"]))
            )

    def run(self, base: Path, work: Path) -> str:
        assert self._read(work) == self._written, "another corpus than was written was read"
        return "read"

    def _read(self, path: Path) -> Any:
        corpus = PreparedCorpus.open(path, self._vocabulary)
        documents = {}
        for task, entry in corpus.manifest["tasks"].items():
            for name in entry["splits"]:
                split = corpus.task_split(task, name)
                documents[task, name] = [split.document(index).tolist() for index in range(split.num_documents)]
        return corpus.identity, corpus.rates(), corpus.image_length, documents


class SavedCheckpoints:
    """A run's newest checkpoint, of which meta and parameters are restored."""

    share = 2

    def make(self, base: Path) -> None:
        _write_checkpoint(base)

    def open(self, base: Path) -> None:
        self._config = config_file.load(str(base / "config.py"), str(base / "run"))
        size = Vocabulary.load(self._config.vocabulary.path).size
        _, abstract = abstract_model(self._config.model, size, self._config.batch.sequence_length)
        self._abstract = abstract_on(abstract, shardings(abstract, make_mesh(self._config.mesh)))
        self._written = self._read(base / "run")

    def mutate(self, base: Path, work: Path, rng: np.random.Generator) -> None:
        copied(base / "run" / "checkpoints", work / "checkpoints")
        for _ in range(int(rng.integers(1, 3))):
            mutate_folder(work, rng)

    def run(self, base: Path, work: Path) -> str:
        try:
            meta, parameters = self._read(work)
        except RestartError as error:
            raise UserError(str(error)) from None
        assert meta == self._written[0], "another meta than was written was read"
        for name, value in self._written[1].items():
            np.testing.assert_array_equal(parameters[name], value, err_msg=name)
        return "read"

    def _read(self, workdir: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        def read(checkpoints: Checkpoints, step: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
            found = checkpoints.restore_parameters(step, self._abstract)
            arrays = {name: np.asarray(value) for name, value in flat(nnx.to_pure_dict(found)).items()}
            return checkpoints.meta(step), arrays

        return read_newest(workdir, 1, read)


class HuggingFace:
    """Folders of `export`, of OPT without its record, of CLIP and of SigLIP, as `import` reads them."""

    share = 4

    def make(self, base: Path) -> None:
        config = _write_checkpoint(base)
        asked = Namespace(
            format="huggingface",
            output=str(base / "exported"),
            family=None,
            dtype="float32",
            shard_size="20KB",
            materialize_norms=False,
        )
        export_command.run(config, base / "run", asked)
        shutil.copytree(base / "exported", base / "foreign")
        (base / "foreign" / "cm3leon.json").unlink()
        _write_clip(base / "clip")
        for file in ("spiece.model", "tokenizer.json"):
            _write_siglip(base / f"siglip_{Path(file).suffix[1:]}", file, base / "exported")

    def open(self, base: Path) -> None:
        self._config = config_file.load(str(base / "config.py"), str(base / "run"))
        self._record = (base / "exported" / "cm3leon.json").read_bytes()
        self._sums = _bit_sums(base / "run" / "checkpoints" / str(STEP))

    def mutate(self, base: Path, work: Path, rng: np.random.Generator) -> None:
        kinds = ["exported", "exported", "foreign", "clip", "siglip_model", "siglip_json"]
        copied(base / str(rng.choice(kinds)), work / "folder")
        for _ in range(int(rng.integers(1, 3))):
            mutate_folder(
                work, rng, only="" if rng.random() < 0.3 else str(rng.choice([".json", ".safetensors"])), pipes=True
            )

    def run(self, base: Path, work: Path) -> str:
        config = config_file.load(str(base / "config.py"), str(work / "run"))
        config = dataclasses.replace(config, encoder=ClipConfig(path=str(work / "encoder")))
        folder, record = work / "folder", work / "folder" / "cm3leon.json"
        import_command.run(config, work / "run", Namespace(source=str(folder), image_tokenizer=None))
        if (work / "encoder").exists():
            assert all(np.isfinite(value).all() for value in load_encoder(work / "encoder").weights.values())  # type: ignore[attr-defined]
        elif record.is_file() and record.read_bytes() == self._record:
            assert _bit_sums(work / "run" / "checkpoints" / "0") == self._sums, "other weights than were exported"
        return "read"


def _write_tokenizers(base: Path) -> Config:
    (base / "config.py").write_text(_CONFIG.replace("FOLDER", str(base / "images")))
    config = config_file.load(str(base / "config.py"), str(base / "run"))
    texts = ["an image of 1, caf\u00e9 \u6570 and a second line"] * 4
    Vocabulary.train(texts, 288, 32, 4, progress=False).save(config.vocabulary.path)
    weights = vqgan.initial_parameters(vqgan.abstract_vqgan(config.image_tokenizer), 0)
    VQGANTokenizer(config.image_tokenizer, weights).save(config.image_tokenizer.path)
    return config


def _write_checkpoint(base: Path) -> Config:
    """A run of random parameters."""
    config, rng = _write_tokenizers(base), np.random.default_rng(0)
    vocabulary = Vocabulary.load(config.vocabulary.path)
    _, abstract = abstract_model(config.model, vocabulary.size, config.batch.sequence_length)
    parameters = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), abstract)
    image_tokenizer = load_image_tokenizer(config.image_tokenizer.path).fingerprint
    meta = {
        "vocabulary": vocabulary.fingerprint,
        "corpus": {"tasks": {}, "image_tokenizer": image_tokenizer},
        "config": dataclasses.asdict(config),
        "origin": "random numbers",
    }
    with Checkpoints(base / "run" / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(STEP, {"parameters": parameters}, meta)
    return config


def _bit_sums(step: Path) -> dict[str, int]:
    return json.loads((step / "meta" / "metadata").read_text())["bit_sums"]


def _write_clip(folder: Path) -> None:
    """A CLIP of random weights, as the first published folders are."""
    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, *(f"{byte}</w>" for byte in alphabet), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: number for number, name in enumerate(names)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": len(names), "max_position_embeddings": 11, "eos_token_id": len(names) - 1}
    image = tower | {"image_size": 16, "patch_size": 4}
    stored = {"model_type": "clip", "projection_dim": 8, "text_config": text, "vision_config": image}
    (folder / "config.json").write_text(json.dumps(stored))
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"crop_size": 16, "image_mean": [0.5] * 3, "image_std": [0.2] * 3})
    )
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "<|startoftext|>", "eos_token": {"content": "<|endoftext|>"}})
    )
    shape = Tower(2, 16, 2, 32)
    shapes = parameter_shapes(ClipArchitecture(8, len(names), 11, 16, 4, text=shape, image=shape))
    _write_tensors(folder, clip.tensor_maps(), shapes)


def _write_siglip(folder: Path, file: str, exported: Path) -> None:
    """A SigLIP of random weights with a tokenizer of SentencePiece, or, as SigLIP 2 has, the one of another folder."""
    folder.mkdir()
    vocabulary_size = 4096
    if file == "spiece.model":
        model = io.BytesIO()
        options = dict(vocab_size=40, pad_id=-1, bos_id=-1, eos_id=1, unk_id=2, hard_vocab_limit=False, minloglevel=2)
        texts = iter(["a red square and a green circle, café, left of it"] * 20)
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=texts, model_writer=model, **options)
        (folder / file).write_bytes(model.getvalue())
        special = {"eos_token": "</s>", "pad_token": {"content": "</s>"}, "unk_token": "<unk>", "do_lower_case": True}
    else:
        shutil.copyfile(exported / file, folder / file)
        special = {"pad_token": "<pad>", "padding_side": "right", "tokenizer_class": "GemmaTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": vocabulary_size, "max_position_embeddings": 11, "projection_size": 16}
    image = tower | {"image_size": 18, "patch_size": 4, "vision_use_head": True}
    stored = {"model_type": "siglip", "text_config": text, "vision_config": image}
    (folder / "config.json").write_text(json.dumps(stored))
    processing = {"size": {"height": 18, "width": 18}, "resample": 2, "rescale_factor": 1 / 255, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processing))
    architecture = SiglipArchitecture(vocabulary_size, 11, 18, 4, text=Tower(2, 16, 2, 32), image=Tower(2, 16, 2, 32))
    _write_tensors(folder, siglip.tensor_maps(), siglip.parameter_shapes(architecture))


def _write_tensors(folder: Path, table: Mapping[str, TensorMap], shapes: Mapping[str, tuple[int, ...]]) -> None:
    rng, weights = np.random.default_rng(0), {}
    for name, tensor in table.items():
        for key in tensor.names(shapes[name]):
            weights[key] = np.asarray(rng.standard_normal(tensor.shape(shapes[name])), np.float32)
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
