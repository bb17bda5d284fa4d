"""What generated images are compared with: real images of a folder, or statistics of the features of many."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.estimates import Estimate
from cm3leon_jax.evaluation.feature_distances import Discrepancy, compare
from cm3leon_jax.evaluation.frechet import Moments
from cm3leon_jax.evaluation.image_arrays import ImageArray, ImageFiles
from cm3leon_jax.images import IMAGE_SUFFIXES

_CHANNELS = 3


@runtime_checkable
class HasReference(Hashable, Protocol):
    """A metric of distances; a frozen dataclass."""

    @property
    def set(self) -> str:
        """The evaluation set whose prompts are sampled; empty: the prompts of the config."""
        ...

    @property
    def reference(self) -> str:
        """A folder of real images, or an .npz of mu and sigma; empty: the real images of the set."""
        ...


def compare_with_reference(
    metric: HasReference,
    evaluation: EvaluationContext,
    features: Callable[[ImageArray], Float32[np.ndarray, "n F"]],
    discrepancy: Discrepancy,
) -> dict[str, Estimate]:
    """Distances between the images that are generated for a metric's set and its reference, as `compare` names them.

    Args:
      features: what the distances are measured on.

    Raises:
      UserError: as `open_reference` and `compare` do, or if the set has no real images.
    """

    def of_reference() -> Float32[np.ndarray, "n F"] | Moments:
        if not metric.reference:
            return features(evaluation.real_images(metric.set))
        found = open_reference(metric.reference, evaluation.config.image_tokenizer.resolution)
        return found if isinstance(found, Moments) else features(found)

    real = evaluation.keep((metric, "reference"), of_reference)
    samples = evaluation.sampled(metric.set)
    return compare(real, features(samples.images), samples.ranks, samples.ids, discrepancy)


def open_reference(path: str, resolution: int) -> ImageFiles | Moments:
    """Opens a folder of images, or an .npz of `mu` and `sigma` as pytorch-fid and clean-fid write it.

    Args:
      path: of the folder, whose images may be at any depth, or of the file.
      resolution: side to which the folder's images are resized first, after the middle is cropped: that of the images
        they are compared with.

    Raises:
      UserError: if there is no such folder or file, or it has no images or statistics.
    """
    if Path(path).is_dir():
        files = sorted(file for file in Path(path).rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise UserError(f"no images in the reference folder {path}: give a folder of image files, or an .npz")
        return ImageFiles(files, resolution, _CHANNELS)
    if not path.endswith(".npz") or not Path(path).is_file():
        raise UserError(f"no reference at {path}: give a folder of images, or an .npz with mu and sigma")
    try:
        with np.load(path) as arrays:
            mean, covariance = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"the reference {path} has no mu and sigma that can be read ({error})") from None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not np.isfinite(covariance.sum() + mean.sum()):
        raise UserError(f"the reference {path} has mu of {mean.shape}, sigma of {covariance.shape}, or NaN in them")
    return Moments(mean, covariance)
