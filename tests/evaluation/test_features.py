"""Vectors of images come in batches of one size, and none is NaN."""

import numpy as np
import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.features import encoder_features, in_batches
from tests.evaluation import made
from tests.evaluation.stand_in import ColorEncoder

IMAGES = np.stack([made.image(seed, 8, 8, 3) for seed in range(7)])


def test_batches_have_one_shape_and_rows_their_order():
    shapes = []

    def mean(batch: np.ndarray) -> np.ndarray:
        shapes.append(batch.shape)
        return batch.mean(axis=(1, 2))

    found = in_batches(mean, lambda image: image.astype(np.float32), IMAGES, 3, "means")
    assert shapes == [(3, 8, 8, 3)] * 3
    np.testing.assert_allclose(found, IMAGES.mean(axis=(1, 2)), rtol=1e-6)


def test_vectors_of_an_encoder():
    encoder = ColorEncoder()
    np.testing.assert_array_equal(encoder_features(IMAGES, encoder, 4), encoder.encode_images(IMAGES))


def test_a_vector_that_is_not_finite_is_an_error():
    values = np.ones(7, np.float32)
    values[5] = np.nan
    with pytest.raises(UserError, match="means: the vector of image 5 is not finite"):
        in_batches(lambda batch: batch[:, :, 0, 0], lambda image: image, values[:, None, None, None], 3, "means")
