import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from cm3leon_jax.documents import Document, ImageSegment, TextSegment
from cm3leon_jax.encoders.base import load_encoder
from cm3leon_jax.encoders.tfidf import TfidfEncoder, fit_documents
from cm3leon_jax.errors import UserError
from cm3leon_jax.images import encode_png

NAMES = ("woman astronaut", "man astronaut", "red apple", "green apple", "flag of the moon", "a red car", "a car")


def colored(red: int, green: int, blue: int, side: int = 16) -> np.ndarray:
    return np.full((side, side, 3), (red, green, blue), np.uint8)


@pytest.fixture(scope="module")
def encoder() -> TfidfEncoder:
    images = [colored(250, 10, 10), colored(10, 250, 10), colored(10, 10, 250)]
    documents = [
        Document((TextSegment(name), ImageSegment(encode_png(images[index % 3])))) for index, name in enumerate(NAMES)
    ]
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


def test_images_are_compared_by_color_and_never_with_texts(encoder):
    reds = encoder.encode_images(np.stack([colored(250, 10, 10), colored(220, 30, 30), colored(10, 10, 250)]))
    assert reds[0] @ reds[1] > 0.9 > reds[0] @ reds[2]
    gray = encoder.encode_images(np.full((1, 8, 8, 1), 7, np.uint8))
    assert np.linalg.norm(gray) == pytest.approx(1)
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
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3)).astype(np.uint8)
    whole, part = encoder.encode_images(image), encoder.encode_images(image, 0.25, np.array([3]))
    assert 0 < (part == 0).sum() - (whole == 0).sum() <= 8 * 3


def test_saved_and_loaded_is_the_same(encoder, tmp_path):
    encoder.save(tmp_path)
    loaded = load_encoder(tmp_path)
    assert loaded.fingerprint == encoder.fingerprint
    np.testing.assert_array_equal(loaded.encode_texts(NAMES), encoder.encode_texts(NAMES))


def test_what_is_missing_or_damaged_is_named(encoder, tmp_path):
    with pytest.raises(UserError, match="train-encoder"):
        load_encoder(tmp_path)
    encoder.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="damaged"):
        load_encoder(tmp_path)
    other = fit_documents([Document((TextSegment("else"),))], dim=512, side=4, resolution=16)
    other.save(tmp_path / "other")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="not the file"):
        load_encoder(tmp_path)


def test_projected_vectors_find_nearly_the_nearest_texts_of_exact_tfidf():
    rng = np.random.default_rng(0)
    words = rng.zipf(1.5, (1000, 8)) % 5000
    texts = [" ".join(f"word{word}" for word in row) for row in words]
    exact = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+").fit_transform(texts)
    similarity = (exact @ exact.T).toarray()
    np.fill_diagonal(similarity, -1)
    vectors = fit_documents([Document((TextSegment(text),)) for text in texts], 512, 4, 16).encode_texts(texts)
    products = vectors @ vectors.T
    np.fill_diagonal(products, -1)
    found = np.take_along_axis(similarity, np.argsort(-products, axis=1)[:, :5], axis=1)
    nearest = -np.sort(-similarity, axis=1)[:, :5]
    # A projection with a fixed number of entries per feature reaches 0.966 as well.
    assert found.mean() / nearest.mean() > 0.95
