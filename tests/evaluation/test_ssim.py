"""SSIM is that of scikit-image, with either window."""

import json
from pathlib import Path

import numpy as np
import pytest

from cm3leon_jax.evaluation.ssim import ssim
from tests.evaluation import made

RECORDED = json.loads((Path(__file__).parent / "recorded" / "images.json").read_text())


@pytest.mark.parametrize("window", ["gaussian", "uniform"])
def test_it_is_that_of_scikit_image(window):
    original, other = made.distorted()
    found = ssim(np.stack([original, original]), np.stack([other, original]), window)
    assert found == pytest.approx([RECORDED[f"ssim_{window}"], 1], abs=1e-9)
