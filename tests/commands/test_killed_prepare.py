"""`prepare` killed anywhere, and by any number of processes: the same bytes as one undisturbed run."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.sources.reading import read_documents
from cm3leon_jax.encoders.tfidf import fit_documents
from cm3leon_jax.errors import EXIT_RESTART
from tests import launched
from tests.commands.test_prepare import caption_of, image_of, write_pair

pytestmark = pytest.mark.slow

# The last shard of "train" is a short one.
NUM_IMAGES, PER_SHARD = 80, 12

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    config = ConfigDict()
    config.corpus = dict(
        mixture="folder:{root}/images", examples_per_shard={per_shard}, encode_batch_size=8, num_sample_images=5)
    config.vocabulary = dict(path="{root}/vocabulary")
    config.image_tokenizer = dict(
        path="{root}/image_tokenizer", resolution=8, in_channels=1, base_channels=4, channel_multipliers=(1, 2),
        num_res_blocks=1, latent_channels=4, embedding_dim=3, codebook_size=32)
    config.encoder = dict(path="{root}/encoder", family="tfidf", embedding_dim=256, resolution=8)
    config.retrieval = dict(enabled=True, min_similarity=0.15)
    config.distributed = dict(heartbeat_seconds=4, initialization_seconds=60)
    return config
"""


def write_inputs(root: Path, vocabulary, image_tokenizer) -> None:
    """A folder of captioned images, one of them unreadable, and all that `prepare` needs."""
    (root / "images").mkdir()
    for index in range(NUM_IMAGES):
        write_pair(root / "images", f"{index:02d}", image_of(index), caption_of(index))
    vocabulary.save(root / "vocabulary")
    image_tokenizer.save(root / "image_tokenizer")
    corpus = CorpusConfig(mixture=f"folder:{root}/images")
    fit_documents(read_documents(corpus, "train"), 256, 8, 8, None).save(root / "encoder")
    (root / "images" / "17.png").write_bytes(b"no image")
    (root / "tiny.py").write_text(CONFIG.format(root=root, per_shard=PER_SHARD))


@pytest.fixture(scope="module")
def root(tmp_path_factory, vocabulary, image_tokenizer) -> Path:
    root = tmp_path_factory.mktemp("killed")
    write_inputs(root, vocabulary, image_tokenizer)
    return root


def arguments(root: Path, workdir: str) -> list[str]:
    return ["prepare", f"--config={root}/tiny.py", f"--workdir={root}/{workdir}"]


@pytest.fixture(scope="module")
def undisturbed(root) -> dict[str, bytes]:
    launched.run(arguments(root, "undisturbed"))
    files = launched.files_below(root / "undisturbed" / "corpus")
    assert sum("tokens-" in name for name in files) == -(-(NUM_IMAGES - 1) // PER_SHARD) + 1
    assert not any("partial" in name for name in files) and "retrieval/datastore.npy" in files
    return files


def num_files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def test_killed_anywhere_it_goes_on_to_the_same_bytes(root, undisturbed):
    rng = np.random.default_rng(0)
    corpus, kills = root / "killed" / "corpus", 0
    # More and more of the files are there; those half-written count, too.
    while kills < 30:
        seen, wanted = num_files(corpus), int(rng.integers(3, len(undisturbed) // 3))
        (process,) = launched.start(arguments(root, "killed"))
        launched.wait_until(lambda least=seen + wanted: num_files(corpus) >= least, process)
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        ((code, _),) = launched.ended([process])
        if code == 0:
            break
        kills += 1
    assert kills >= 3
    launched.run(arguments(root, "killed"))
    assert launched.files_below(corpus) == undisturbed


@pytest.mark.parametrize(("killed", "again", "devices"), [(1, 3, 1), (0, 1, 2)])
def test_one_of_two_processes_killed_and_any_number_started_again(root, undisturbed, killed, again, devices):
    workdir = f"killed_{killed}"
    corpus = root / workdir / "corpus"
    processes = launched.start(arguments(root, workdir), processes=2)
    launched.wait_until(lambda: num_files(corpus) >= 12, processes[killed])
    processes[killed].kill()
    codes = [code for code, _ in launched.ended(processes, 60)]
    assert codes[1 - killed] == EXIT_RESTART and codes[killed] < 0
    said = launched.run(arguments(root, workdir), again, devices)
    assert "neighbors per document" in said[0]
    assert not any("documents" in other for other in said[1:])
    assert launched.files_below(corpus) == undisturbed


def test_two_processes_write_what_one_does(root, undisturbed):
    launched.run(arguments(root, "two"), processes=2, devices=2)
    assert launched.files_below(root / "two" / "corpus") == undisturbed
    said = launched.run(arguments(root, "two"), processes=2)
    assert said[0].count("complete: nothing to do") == 2 and "nothing to do" not in said[1]


NUM_TWINS = 12
DROPPED = ["--config.corpus.duplicates.drop=images", "--config.corpus.duplicates.max_distance=2"]


@pytest.fixture(scope="module")
def with_twins(tmp_path_factory, vocabulary, image_tokenizer) -> Path:
    """Inputs in which every sixth image comes again, a little brighter and with another caption."""
    root = tmp_path_factory.mktemp("twins")
    write_inputs(root, vocabulary, image_tokenizer)
    for index in range(NUM_TWINS):
        write_pair(root / "images", f"{6 * index:02d}_again", image_of(6 * index) + 3, f"once more {index}")
    return root


def test_near_twins_are_dropped_alike_by_any_number_of_processes_killed_or_not(with_twins):
    root = with_twins
    launched.run([*arguments(root, "one"), *DROPPED])
    files = launched.files_below(root / "one" / "corpus")
    manifest = json.loads(files["manifest.json"])
    (task,) = manifest["tasks"].values()
    assert task["splits"]["train"]["skipped"]["by_reason"]["duplicate image"] >= NUM_TWINS

    killed = launched.start([*arguments(root, "two"), *DROPPED], processes=2)
    corpus = root / "two" / "corpus"
    launched.wait_until(lambda: any("hashes-" in name for name in launched.files_below(corpus)), killed[1])
    killed[1].kill()
    (left, said), (code, _) = launched.ended(killed, 60)
    assert left == EXIT_RESTART and code < 0, said
    launched.run([*arguments(root, "two"), *DROPPED], processes=3)
    assert launched.files_below(corpus) == files
