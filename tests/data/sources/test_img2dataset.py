"""The real img2dataset on loopback: its tars and its tables of the same list make the same token shards."""

import argparse
import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from cm3leon_jax.commands import prepare
from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.config import CorpusConfig, VocabularyConfig
from cm3leon_jax.data.sources.config import FolderConfig
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig
from cm3leon_jax.image_tokenizers.vqgan.model import VQGAN
from cm3leon_jax.image_tokenizers.vqgan.tokenizer import VQGANTokenizer
from cm3leon_jax.named_parameters import parameters

NUM_IMAGES = 70
STAMPS = Path("/usr/share/tuxpaint/stamps")
IMAGE_TOKENIZER = VQGANConfig(
    resolution=8, in_channels=3, base_channels=8, channel_multipliers=(1, 2), num_res_blocks=1, latent_channels=8,
    embedding_dim=4, codebook_size=32,
)  # fmt: skip


@pytest.fixture
def tool():
    found = shutil.which(os.environ.get("IMG2DATASET", "img2dataset"))
    if found is None:
        pytest.skip("IMG2DATASET names no img2dataset: install it in an environment of its own")
    return found


@pytest.fixture
def site(tmp_path):
    """Images on a server of this host, with their captions: stamps of tuxpaint where they are, else noise."""
    folder = tmp_path / "site"
    folder.mkdir()
    rows = []
    stamps = sorted(file for file in STAMPS.rglob("*.png") if file.with_suffix(".txt").exists())[:NUM_IMAGES]
    rng = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        name, caption = f"{number:03d}.png", f"image {number} of noise"
        if number < len(stamps):
            shutil.copy(stamps[number], folder / name)
            caption = stamps[number].with_suffix(".txt").read_text(errors="replace").splitlines()[0]
        else:
            noise = rng.integers(0, 256, (9, 12, 4)).astype(np.uint8)
            Image.fromarray(noise).resize((160, 120)).save(folder / name)
        rows.append((name, caption))
    (folder / "page.png").write_text("<html>not found</html>")
    rows[10:10] = [
        ("nowhere.png", "a dead link"),
        ("page.png", "a page"),
        ("001.png", "the second again"),
        ("002.png", ""),
    ]

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    lines = [
        {"url": f"{address}/{name}", "caption": caption, "watermark": number % 10 / 10}
        for number, (name, caption) in enumerate(rows)
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    yield tmp_path / "list.jsonl"
    server.shutdown()


def download(tool, listed, form):
    output = listed.parent / form / "set"
    output.parent.mkdir()
    options = {
        "url_list": listed, "input_format": "jsonl", "url_col": "url", "caption_col": "caption", "output_format": form,
        "output_folder": output, "image_size": 64, "resize_mode": "border", "processes_count": 1, "thread_count": 1,
        "number_sample_per_shard": 30, "save_additional_columns": '["watermark"]', "enable_wandb": False,
    }  # fmt: skip
    given = [str(each) for name, value in options.items() for each in (f"--{name}", value)]
    quiet = {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}
    ended = subprocess.run([tool, *given], capture_output=True, text=True, env=os.environ | quiet, timeout=600)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return output


@pytest.mark.slow
def test_tars_and_tables_make_the_same_shards(tool, site, tmp_path, vocabulary):
    vocabulary.save(tmp_path / "vocabulary")
    tokenizer = VQGANTokenizer(IMAGE_TOKENIZER, parameters(VQGAN(IMAGE_TOKENIZER, nnx.Rngs(0))))
    tokenizer.save(tmp_path / "image_tokenizer")
    shards, tasks = [], []
    for form, kind in (("webdataset", "webdataset"), ("parquet", "parquet")):
        config = Config(
            corpus=CorpusConfig(
                path=str(tmp_path / "corpus" / kind), mixture=f"{kind}:{download(tool, site, form)}",
                examples_per_shard=16, num_sample_images=0, folder=FolderConfig(held_out_fraction=0.2),
            ),
            vocabulary=VocabularyConfig(path=str(tmp_path / "vocabulary")),
            image_tokenizer=replace(IMAGE_TOKENIZER, path=str(tmp_path / "image_tokenizer")),
        )  # fmt: skip
        assert prepare.run(config, Path(), argparse.Namespace(dry_run=None)) == 0
        folder = Path(config.corpus.path, f"{kind}_set")
        shards.append({str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*-*.*")
                       if file.suffix in (".bin", ".npy")})  # fmt: skip
        tasks.append(json.loads(Path(config.corpus.path, "manifest.json").read_text())["tasks"][f"{kind}_set"])
    assert shards[0] == shards[1] and sum("tokens" in name for name in shards[0]) > 3
    num_documents = [sum(split["num_documents"] for split in task["splits"].values()) for task in tasks]
    assert num_documents == [NUM_IMAGES + 1] * 2
    # A dead link and a page are no documents of a tar; a table says that they were not downloaded.
    assert tasks[0]["skipped"]["by_reason"] == {"empty caption": 1}
    assert tasks[1]["skipped"]["by_reason"] == {"empty caption": 1, "image that was not downloaded": 2}
