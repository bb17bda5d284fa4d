"""How images are shown: large enough to judge, and crisp where they are enlarged."""

import pytest

from cm3leon_jax.pages import ImageStyle, number


@pytest.mark.parametrize("resolution", [1, 4, 8, 12, 16, 24, 28, 32, 48, 64, 96, 128, 160, 191, 192, 256, 512, 1024])
def test_images_are_large_enough_and_not_too_large(resolution):
    style = ImageStyle.of(resolution)
    assert 64 <= style.side <= 192
    # Enlarged by a whole factor, so that every pixel has one size; shrunk smoothly.
    assert style.rendering == ("auto" if resolution >= 192 else "pixelated")
    assert style.rendering == "auto" or style.side % resolution == 0


def test_the_sizes_of_the_shipped_configs():
    assert [ImageStyle.of(resolution).side for resolution in (8, 32, 256)] == [64, 128, 192]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(22120.0, "22,120"), (0.96543, "0.9654"), (-3.0, "-3"), (51.884, "51.88"), (float("inf"), "inf"), (1e20, "1e+20")],
)
def test_numbers_are_whole_or_have_four_digits(value, shown):
    assert number(value) == shown
