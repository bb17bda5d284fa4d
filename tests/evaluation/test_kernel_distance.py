"""KID is that of clean-fid, CMMD by its formula; both see that sets differ."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from cm3leon_jax.encoders.base import l2_normalize
from cm3leon_jax.evaluation import kernel_distance
from cm3leon_jax.evaluation.kernel_distance import cmmd, kid
from tests.evaluation import made

RECORDED = json.loads((Path(__file__).parent / "recorded" / "images.json").read_text())


def test_kid_is_that_of_clean_fid(monkeypatch):
    real, generated = made.feature_sets()
    found = kid(real[:400], generated)
    assert found.value == pytest.approx(RECORDED["kid"], rel=1e-9)
    assert found.low < found.value < found.high and found.n == 400
    monkeypatch.setattr(kernel_distance, "_MOST_VALUES", 3000)
    assert kid(real[:400], generated).value == pytest.approx(found.value, rel=1e-9)


def test_kid_is_unbiased():
    random = np.random.default_rng(0)
    same = [kid(random.standard_normal((30, 8)), random.standard_normal((20, 8))).value for _ in range(200)]
    assert abs(np.mean(same)) < 3 * np.std(same) / len(same) ** 0.5
    assert min(same) < 0


def test_cmmd_is_its_formula():
    real, generated = (l2_normalize(features.astype(np.float32)) for features in made.feature_sets())

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-(cdist(a.astype(np.float64), b.astype(np.float64)) ** 2) / 200).mean())

    expected = 1000 * (mean(real, real) + mean(generated, generated) - 2 * mean(real, generated))
    found = cmmd(real, generated)
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert found.low < found.value < found.high
    assert cmmd(real, real).value == pytest.approx(0, abs=1e-9)


def test_the_interval_is_as_wide_as_other_samples_differ():
    random = np.random.default_rng(1)
    real = random.standard_normal((200, 8))
    found = [kid(real, random.standard_normal((100, 8)) + 0.5) for _ in range(60)]
    spread = np.std([estimate.value for estimate in found])
    assert np.mean([estimate.high - estimate.low for estimate in found]) == pytest.approx(2 * 1.96 * spread, rel=0.3)
