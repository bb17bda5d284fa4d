"""Vectors of images by Inception-v3 or an encoder: what distances between sets of images are measured on."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float, Float32

from cm3leon_jax.encoders.base import Encoder
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation import batches
from cm3leon_jax.evaluation.image_arrays import ImageArray
from cm3leon_jax.evaluation.inception import inception_vectors
from cm3leon_jax.evaluation.resize import PREPROCESSING


def inception_features(
    images: ImageArray, weights: dict[str, np.ndarray], preprocessing: str, batch_size: int
) -> Float32[np.ndarray, "n 2048"]:
    """Vectors by Inception-v3.

    Args:
      images: of any side.
      weights: what `load_inception` returned.
      preprocessing: a name of `resize.PREPROCESSING`.
      batch_size: images per call of the network.

    Raises:
      UserError: if a vector is not finite.
    """
    prepare, on_device = PREPROCESSING[preprocessing], jax.device_put(weights)
    return in_batches(
        lambda batch: inception_vectors(on_device, batch), prepare, images, batch_size, "Inception features"
    )


def encoder_features(images: ImageArray, encoder: Encoder, batch_size: int) -> Float32[np.ndarray, "n dim"]:
    """Vectors by an encoder.

    Raises:
      UserError: if a vector is not finite.
    """
    return in_batches(encoder.encode_images, lambda image: image, images, batch_size, "vectors")


def in_batches(
    function: Callable[[np.ndarray], Float[Array, "B F"] | Float[np.ndarray, "B F"]],
    prepare: Callable[[np.ndarray], np.ndarray],
    images: ImageArray,
    batch_size: int,
    what: str,
) -> Float32[np.ndarray, "n F"]:
    """Rows of `function` of batches of prepared images, the last one filled up: one shape, so compiled once.

    The processes of a run share the batches out, and all of them get all rows.

    Raises:
      UserError: on every process, if an image cannot be read or a row is not finite.
    """

    def vectors(batch: slice) -> Float32[np.ndarray, "B F"]:
        prepared = [prepare(image) for image in images[batch]]
        filled = np.stack(prepared + prepared[-1:] * (batch_size - len(prepared)))
        return np.asarray(function(filled), np.float32)

    found = batches.rows(vectors, len(images), batch_size, f"{what} of {len(images):,} images")
    if not (is_finite := np.isfinite(found).all(axis=1)).all():
        row = int(np.flatnonzero(~is_finite)[0])
        raise UserError(f"{what}: the vector of image {row} is not finite: check the file of the weights")
    return found
