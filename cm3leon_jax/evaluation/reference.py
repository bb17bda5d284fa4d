"""What generated images are compared with: real images of a folder, or statistics of the features of many."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.frechet import Moments
from cm3leon_jax.evaluation.image_arrays import ImageArray, ImageFiles
from cm3leon_jax.images import IMAGE_SUFFIXES

_CHANNELS = 3


def reference_features(
    path: str,
    evaluation: EvaluationContext,
    set_name: str,
    features: Callable[[ImageArray], Float32[np.ndarray, "n F"]],
) -> Float32[np.ndarray, "n F"] | Moments:
    """Features of a reference, or their moments; without a path, of the real images of an evaluation set.

    Raises:
      UserError: as `open_reference` does, or if the set has no real images.
    """
    if not path:
        return features(evaluation.real_images(set_name))
    found = open_reference(path, evaluation.config.image_tokenizer.resolution)
    return found if isinstance(found, Moments) else features(found)


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
