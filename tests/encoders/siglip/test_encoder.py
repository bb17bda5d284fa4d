"""SigLIP on disk, what it leaves out, and how it reads a text."""

from __future__ import annotations

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from cm3leon_jax.encoders.base import load_encoder
from cm3leon_jax.encoders.clip.inputs import kept_patches, normalize_images
from cm3leon_jax.encoders.clip.model import normalize_rows
from cm3leon_jax.encoders.siglip.encoder import SiglipEncoder
from cm3leon_jax.encoders.siglip.model import abstract_siglip
from cm3leon_jax.encoders.siglip.tokenizer import canonical
from cm3leon_jax.errors import UserError
from cm3leon_jax.named_parameters import bind
from tests.encoders.siglip.made import END, NUM_PIECES, random_encoder, sentencepiece_model

LONG = "a red square and a green circle " * 3
TEXTS = ["a red square", LONG, "", "  ", "?!", "\u2581", "1"]


@pytest.fixture(scope="module")
def encoder() -> SiglipEncoder:
    return random_encoder()


def images(count: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, channels), np.uint8)


def test_vectors_have_unit_norm_and_a_text_without_a_word_has_none(encoder):
    norms = np.linalg.norm(encoder.encode_texts(TEXTS), axis=1)
    np.testing.assert_allclose(norms, [1, 1, 0, 0, 0, 0, 1], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(encoder.encode_images(images(3)), axis=1), 1, atol=1e-5)
    assert encoder.encode_texts([]).shape == encoder.encode_images(images(0)).shape == (0, encoder.dim)
    gray = images(3, channels=1)
    np.testing.assert_allclose(encoder.encode_images(gray), encoder.encode_images(gray.repeat(3, 3)), atol=1e-6)


def test_what_is_left_out_follows_from_the_key_and_the_content(encoder):
    found, keys = images(6), np.array([5, 6, 7, 5, 6, 7])
    found[3:] = found[:3]
    for encode, rows in ((encoder.encode_images, found), (encoder.encode_texts, [LONG] * 6)):
        dropped = encode(rows, 0.5, keys)
        np.testing.assert_allclose(dropped[:3], dropped[3:], atol=1e-5)
        np.testing.assert_allclose(encode(rows[2:4], 0.5, keys[2:4]), dropped[2:4], atol=1e-5)
        assert np.linalg.norm(dropped[:3] - encode(rows, 0.5, keys + 9)[:3], axis=1).max() > 1e-3
        assert np.linalg.norm(dropped - encode(rows), axis=1).max() > 1e-3
        np.testing.assert_array_equal(encode(rows, 0.0, keys), encode(rows))
        with pytest.raises(ValueError, match="dropout needs keys"):
            encode(rows, 0.5)


def test_a_part_of_the_tokens_stays_in_order_before_the_end(encoder):
    (whole,), _ = encoder.tokenizer(["a red square"])
    inner = whole[: whole.tolist().index(END)].tolist()
    assert len(inner) > 3 and whole[len(inner) :].tolist() == [END] * (11 - len(inner))
    rows, _ = encoder.tokenizer(["a red square"] * 8, 0.5, np.arange(8))
    for row in rows.tolist():
        kept = row[: row.index(END)]
        left = iter(inner)
        assert kept and all(token in left for token in kept)
        assert row[len(kept) :] == [END] * (11 - len(kept))
    assert len({tuple(row) for row in rows.tolist()}) > 1
    (cut,), _ = encoder.tokenizer([LONG])
    assert cut[-1] == END and END not in cut[:-1]


def test_what_is_left_out_of_an_image_has_the_mean_color(encoder):
    kept = kept_patches(2, 16, 0.5, np.array([1, 2]))
    pixels = np.array(normalize_images(jnp.asarray(images(2)), 16, encoder.normalization))
    pixels *= kept.reshape(2, 4, 4).repeat(4, axis=1).repeat(4, axis=2)[..., None]
    expected = normalize_rows(bind(abstract_siglip(encoder.architecture), encoder.weights).image(jnp.asarray(pixels)))
    np.testing.assert_allclose(encoder.encode_images(images(2), 0.5, np.array([1, 2])), expected, atol=1e-5)


def test_pixels_that_fill_no_patch_are_not_seen(encoder):
    """As of so400m-patch14-384, whose grid is 27 patches of 14 pixels a side."""
    architecture = dataclasses.replace(encoder.architecture, resolution=18)
    assert architecture.num_patches == 16
    larger = SiglipEncoder(architecture, encoder.weights, encoder.tokenizer, encoder.normalization)
    framed = np.pad(images(2), [(0, 0), (0, 2), (0, 2), (0, 0)], constant_values=255)
    np.testing.assert_allclose(larger.encode_images(framed), encoder.encode_images(images(2)), atol=1e-6)


def test_a_text_is_made_canonical():
    assert canonical(" A  RED\tsquare, it's (1)! ", lower_case=True) == "a red square its 1"
    assert canonical("A-B «c»", lower_case=False) == "AB «c»"


def test_it_is_restored_from_its_folder(encoder, tmp_path):
    encoder.save(tmp_path)
    found = load_encoder(tmp_path)
    assert isinstance(found, SiglipEncoder) and found.fingerprint == encoder.fingerprint
    assert (tmp_path / "spiece.model").read_bytes() == sentencepiece_model()
    np.testing.assert_array_equal(found.encode_texts(TEXTS), encoder.encode_texts(TEXTS))
    np.testing.assert_array_equal(found.encode_images(images(2)), encoder.encode_images(images(2)))


@pytest.mark.parametrize("content", [b"", b"no model"])
def test_a_damaged_tokenizer_is_refused(encoder, tmp_path, content):
    encoder.save(tmp_path)
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(UserError, match=r"spiece.model is damaged \(.*delete the folder and make it again") as refused:
        load_encoder(tmp_path)
    assert "\n" not in str(refused.value)


def test_other_weights_are_refused(encoder, tmp_path):
    encoder.save(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    stored["settings"]["architecture"]["vocabulary_size"] = NUM_PIECES + 1
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"text\.token_embedding"):
        load_encoder(tmp_path)
