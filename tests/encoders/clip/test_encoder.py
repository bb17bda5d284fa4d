"""The encoder on disk, its batches, what it leaves out, and the pixels it sees."""

from __future__ import annotations

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.encoders.base import load_encoder
from cm3leon_jax.encoders.clip.encoder import ClipEncoder
from cm3leon_jax.encoders.clip.inputs import ImageNormalization, SpecialTokenIds, kept_patches, normalize_images
from cm3leon_jax.encoders.clip.model import abstract_clip, normalize_rows
from cm3leon_jax.errors import UserError
from cm3leon_jax.named_parameters import bind
from tests.conftest import CAPTIONS

LONG = "a handwritten seven " * 9
TEXTS = [*CAPTIONS, "", LONG, "  ", "</s>"]


def images(count: int, side: int = 16, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(side).integers(0, 256, (count, side, side, channels), np.uint8)


def test_vectors_have_unit_norm_and_an_empty_text_has_none(clip_encoder):
    vectors = clip_encoder.encode_texts(TEXTS)
    assert vectors.shape == (len(TEXTS), clip_encoder.dim)
    expected = [1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(clip_encoder.encode_images(images(3)), axis=1), 1, atol=1e-5)
    assert clip_encoder.encode_texts([]).shape == (0, clip_encoder.dim)
    assert clip_encoder.encode_images(images(0)).shape == (0, clip_encoder.dim)


def test_a_vector_does_not_depend_on_its_neighbors(clip_encoder):
    many = images(300)
    together, texts = clip_encoder.encode_images(many), clip_encoder.encode_texts(TEXTS * 40)
    np.testing.assert_allclose(clip_encoder.encode_images(many[257:259]), together[257:259], atol=1e-5)
    np.testing.assert_allclose(clip_encoder.encode_texts([TEXTS[1]]), texts[1 + 8 * 39][None], atol=1e-5)
    assert np.linalg.norm(together[0] - together[1]) > 0.01


def test_the_marks_stand_around_what_fits(clip_encoder, vocabulary):
    tokens, says = clip_encoder.tokenizer(TEXTS)
    room, special_tokens = clip_encoder.architecture.max_text_tokens, clip_encoder.special_tokens
    for row, (text, found) in enumerate(zip(TEXTS, tokens, strict=True)):
        ids = vocabulary.encode_text(text)[: room - 2]
        padding = [special_tokens.pad] * (room - 2 - len(ids))
        assert found.tolist() == [special_tokens.start, *ids, special_tokens.end, *padding]
        assert says[row] == bool(text.strip())


def test_grey_is_three_equal_colors(clip_encoder):
    gray = images(3, channels=1)
    colors = clip_encoder.encode_images(gray.repeat(3, axis=3))
    np.testing.assert_allclose(clip_encoder.encode_images(gray), colors, atol=1e-6)


@pytest.mark.parametrize("side", [7, 16, 40])
def test_pixels_are_resized_as_clip_does(side):
    """Against PyTorch's antialiased bicubic."""
    torch = pytest.importorskip("torch")
    found = images(2, side)
    scaled = torch.tensor(found.transpose(0, 3, 1, 2)).float() / 255
    expected = torch.nn.functional.interpolate(scaled, (16, 16), mode="bicubic", antialias=True).clip(0, 1)
    expected = (expected.numpy().transpose(0, 2, 3, 1) - ImageNormalization.mean) / np.array(ImageNormalization.std)
    np.testing.assert_allclose(normalize_images(jnp.asarray(found), 16, ImageNormalization()), expected, atol=1e-4)


def test_what_is_left_out_follows_from_the_key_and_the_content(clip_encoder):
    found, keys = images(6), np.array([5, 6, 7, 5, 6, 7])
    found[3:] = found[:3]
    for encode, rows in ((clip_encoder.encode_images, found), (clip_encoder.encode_texts, [LONG] * 6)):
        dropped = encode(rows, 0.5, keys)
        np.testing.assert_allclose(dropped[:3], dropped[3:], atol=1e-5)
        np.testing.assert_allclose(encode(rows[2:4], 0.5, keys[2:4]), dropped[2:4], atol=1e-5)
        assert np.linalg.norm(dropped[:3] - encode(rows, 0.5, keys + 9)[:3], axis=1).max() > 1e-3
        assert np.linalg.norm(dropped - encode(rows), axis=1).max() > 1e-3
        np.testing.assert_array_equal(encode(rows, 0.0, keys), encode(rows))
        with pytest.raises(ValueError, match="dropout needs keys"):
            encode(rows, 0.5)


def test_what_is_left_out_of_an_image_has_the_mean_color(clip_encoder):
    kept = kept_patches(2, 16, 0.5, np.array([1, 2]))
    pixels = np.array(normalize_images(jnp.asarray(images(2)), 16, ImageNormalization()))
    pixels *= kept.reshape(2, 4, 4).repeat(4, axis=1).repeat(4, axis=2)[..., None]
    clip = bind(abstract_clip(clip_encoder.architecture), clip_encoder.weights)
    expected = normalize_rows(clip.image(jnp.asarray(pixels)))
    np.testing.assert_allclose(clip_encoder.encode_images(images(2), 0.5, np.array([1, 2])), expected, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(dropout=st.floats(0.01, 0.99), key=st.integers(0, 2**62), index=st.integers(0, len(TEXTS) - 1))
def test_tokens_that_stay_are_a_part_in_order(clip_encoder, dropout, key, index):
    special_tokens = clip_encoder.special_tokens
    (whole,), _ = clip_encoder.tokenizer([TEXTS[index]])
    (part,), _ = clip_encoder.tokenizer([TEXTS[index]], dropout, np.array([key]))

    def inner(row: np.ndarray) -> list[int]:
        assert row[0] == special_tokens.start
        end = row.tolist().index(special_tokens.end)
        assert (row[end + 1 :] == special_tokens.pad).all()
        return row[1:end].tolist()

    left, all_of_them = inner(part), inner(whole)
    assert bool(left) == bool(all_of_them)
    remaining = iter(all_of_them)
    assert all(token in remaining for token in left)


def test_about_the_share_is_left_out():
    kept = kept_patches(200, 49, 0.2, np.arange(200))
    assert 0.78 < kept.mean() < 0.82
    assert kept_patches(50, 4, 0.99, np.arange(50)).any(axis=1).all()


def test_a_folder_gives_the_encoder_back(clip_encoder, tmp_path):
    clip_encoder.save(tmp_path, training={"mixture": "x"})
    loaded = load_encoder(tmp_path)
    assert isinstance(loaded, ClipEncoder) and loaded.fingerprint == clip_encoder.fingerprint
    np.testing.assert_array_equal(loaded.encode_texts(TEXTS), clip_encoder.encode_texts(TEXTS))
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["family"] == "clip" and stored["training"] == {"mixture": "x"}


def test_fingerprints_tell_encoders_apart(clip_encoder):
    parts = dict(
        architecture=clip_encoder.architecture,
        weights=clip_encoder.weights,
        tokenizer_json=clip_encoder.tokenizer.json,
        special_tokens=clip_encoder.special_tokens,
        normalization=clip_encoder.normalization,
    )
    others = dict(
        weights=clip_encoder.weights | {"logit_scale": np.float32(1)},
        special_tokens=SpecialTokenIds(0, 2, 2),
        normalization=ImageNormalization(std=(1.0, 1.0, 1.0)),
    )
    found = {ClipEncoder(**(parts | {name: other})).fingerprint for name, other in others.items()}
    assert ClipEncoder(**parts).fingerprint == clip_encoder.fingerprint
    assert len(found | {clip_encoder.fingerprint}) == 4


def test_a_damaged_folder_is_refused_in_a_line(clip_encoder, tmp_path):
    with pytest.raises(UserError, match="no encoder at"):
        load_encoder(tmp_path / "nowhere")
    clip_encoder.save(tmp_path / "whole")

    def spoilt(name: str, content: bytes | None) -> None:
        shutil.copytree(tmp_path / "whole", tmp_path / "part", dirs_exist_ok=True)
        (tmp_path / "part" / name).write_bytes(content) if content is not None else (tmp_path / "part" / name).unlink()

    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    for name, content, message in (
        ("model.safetensors", None, "is damaged"),
        ("model.safetensors", b"nothing", "is damaged"),
        ("tokenizer.json", b"{}", "tokenizer.json is damaged"),
        ("config.json", json.dumps({"family": "clip"}).encode(), "config is damaged: .*settings: field required"),
        ("config.json", json.dumps(config | {"fingerprint": "0"}).encode(), "is not the file that"),
    ):
        spoilt(name, content)
        with pytest.raises(UserError, match=message):
            load_encoder(tmp_path / "part")
    config["settings"]["architecture"]["embedding_dim"] = 25
    spoilt("config.json", json.dumps(config).encode())
    with pytest.raises(UserError, match=r"tensor image.projection is \(32, 24\), its config says \(32, 25\)"):
        load_encoder(tmp_path / "part")
