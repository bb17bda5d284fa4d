"""Copies of training images are found, and what is new is no copy."""

from types import SimpleNamespace

import numpy as np
import pytest

from cm3leon_jax.encoders.base import l2_normalize
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation import copies
from cm3leon_jax.evaluation.copies import Copies, corpus_codes, nearest, own_similarity, same_pixels
from tests.evaluation.stand_in import ColorEncoder, given_images
from tests.extending.gray_patches import GrayPatches, GrayPatchesConfig


def test_training_images_are_each_there_once(corpus, vocabulary):
    codes = corpus_codes(corpus, "train", 0, vocabulary)
    assert codes.shape == (47, 16) and len(np.unique(codes, axis=0)) == 47
    np.testing.assert_array_equal(corpus_codes(corpus, "train", 5, vocabulary), codes[:5])


def test_nearest_but_oneself(monkeypatch):
    vectors = l2_normalize(np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32))
    monkeypatch.setattr(copies, "_MOST_SIMILARITIES", 60)
    index, similarity = nearest(vectors, vectors)
    assert index.tolist() == list(range(20))
    others, lower = nearest(vectors, vectors, np.arange(20))
    products = vectors @ vectors.T - 1e9 * np.eye(20, dtype=np.float32)
    assert others.tolist() == products.argmax(axis=1).tolist()
    assert (lower < similarity).all()
    # Above the threshold is the fraction that was asked for, but for two that are each other's nearest.
    assert (lower > own_similarity(vectors, 0.25)).sum() in (4, 5)


def test_rounding_is_no_difference():
    image = np.full((1, 4, 4, 1), 100, np.uint8)
    assert same_pixels(np.concatenate([image, image]), np.concatenate([image + 2, image + 3]), 1).tolist() == [1, 0]


def test_a_model_that_repeats_its_training_images(corpus, vocabulary, monkeypatch):
    image_tokenizer = GrayPatches(GrayPatchesConfig(codebook_size=32))
    monkeypatch.setattr(copies, "load_encoder", lambda path: ColorEncoder())
    model = SimpleNamespace(vocabulary=vocabulary, image_tokenizer=image_tokenizer)
    training = image_tokenizer.decode(corpus_codes(corpus, "train", 0, vocabulary))
    new = image_tokenizer.decode(corpus_codes(corpus, "validation", 0, vocabulary))
    generated = np.concatenate([training[3:6], new])
    found = Copies(encoder="e")(given_images(generated, new, model=model, corpus=corpus))
    assert found["exact_copies"].value == pytest.approx(3 / len(generated))
    assert found["near_copies"].value >= 3 / len(generated)
    assert found["near_copies_real"].value < found["near_copies"].value
    assert found["copies_training_images"] == 47
    with pytest.raises(UserError, match="needs two training images"):
        Copies(encoder="e", num_training_images=1)(given_images(generated, new, model=model, corpus=corpus))


def test_training_and_real_images_are_encoded_once_while_a_model_trains(corpus, vocabulary, monkeypatch):
    image_tokenizer, kept, encoded = GrayPatches(GrayPatchesConfig(codebook_size=32)), {}, []
    model = SimpleNamespace(vocabulary=vocabulary, image_tokenizer=image_tokenizer)
    images = image_tokenizer.decode(corpus_codes(corpus, "validation", 0, vocabulary))
    encode = copies.encoder_features

    def counted(array, encoder, batch_size):
        encoded.append(len(array))
        return encode(array, encoder, batch_size)

    monkeypatch.setattr(copies, "load_encoder", lambda path: ColorEncoder())
    monkeypatch.setattr(copies, "encoder_features", counted)
    found = [Copies("e")(given_images(images[:2], images, model=model, corpus=corpus, kept=kept)) for _ in range(2)]
    assert found[0] == found[1]
    assert encoded == [47, 2, len(images), 2]
    # Another metric is not this one.
    Copies("e", quantile=0.1)(given_images(images[:2], images, model=model, corpus=corpus, kept=kept))
    assert encoded[4:] == [47, 2, len(images)]
