"""Resized pixels are those of clean-fid, and gray or transparent images become RGB."""

from pathlib import Path

import numpy as np
import pytest

from cm3leon_jax.evaluation.resize import antialiased, bilinear, rgb
from tests.evaluation import made

RECORDED = Path(__file__).parent / "recorded" / "images.npz"


@pytest.mark.parametrize("name", sorted(made.resized()))
def test_antialiased_is_clean_fid_within_a_level(name):
    found = antialiased(made.resized()[name])
    assert found.shape == (299, 299, 3)
    assert np.abs(found[::13, ::13] - np.load(RECORDED)[f"resized_{name}"]).max() < 1


def test_bilinear_takes_the_nearest_two_pixels():
    ramp = np.arange(0, 250, 5, dtype=np.uint8)[None, :, None].repeat(50, axis=0)
    found = bilinear(ramp)
    np.testing.assert_allclose(found, found[:1, :, :1].repeat(299, axis=0).repeat(3, axis=2), atol=1e-3)
    at = ((np.arange(299) + 0.5) * 50 / 299 - 0.5).clip(0, 49)
    np.testing.assert_allclose(found[0, :, 0], 5 * at, atol=1e-3)
    # In an image of three times the side, that is one pixel of three; the antialiased mean is of all.
    stripes = np.where(np.arange(897) % 3 == 1, 255, 0).astype(np.uint8)[None, :, None].repeat(897, axis=0)
    np.testing.assert_allclose(bilinear(stripes), 255, atol=1e-3)
    np.testing.assert_allclose(antialiased(stripes)[:, 2:-2], 85, atol=1)


def test_gray_is_repeated_and_transparent_is_on_white():
    gray = np.array([[[7]]], np.uint8)
    assert rgb(gray).tolist() == [[[7, 7, 7]]]
    assert rgb(np.array([[[7, 0]]], np.uint8)).tolist() == [[[255, 255, 255]]]
    assert rgb(np.array([[[10, 20, 30, 255]]], np.uint8)).tolist() == [[[10, 20, 30]]]
    assert rgb(np.array([[[0, 100, 200, 51]]], np.uint8)).tolist() == [[[204, 224, 244]]]
