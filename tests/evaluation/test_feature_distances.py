"""Distances between features by rank, and what they need."""

import numpy as np
import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.feature_distances import compare
from cm3leon_jax.evaluation.frechet import frechet_distance, moments
from cm3leon_jax.evaluation.kernel_distance import kid


def features(n: int, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(n).standard_normal((n, 4)) + shift).astype(np.float32)


def test_each_rank_is_compared():
    real, best, second = features(60), features(40), features(41)[:40] + 2
    generated = np.stack([best, second], axis=1).reshape(80, 4)
    ranks, ids = np.tile([0, 1], 40), np.repeat(np.arange(40), 2).tolist()
    found = compare(real, generated, ranks, ids, kid)
    assert found["frechet"] == frechet_distance(real, best)
    assert found["frechet_rank_1"] == frechet_distance(real, second)
    assert found["frechet_all"] == frechet_distance(real, generated, ids)
    assert found["discrepancy"] == kid(real, best)
    assert found["precision"].n == 40 and found["recall"].n == 60
    assert found.keys() == compare(real, best, ranks[::2], ids[::2], kid).keys() | {"frechet_rank_1", "frechet_all"}


def test_moments_have_frechet_distances_alone():
    real, generated = features(60), features(40)
    found = compare(moments(real), generated, np.zeros(40, np.int64), list(range(40)), kid)
    assert found.keys() == {"frechet"}
    assert found["frechet"].value == pytest.approx(frechet_distance(real, generated).value)


def test_few_images_have_no_neighbors():
    found = compare(features(5), features(6), np.zeros(6, np.int64), list(range(6)), kid)
    assert found.keys() == {"frechet", "discrepancy"}


@pytest.mark.parametrize(
    ("num_real", "ranks", "message"),
    [
        (1, [0, 0, 0], "two images in each, and there is 1"),
        (5, [0, 1, 2], "two images in each, and there is 1"),
        (5, [], "two images in each, and there is 0"),
    ],
)
def test_one_image_is_no_set(num_real, ranks, message):
    with pytest.raises(UserError, match=message):
        compare(features(num_real), features(len(ranks)), np.array(ranks, np.int64), ranks, kid)


def test_features_of_another_network_are_refused():
    with pytest.raises(UserError, match="reference's features have 3 numbers, those of the images 4"):
        compare(moments(features(9)[:, :3]), features(9), np.zeros(9, np.int64), list(range(9)), kid)
