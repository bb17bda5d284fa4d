"""Pictures of any kind become pixels of one size."""

import io

import numpy as np
import pytest
from PIL import Image

from cm3leon_jax.documents import Document, Picture, Text, UnreadablePicture, encode_png, open_picture


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def test_a_picture_of_the_right_size_comes_back_exactly():
    for channels in (1, 3):
        pixels = np.random.default_rng(0).integers(0, 256, (16, 16, channels), dtype=np.uint8)
        np.testing.assert_array_equal(open_picture(encode_png(pixels), 16, channels), pixels)


def test_the_short_side_is_scaled_and_the_middle_kept():
    image = Image.new("RGB", (90, 30), "blue")
    image.paste("red", (30, 0, 60, 30))
    pixels = open_picture(encoded(image), 15, 3)
    assert pixels.shape == (15, 15, 3)
    assert np.abs(pixels[:, 3:-3].astype(int) - [255, 0, 0]).max() <= 2


def test_transparent_pixels_become_white():
    for image in (Image.new("RGBA", (8, 8), (0, 0, 0, 0)), Image.new("LA", (8, 8), (0, 0))):
        assert (open_picture(encoded(image), 8, 3) == 255).all()
        assert (open_picture(encoded(image), 8, 1) == 255).all()


def test_jpeg_and_grey_and_palette_pictures_are_read():
    assert open_picture(encoded(Image.new("L", (9, 12), 100), "JPEG"), 8, 3).shape == (8, 8, 3)
    assert open_picture(encoded(Image.new("P", (9, 12))), 8, 1).shape == (8, 8, 1)


@pytest.mark.parametrize("damage", [b"", b"no picture", encoded(Image.new("RGB", (64, 64), "red"))[:60]])
def test_an_unreadable_picture_says_so(damage):
    with pytest.raises(UnreadablePicture):
        open_picture(damage, 8, 3)


def test_the_text_of_a_document():
    assert Document((Text("a"), Picture(b""), Text("b"))).text == "a\nb"
