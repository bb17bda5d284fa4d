"""Structure maps of images whose edges and areas are known."""

import json

import numpy as np
import pytest

from cm3leon_jax.data.sources.structure_maps import STRUCTURES, class_color, segmentation, structure_map
from cm3leon_jax.images import decode_image, encode_png


def square(noise: int = 0) -> np.ndarray:
    """A red square, pixels 16 .. 47, on blue."""
    image = np.full((64, 64, 3), (20, 40, 200), np.int64)
    image[16:48, 16:48] = (220, 60, 40)
    image += np.random.default_rng(0).integers(-noise, noise + 1, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def made(kind: str, image: np.ndarray, resolution: int = 64, **options) -> np.ndarray:
    encoded = structure_map(encode_png(image), kind, json.dumps({"resolution": resolution, **options}))
    return decode_image(encoded, resolution, 3)


@pytest.mark.parametrize("noise", [0, 6])
def test_edges_are_a_thin_closed_line(noise):
    is_edge = made("edges", square(noise))[..., 0] > 127
    rows, columns = np.nonzero(is_edge)
    assert {rows.min(), columns.min()} <= {15, 16} and {rows.max(), columns.max()} <= {47, 48}
    assert not is_edge[20:44, 20:44].any() and 110 <= is_edge.sum() <= 150
    assert all(is_edge[row, 12:20].any() and is_edge[row, 44:52].any() for row in range(18, 46))


def test_an_image_of_one_color_has_no_edges():
    for kind in ("edges", "scribble", "soft_edges"):
        assert not made(kind, np.full((64, 64, 3), 90, np.uint8)).any()


def test_scribbles_are_thicker_than_edges_and_soft_edges_have_many_values():
    assert (made("scribble", square()) > 0).sum() > 2 * (made("edges", square()) > 0).sum()
    assert len(np.unique(made("soft_edges", square()))) > 8


def test_blurring_keeps_the_colors_and_loses_the_noise():
    blurred = made("blur", square(40)).astype(int)
    assert np.abs(blurred[30:34, 30:34] - (220, 60, 40)).max() < 20 and blurred[:6, :6].std(axis=(0, 1)).max() < 12


def test_maps_are_of_the_image_as_the_image_tokenizer_sees_it():
    wide = np.pad(square(), ((0, 0), (40, 40), (0, 0)), mode="edge")
    for kind in STRUCTURES:
        assert (made(kind, wide, 32) == made(kind, square(), 32)).all()


def test_a_segmentation_has_the_colors_of_the_classes():
    outlines = [[3, [[8, 8, 56, 8, 56, 56, 8, 56]]], [90, [[30, 30, 40, 30, 40, 40], [0, 0, 4, 0, 4, 4, 0, 4]]]]
    found = made("segmentation", square(), 64, outlines=outlines, width=64, height=64)
    assert {tuple(color) for color in found.reshape(-1, 3)} == {(0, 0, 0), class_color(3), class_color(90)}
    assert tuple(found[20, 20]) == class_color(3) and tuple(found[1, 1]) == tuple(found[32, 38]) == class_color(90)
    half = made("segmentation", square(), 32, outlines=outlines, width=64, height=64)
    assert tuple(half[10, 10]) == class_color(3) and tuple(half[16, 18]) == class_color(90)


def test_a_pixel_is_in_an_area_if_its_center_is():
    """So areas beside each other do not overlap, and a mask of rectangles or triangles comes back as it was."""
    rectangle, beside = [2, 1, 6, 1, 6, 5, 2, 5], [6, 1, 8, 1, 8, 5, 6, 5]
    found = segmentation([[1, [rectangle]], [2, [beside]]], 8, 8, 8)
    expected = np.zeros((8, 8, 3), np.uint8)
    expected[1:5, 2:6], expected[1:5, 6:8] = class_color(1), class_color(2)
    assert (found == expected).all()
    # Half as large, from 1 to 2.75: the centers of the pixels 1 and 2 are in it, those of 0 and 3 are not.
    half = segmentation([[1, [[2, 0, 5.5, 0, 5.5, 8, 2, 8]]]], 8, 8, 4)
    assert half.any(-1).tolist() == [[False, True, True, False]] * 4
    triangle = segmentation([[1, [[0, 0.1, 7.9, 8, 0, 8]]]], 8, 8, 8).any(-1)
    assert (triangle == np.tril(np.ones((8, 8), bool), -1)).all()


def test_what_reaches_over_the_edge_of_the_crop_is_cut_off():
    wide = segmentation([[1, [[-5, -5, 30, -5, 30, 20, -5, 20]]]], 16, 8, 8)
    assert wide.any(-1).all()
    assert not segmentation([[1, [[0, 0, 3, 0, 3, 8, 0, 8]]]], 16, 8, 8).any()


def test_classes_have_colors_of_their_own():
    assert len({class_color(number) for number in range(256)}) == 256
