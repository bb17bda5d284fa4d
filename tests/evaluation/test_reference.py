"""References: a folder of images, statistics in a file, and one line where neither can be read."""

from dataclasses import dataclass

import numpy as np
import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.frechet import Moments
from cm3leon_jax.evaluation.image_arrays import ImageFiles
from cm3leon_jax.evaluation.kernel_distance import kid
from cm3leon_jax.evaluation.reference import compare_with_reference, open_reference
from cm3leon_jax.images import encode_png
from tests.evaluation.stand_in import given_images


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    (tmp_path / "b").mkdir()
    for name, level in (("b/1.png", 30), ("a.PNG", 10), ("b/0.png", 20)):
        (tmp_path / name).write_bytes(encode_png(np.full((6, 9, 3), level, np.uint8)))
    (tmp_path / "captions.txt").write_text("not an image")
    found = open_reference(str(tmp_path), 4)
    assert isinstance(found, ImageFiles) and len(found) == 3
    assert found[0:3].shape == (3, 4, 4, 3)
    assert found[0:3][:, 0, 0, 0].tolist() == [10, 20, 30]


def test_statistics_are_those_of_the_file(tmp_path):
    mean, covariance = np.arange(3.0), np.eye(3)
    np.savez(tmp_path / "coco.npz", mu=mean, sigma=covariance)
    found = open_reference(str(tmp_path / "coco.npz"), 4)
    assert isinstance(found, Moments)
    np.testing.assert_array_equal(found.mean, mean)
    np.testing.assert_array_equal(found.covariance, covariance)


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("absent.npz", None, "no reference at .*absent.npz: give a folder of images, or an .npz with mu and sigma"),
        ("empty", {}, "no images in the reference folder"),
        ("x.npz", {"mu": np.zeros(3)}, "has no mu and sigma that can be read"),
        ("x.npz", {"mu": np.zeros(3), "sigma": np.zeros((3, 2))}, r"has mu of \(3,\), sigma of \(3, 2\)"),
        ("x.npz", {"mu": np.zeros(2), "sigma": np.full((2, 2), np.nan)}, "or NaN in them"),
        ("x.npz", {"mu": np.array([{}]), "sigma": np.eye(1)}, "has no mu and sigma that can be read"),
    ],
)
def test_a_mistake_is_one_line(name, arrays, message, tmp_path):
    if name == "empty":
        (tmp_path / name).mkdir()
    elif arrays is not None:
        np.savez(tmp_path / name, **arrays)
    with pytest.raises(UserError, match=message):
        open_reference(str(tmp_path / name), 4)


@dataclass(frozen=True)
class MeanLevel:
    reference: str = ""
    set: str = ""


@pytest.mark.parametrize("is_folder", [False, True])
def test_features_of_the_reference_are_made_once_while_a_model_trains(tmp_path, is_folder):
    real = np.arange(0, 120, 10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    for number, image in enumerate(real):
        (tmp_path / f"{number:02d}.png").write_bytes(encode_png(image))
    metric, kept, seen = MeanLevel(str(tmp_path) if is_folder else ""), {}, []

    def features(images):
        seen.append(len(images))
        return images[: len(images)].astype(np.float32).mean(axis=(1, 2))

    distances = []
    for level in (0, 50):
        evaluation = given_images(real[:9] + np.uint8(level), real, kept=kept)
        distances.append(compare_with_reference(metric, evaluation, features, kid)["frechet"].value)
    assert seen == [12, 9, 9]
    assert distances[0] < distances[1]
