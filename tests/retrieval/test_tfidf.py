import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.documents import Document, Picture, Text, encode_png
from cm3leon_jax.errors import UserError
from cm3leon_jax.retrieval.loading import load_bi_encoder
from cm3leon_jax.retrieval.tfidf import TfidfEncoder, fit_documents

NAMES = ("woman astronaut", "man astronaut", "red apple", "green apple", "flag of the moon", "a red car", "a car")


def coloured(red: int, green: int, blue: int, side: int = 16) -> np.ndarray:
    return np.full((side, side, 3), (red, green, blue), np.uint8)


@pytest.fixture(scope="module")
def encoder() -> TfidfEncoder:
    pictures = [coloured(250, 10, 10), coloured(10, 250, 10), coloured(10, 10, 250)]
    documents = [Document((Text(name), Picture(encode_png(pictures[index % 3])))) for index, name in enumerate(NAMES)]
    return fit_documents(documents, dim=512, side=4, resolution=16)


def test_texts_with_shared_words_are_near_and_rare_words_count_more(encoder):
    vectors = encoder.encode_texts(NAMES)
    near = vectors @ vectors.T
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert near[0, 1] > 0.2 > abs(near[0, 2])
    # "car" ties the two cars together more than "red", with another word beside it, ties the car to the apple.
    assert near[5, 6] > near[5, 2]


def test_an_order_of_words_tells_texts_apart(encoder):
    first, second = encoder.encode_texts(["red car", "car red"])
    assert 0.3 < first @ second < 0.95


def test_pictures_are_compared_by_colour_and_never_with_texts(encoder):
    reds = encoder.encode_pictures(np.stack([coloured(250, 10, 10), coloured(220, 30, 30), coloured(10, 10, 250)]))
    assert reds[0] @ reds[1] > 0.9 > reds[0] @ reds[2]
    grey = encoder.encode_pictures(np.full((1, 8, 8, 1), 7, np.uint8))
    assert np.linalg.norm(grey) == pytest.approx(1)
    assert np.abs(encoder.encode_texts(NAMES) @ reds.T).max() == 0


def test_a_text_without_words_is_zero(encoder):
    assert not encoder.encode_texts(["", " .,! "]).any()


@settings(max_examples=30, deadline=None)
@given(text=st.text(max_size=40), key=st.integers(-(2**62), 2**62))
def test_dropout_depends_on_the_key_alone_and_leaves_a_word(encoder, text, key):
    keys = np.array([key])
    once, again = (encoder.encode_texts([text], 0.5, keys) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert once.any() == encoder.encode_texts([text]).any()


def test_dropout_drops_about_its_share_of_words_and_of_the_thumbnail(encoder):
    text = " ".join(f"word{i}" for i in range(200))
    whole, part = encoder.encode_texts([text]), encoder.encode_texts([text], 0.2, np.array([3]))
    assert 0.6 < float(whole[0] @ part[0]) < 0.95
    picture = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3)).astype(np.uint8)
    whole, part = encoder.encode_pictures(picture), encoder.encode_pictures(picture, 0.25, np.array([3]))
    assert 0 < (part == 0).sum() - (whole == 0).sum() <= 8 * 3


def test_saved_and_loaded_is_the_same(encoder, tmp_path):
    encoder.save(tmp_path)
    loaded = load_bi_encoder(tmp_path)
    assert loaded.fingerprint == encoder.fingerprint
    np.testing.assert_array_equal(loaded.encode_texts(NAMES), encoder.encode_texts(NAMES))


def test_what_is_missing_or_damaged_is_named(encoder, tmp_path):
    with pytest.raises(UserError, match="train-bi-encoder"):
        load_bi_encoder(tmp_path)
    encoder.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="damaged"):
        load_bi_encoder(tmp_path)
    other = fit_documents([Document((Text("else"),))], dim=512, side=4, resolution=16)
    other.save(tmp_path / "other")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="not the file"):
        load_bi_encoder(tmp_path)
