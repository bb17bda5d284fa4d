"""The filters by which images are scaled are those that other people's image tokenizers were trained with."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from cm3leon_jax.images import decode_image
from cm3leon_jax.squaring import Squaring

SIZES = [(40, 40), (97, 41), (33, 110), (20, 31), (16, 16), (12, 9)]
SIDE = 16
FILTERS = ("lanczos", "bicubic", "bilinear")


def photo(size: tuple[int, int]) -> Image.Image:
    rng = np.random.default_rng(0)
    rough = Image.fromarray(rng.integers(0, 256, (7, 7, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return Image.fromarray(
        np.clip(np.asarray(rough) + rng.normal(0, 15, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
    )


def decoded(image: Image.Image, scaled_by: str, method: str = "crop") -> np.ndarray:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return decode_image(buffer.getvalue(), SIDE, 3, Squaring(method=method, filter=scaled_by))


def middle(pixels: np.ndarray) -> np.ndarray:
    top, left = (pixels.shape[0] - SIDE) // 2, (pixels.shape[1] - SIDE) // 2
    return pixels[top : top + SIDE, left : left + SIDE]


@pytest.mark.parametrize("size", SIZES)
def test_bicubic_is_the_center_crop_of_adm(size):
    image = photo(size)
    found = decoded(image, "bicubic")
    while min(image.size) >= 2 * SIDE:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = SIDE / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(found, middle(np.asarray(image)))


@pytest.mark.parametrize("size", SIZES)
def test_bilinear_interpolates_between_four_pixels(size):
    image = photo(size)
    scale = SIDE / min(size)
    width, height = (max(SIDE, round(side * scale)) for side in size)
    pixels = np.asarray(image).astype(np.float64)

    def along(values: np.ndarray, length: int) -> np.ndarray:
        """Samples the first axis at the centers of `length` pixels; beyond the border is the pixel at it."""
        at = np.clip((np.arange(length) + 0.5) * len(values) / length - 0.5, 0, len(values) - 1)
        low = np.floor(at).astype(int)
        high, weight = np.minimum(low + 1, len(values) - 1), (at - low)[:, None, None]
        return values[low] * (1 - weight) + values[high] * weight

    expected = along(along(pixels, height).swapaxes(0, 1), width).swapaxes(0, 1)
    assert np.abs(decoded(image, "bilinear") - middle(expected)).max() < 1.01


# Of other long sides `transformers` takes the whole part, Meta and this package the nearest number.
@pytest.mark.parametrize("size", [(40, 40), (80, 40), (40, 60), (24, 36), (10, 15)])
def test_lanczos_is_what_transformers_does_for_chameleon(size):
    transformers = pytest.importorskip("transformers", reason="the extra [test] brings transformers")
    processor = transformers.models.chameleon.image_processing_pil_chameleon.ChameleonImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, do_rescale=False, do_normalize=False
    )
    theirs = np.asarray(processor(photo(size), return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
    assert np.abs(decoded(photo(size), "lanczos").astype(int) - theirs).max() <= 1


def test_each_filter_gives_other_pixels():
    found = [decoded(photo((97, 41)), each).astype(int) for each in FILTERS]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(found[first] - found[second]).mean() > 1


@pytest.mark.parametrize("scaled_by", FILTERS)
@pytest.mark.parametrize("size", [(97, 41), (33, 110), (12, 9), (300, 2)])
def test_a_padded_image_is_whole_in_the_middle(scaled_by, size):
    found = decoded(Image.new("RGB", size, "black"), scaled_by, "pad")
    is_black = (found == 0).all(-1)
    long = int(np.argmax(size))
    # All along the long side, and about as much of the short one as it has.
    assert is_black.any(axis=long).all()
    assert abs(is_black.any(axis=1 - long).sum() - SIDE * min(size) / max(size)) <= 1
