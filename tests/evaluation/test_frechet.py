"""The Frechet distance is that of pytorch-fid, and its interval covers what other samples give."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import linalg

from cm3leon_jax.evaluation.frechet import frechet_distance, moments
from tests.evaluation import made

RECORDED = json.loads((Path(__file__).parent / "recorded" / "images.json").read_text())


def by_square_root(first: np.ndarray, second: np.ndarray) -> float:
    difference = first.mean(axis=0) - second.mean(axis=0)
    covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    traces = sum(np.trace(covariance) for covariance in covariances)
    return float(difference @ difference + traces - 2 * np.trace(linalg.sqrtm(covariances[0] @ covariances[1])).real)


def test_it_is_that_of_pytorch_fid():
    real, generated = (features.astype(np.float32) for features in made.feature_sets())
    assert frechet_distance(real, generated).value == pytest.approx(RECORDED["frechet"], rel=1e-5)
    assert frechet_distance(moments(real), generated).value == pytest.approx(RECORDED["frechet"], rel=1e-5)
    assert frechet_distance(real, real).value == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("num_real", "num_generated"), [(10, 12), (10, 90), (90, 12)])
def test_less_items_than_features(num_real, num_generated):
    real, generated = made.feature_sets()
    real, generated = real[:num_real].astype(np.float32), generated[:num_generated].astype(np.float32)
    expected = by_square_root(real.astype(np.float64), generated.astype(np.float64))
    assert frechet_distance(real, generated).value == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(moments(real), generated).value == pytest.approx(expected, rel=1e-5)


def test_the_interval_is_as_wide_as_other_samples_differ():
    random = np.random.default_rng(0)
    mix = random.standard_normal((16, 16))

    def sample(n: int) -> np.ndarray:
        return (random.standard_normal((n, 16)) @ mix * 1.2 + 0.5).astype(np.float32)

    real = (random.standard_normal((300, 16)) @ mix).astype(np.float32)
    found = [frechet_distance(real, sample(200)) for _ in range(60)]
    values = np.array([estimate.value for estimate in found])
    widths = np.array([estimate.high - estimate.low for estimate in found])
    assert np.mean(widths) == pytest.approx(2 * 1.96 * values.std(), rel=0.35)
    assert all(estimate.low < estimate.value < estimate.high and estimate.n == 200 for estimate in found)


def test_items_of_one_group_count_as_one():
    real, generated = (features.astype(np.float32) for features in made.feature_sets())
    repeated = np.repeat(generated[:100], 4, axis=0)
    alone = frechet_distance(real, repeated)
    grouped = frechet_distance(real, repeated, groups=np.repeat(np.arange(100), 4).tolist())
    assert grouped.value == alone.value
    assert grouped.high - grouped.low > 1.5 * (alone.high - alone.low)
