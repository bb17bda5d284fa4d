"""A user's image tokenizer and encoder, registered by `config.modules`, through every command."""

import json
from pathlib import Path

import numpy as np
import pytest

from cm3leon_jax.cli import main
from cm3leon_jax.encoders.base import load_encoder
from cm3leon_jax.image_tokenizers.base import load_image_tokenizer
from cm3leon_jax.images import encode_png

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    config = ConfigDict()
    config.modules = ("tests.extending.gray_patches", "tests.extending.hashed_words")
    config.corpus = dict(mixture="folder:{folder}", encode_batch_size=16, num_sample_images=4)
    config.vocabulary = dict(num_text_tokens=280, num_masks=4)
    config.image_tokenizer = dict(family="gray_patches")
    config.encoder = dict(family="hashed_words", num_buckets=32, resolution=8)
    config.retrieval = dict(enabled=True, num_retrieved=1)
    config.batch = dict(batch_size=8, sequence_length=96)
    config.model = dict(num_layers=2, model_dim=16, num_heads=2, compute_dtype="float32", remat="none")
    config.optimizer = dict(peak_learning_rate=1e-2, warmup_steps=2)
    config.train = dict(
        num_tokens=8 * 96 * 4, log_every=1, save_every=4, eval_every=4, eval_batches=1, sample_every=4)
    config.sampling = dict(max_text_tokens=6, batch_size=8)
    config.evaluate = dict(prompts=("a dark square",))
    return config
"""


@pytest.fixture
def run(tmp_path):
    """A folder of captioned images of black and white patches, and a function that runs a command."""
    rng, folder = np.random.default_rng(0), tmp_path / "images"
    folder.mkdir()
    for index in range(60):
        image = (255 * (rng.random((8, 8, 1)) < (0.2 if index % 2 else 0.8))).astype(np.uint8)
        (folder / f"{index:03}.png").write_bytes(encode_png(image))
        (folder / f"{index:03}.txt").write_text(f"a {'dark' if index % 2 else 'light'} square")
    config = tmp_path / "toy.py"
    config.write_text(CONFIG.replace("{folder}", str(folder)))

    def command(name: str, *arguments: str, expected: int = 0) -> Path:
        assert main([name, f"--config={config}", f"--workdir={tmp_path / 'run'}", *arguments]) == expected
        return tmp_path / "run"

    return command


@pytest.mark.slow
def test_a_users_image_tokenizer_and_encoder_go_through_every_command(run, capsys):
    for name in ("train-text-tokenizer", "train-image-tokenizer", "train-encoder", "prepare", "inspect", "train"):
        workdir = run(name)
    tokenizer = load_image_tokenizer(workdir / "image_tokenizer")
    images = (255 * np.random.default_rng(0).integers(0, 2, (3, 8, 8, 1))).astype(np.uint8)
    np.testing.assert_array_equal(tokenizer.reconstruct(images), images)
    assert type(tokenizer).__name__ == "GrayPatches" and load_encoder(workdir / "encoder").dim == 35
    assert json.loads((workdir / "config.json").read_text())["image_tokenizer"]["family"] == "gray_patches"

    run("evaluate", "--config.evaluate.prompts=a dark square")
    assert np.isfinite(json.loads((workdir / "evaluation.json").read_text())["eval_loss_image"])
    run("generate", "--prompt=a dark square", "--retrieve=1")
    (line,) = (workdir / "generations" / "generations.jsonl").read_text().splitlines()
    (found,) = json.loads(line)["retrieved"]
    assert found["text"] == "a dark square"
    run(
        "train-image-tokenizer",
        "--config.image_tokenizer.path=elsewhere",
        "--config.image_tokenizer.sides=3",
        expected=2,
    )
    assert "config.image_tokenizer.sides: no such field; the fields are family, path" in capsys.readouterr().err


@pytest.mark.slow
def test_a_users_encoder_that_compares_no_texts_with_images_ranks_none(run, capsys):
    for name in ("train-text-tokenizer", "train-image-tokenizer", "train-encoder", "prepare", "train"):
        run(name, "--config.train.sample_every=0")
    run(
        "generate",
        "--prompt=a dark square",
        "--config.sampling.scorer=clip",
        "--config.sampling.candidates=2",
        expected=2,
    )
    assert "compare a text with an image" in capsys.readouterr().err
