"""The images for the image tokenizer: drawn once, each image once, in a process of their own."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.corpus.image_sample import load_image_sample
from cm3leon_jax.errors import UserError
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig, VQGANTrainingConfig
from cm3leon_jax.images import encode_png


@pytest.mark.slow
def test_images_are_drawn_once_and_again_only_for_another_sample(tmp_path):
    for index in range(12):
        pixels = np.full((8, 8, 1), 10 * (index // 2), np.uint8)
        (tmp_path / f"{index}.png").write_bytes(b"no image" if index == 11 else encode_png(pixels))
        (tmp_path / f"{index}.txt").write_text("text")
    config = Config(
        corpus=CorpusConfig(mixture=f"folder:{tmp_path}"),
        image_tokenizer=VQGANConfig(
            path=str(tmp_path / "vq"),
            resolution=4,
            in_channels=1,
            channel_multipliers=(1, 2),
            training=VQGANTrainingConfig(num_images=0),
        ),
    )
    sample = load_image_sample(config)
    assert isinstance(sample, np.memmap) and sample.dtype == np.uint8 and sample.shape[1:] == (4, 4, 1)
    values = sample[:, 0, 0, 0].tolist()
    assert len(values) == len(set(values)) and set(values) <= set(range(0, 60, 10))
    record = json.loads(Path(tmp_path, "vq", "sample", "sample.json").read_text())
    assert record["count"] == len(sample) and record["unreadable"] <= 1

    file = tmp_path / "vq" / "sample" / "images.npy"
    drawn = file.stat().st_mtime_ns
    np.testing.assert_array_equal(load_image_sample(config), sample)
    assert file.stat().st_mtime_ns == drawn

    fewer = replace(config, image_tokenizer=replace(config.image_tokenizer, training=VQGANTrainingConfig(num_images=3)))
    np.testing.assert_array_equal(load_image_sample(fewer), sample[:3])
    with pytest.raises(UserError, match="no folder of images at /nowhere"):
        load_image_sample(replace(config, corpus=replace(config.corpus, mixture="folder:/nowhere")))
