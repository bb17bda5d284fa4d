"""Precision, recall, density and coverage by their definitions, and where sets overlap in part."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from cm3leon_jax.evaluation import manifold
from cm3leon_jax.evaluation.manifold import manifold_values


def by_definition(real: np.ndarray, generated: np.ndarray, k: int) -> dict[str, float]:
    real_radii = np.sort(cdist(real, real), axis=1)[:, k]
    generated_radii = np.sort(cdist(generated, generated), axis=1)[:, k]
    between = cdist(real, generated)
    return {
        "precision": float((between <= real_radii[:, None]).any(axis=0).mean()),
        "recall": float((between <= generated_radii).any(axis=1).mean()),
        "density": float((between <= real_radii[:, None]).sum() / k / len(generated)),
        "coverage": float((between.min(axis=1) <= real_radii).mean()),
    }


@pytest.mark.parametrize("most", [1 << 23, 700])
def test_they_are_what_their_papers_define(most, monkeypatch):
    monkeypatch.setattr(manifold, "_MOST_DISTANCES", most)
    random = np.random.default_rng(0)
    real, generated = random.standard_normal((150, 6)), random.standard_normal((120, 6)) * 0.8 + 0.4
    found = manifold_values(real, generated, 5)
    values = {name: estimate.value for name, estimate in found.items()}
    assert values == pytest.approx(by_definition(real, generated, 5))
    assert {name: estimate.n for name, estimate in found.items()} == {
        **{"precision": 120, "density": 120},
        **{"recall": 150, "coverage": 150},
    }
    assert all(estimate.low <= estimate.value <= estimate.high for estimate in found.values())


def test_half_of_the_modes():
    random = np.random.default_rng(0)
    real = np.concatenate([random.standard_normal((50, 4)), random.standard_normal((50, 4)) + 50])
    found = manifold_values(real, random.standard_normal((100, 4)) * 0.5)
    assert found["precision"].value > 0.9 and found["density"].value > 0.9
    assert found["recall"].value < 0.6 and found["coverage"].value <= 0.5


def test_equal_sets_with_repeated_vectors():
    vectors = np.repeat(np.random.default_rng(0).standard_normal((4, 3)), 7, axis=0)
    found = manifold_values(vectors, vectors)
    assert [found[name].value for name in ("precision", "recall", "coverage")] == [1, 1, 1]
