"""Images to codes and back; the folder on disk."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.image_tokenizers.base import ImageTokenizer, architecture, load_image_tokenizer
from cm3leon_jax.image_tokenizers.vqgan import model as vqgan
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig
from cm3leon_jax.image_tokenizers.vqgan.tokenizer import VQGANTokenizer
from cm3leon_jax.named_parameters import bind

CONFIG = VQGANConfig(
    resolution=8,
    in_channels=1,
    base_channels=4,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    latent_channels=4,
    embedding_dim=3,
    codebook_size=16,
)
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1)).astype(np.uint8)


@pytest.fixture(scope="module")
def tokenizer() -> ImageTokenizer:
    weights = vqgan.initial_parameters(vqgan.abstract_vqgan(CONFIG), 0)
    weights["quantize.embedding"] = np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32)
    return VQGANTokenizer(CONFIG, weights)


def test_codes_are_those_of_the_model_in_raster_order(tokenizer: ImageTokenizer) -> None:
    codes = tokenizer.encode(IMAGES, 4)
    assert codes.shape == (7, 16) and codes.dtype == np.int32 and len(np.unique(codes)) > 3
    model = bind(vqgan.abstract_vqgan(CONFIG), tokenizer.weights)
    codes_of = jax.jit(lambda pixels: model.quantize.nearest(model.encode(pixels)))
    grid = np.asarray(codes_of(jnp.asarray(IMAGES, jnp.float32) / 127.5 - 1))
    np.testing.assert_array_equal(codes.reshape(7, 4, 4)[:, 1, 2], grid[:, 1, 2])
    np.testing.assert_array_equal(codes, grid.reshape(7, 16))


def test_codes_do_not_depend_on_neighbors_place_or_padding(tokenizer: ImageTokenizer) -> None:
    codes = tokenizer.encode(IMAGES, 4)
    order = np.array([6, 2, 0, 5, 1, 4, 3])
    np.testing.assert_array_equal(tokenizer.encode(IMAGES[order], 4), codes[order])
    np.testing.assert_array_equal(tokenizer.encode(IMAGES[5:6], 4), codes[5:6])


@pytest.mark.parametrize("images_at_a_time", [1, 2, 100])
def test_codes_and_images_are_the_same_however_few_a_cpu_takes_at_a_time(
    tokenizer: ImageTokenizer, monkeypatch: pytest.MonkeyPatch, images_at_a_time: int
) -> None:
    images = np.random.default_rng(5).integers(0, 256, (37, 8, 8, 1)).astype(np.uint8)
    codes = np.concatenate([tokenizer.encode(image[None], 1) for image in images])
    monkeypatch.setattr("cm3leon_jax.image_tokenizers.vqgan.tokenizer._CPU_PIXELS", images_at_a_time * 64)
    np.testing.assert_array_equal(tokenizer.encode(images, 37), codes)
    decoded = tokenizer.decode(codes, 37)
    for index in (0, 15, 36):
        np.testing.assert_array_equal(tokenizer.decode(codes[index : index + 1], 1)[0], decoded[index])


def test_decoded_images_are_bytes_and_reconstruct_is_both_ways(tokenizer: ImageTokenizer) -> None:
    codes = tokenizer.encode(IMAGES, 4)
    decoded = tokenizer.decode(codes, 4)
    assert decoded.shape == IMAGES.shape and decoded.dtype == np.uint8 and decoded.std() > 0
    np.testing.assert_array_equal(tokenizer.reconstruct(IMAGES, 4), decoded)
    np.testing.assert_array_equal(tokenizer.decode(codes[3:4], 4), decoded[3:4])
    assert tokenizer.decode(codes[:0], 4).shape == (0, 8, 8, 1)


@pytest.mark.parametrize("codes", [np.full((1, 16), 16), np.full((1, 16), -1), np.zeros((1, 15), int)])
def test_impossible_codes_are_refused(tokenizer: ImageTokenizer, codes: np.ndarray) -> None:
    with pytest.raises(ValueError, match="codes"):
        tokenizer.decode(codes)


def test_save_and_load_give_back_every_bit(tokenizer: ImageTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "a")
    loaded = load_image_tokenizer(tmp_path / "a")
    assert loaded.fingerprint == tokenizer.fingerprint and len(loaded.fingerprint) == 16
    assert loaded.config == dataclasses.replace(CONFIG, path=str(tmp_path / "a"))
    for name, value in tokenizer.weights.items():
        np.testing.assert_array_equal(loaded.weights[name], value)
    np.testing.assert_array_equal(loaded.encode(IMAGES, 4), tokenizer.encode(IMAGES, 4))


def test_the_fingerprint_follows_weights_and_architecture_not_the_path(tokenizer: ImageTokenizer) -> None:
    moved = VQGANTokenizer(dataclasses.replace(CONFIG, path="elsewhere"), tokenizer.weights)
    other_norm = VQGANTokenizer(dataclasses.replace(CONFIG, norm_groups=2), tokenizer.weights)
    changed = {name: value.copy() for name, value in tokenizer.weights.items()}
    changed["quantize.embedding"][0, 0] += 1e-3
    assert moved.fingerprint == tokenizer.fingerprint
    assert len({tokenizer.fingerprint, other_norm.fingerprint, VQGANTokenizer(CONFIG, changed).fingerprint}) == 3


def test_the_default_has_the_fingerprint_and_record_of_before_encoders_were_a_choice() -> None:
    tokenizer = VQGANTokenizer(CONFIG, vqgan.initial_parameters(vqgan.abstract_vqgan(CONFIG), 0))
    assert tokenizer.fingerprint == "6a81d5ae7c235497"
    assert "encoder" not in architecture(CONFIG)
    assert architecture(CONFIG, with_defaults=True)["encoder"] == "convolutional"


@pytest.fixture(scope="module")
def patch_tokenizer() -> ImageTokenizer:
    config = dataclasses.replace(CONFIG, resolution=12, in_channels=3, channel_multipliers=(1, 1, 2), encoder="patch")
    weights = vqgan.initial_parameters(vqgan.abstract_vqgan(config), 0)
    weights["quantize.embedding"] = np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32)
    return VQGANTokenizer(config, weights)


def test_a_patch_decides_its_code_alone(patch_tokenizer: ImageTokenizer) -> None:
    first, other = np.random.default_rng(2).integers(0, 256, (2, 20, 12, 12, 3)).astype(np.uint8)
    codes, codes_of_other = patch_tokenizer.encode(first), patch_tokenizer.encode(other)
    assert ((codes != codes_of_other).sum(0) > 0).all()
    for index in range(9):
        row, column = divmod(index, 3)
        patch = np.s_[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        changed, expected = first.copy(), codes.copy()
        changed[patch], expected[:, index] = other[patch], codes_of_other[:, index]
        np.testing.assert_array_equal(patch_tokenizer.encode(changed), expected)


def test_a_patch_tokenizer_is_saved_and_loaded(patch_tokenizer: ImageTokenizer, tmp_path: Path) -> None:
    patch_tokenizer.save(tmp_path)
    loaded = load_image_tokenizer(tmp_path)
    assert loaded.config == dataclasses.replace(patch_tokenizer.config, path=str(tmp_path))
    assert loaded.fingerprint == patch_tokenizer.fingerprint
    images = np.random.default_rng(3).integers(0, 256, (4, 12, 12, 3)).astype(np.uint8)
    np.testing.assert_array_equal(loaded.encode(images), patch_tokenizer.encode(images))


def test_an_unknown_encoder_is_named() -> None:
    with pytest.raises(UserError, match=r"config.image_tokenizer.encoder .*'convolutional' or 'patch'"):
        dataclasses.replace(CONFIG, encoder="conv")


def test_a_missing_or_damaged_folder_is_explained(tokenizer: ImageTokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `cm3leon train-image-tokenizer` first"):
        load_image_tokenizer(tmp_path)
    tokenizer.save(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(UserError, match="is damaged"):
        load_image_tokenizer(tmp_path)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="is not the file that"):
        load_image_tokenizer(tmp_path)
    weights.write_bytes(whole)
    stored = json.loads(config.read_text())
    config.write_text(json.dumps(stored | {"architecture": stored["architecture"] | {"base_channels": 8}}))
    with pytest.raises(UserError, match="is not the file that"):
        load_image_tokenizer(tmp_path)
    config.write_text(json.dumps({"architecture": {"family": "vqgan"}}))
    with pytest.raises(UserError, match=r"the image tokenizer's config is damaged: .*fingerprint: field required"):
        load_image_tokenizer(tmp_path)


def test_the_codec_brings_in_neither_tensorflow_nor_torch() -> None:
    program = (
        "import sys, cm3leon_jax.image_tokenizers.vqgan.tokenizer; print({'tensorflow', 'torch'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
