"""Images of any shape become squares by crop or by padding, on a background of any color, wherever they are decoded."""

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cm3leon_jax import images
from cm3leon_jax.data.corpus.document_tokenizer import DocumentTokenizer
from cm3leon_jax.data.sources.boxes import boxes_in_view
from cm3leon_jax.data.sources.structure_maps import map_options, structure_map
from cm3leon_jax.documents import Document, ImageSegment
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.image_arrays import ImageFiles
from cm3leon_jax.evaluation.set_results import mask_of_codes
from cm3leon_jax.generation.requests import read_images
from cm3leon_jax.images import decode_image
from cm3leon_jax.squaring import CENTER_CROP, Squaring

TEAL = (0, 128, 128)
PADDED = Squaring("pad", "teal")


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([8, 64, 256]))
@settings(max_examples=200, deadline=None)
def test_a_frame_shows_the_middle_of_an_image_whole_or_fills_the_square(width, height, resolution):
    for squaring in (CENTER_CROP, PADDED):
        scaled_width, scaled_height, left, top = squaring.frame(width, height, resolution)
        for scaled, start in ((scaled_width, left), (scaled_height, top)):
            # As much is cut off, or padded, on one side as on the other.
            assert abs((scaled - resolution) - 2 * start) <= 1
        scale = resolution / (min(width, height) if squaring.method == "crop" else max(width, height))
        # The shape stays, up to the rounding of a side to whole pixels, of which there is one at least.
        assert abs(scaled_width - width * scale) <= 0.5 or scaled_width == 1
        assert abs(scaled_height - height * scale) <= 0.5 or scaled_height == 1
        if squaring.method == "crop":
            assert min(scaled_width, scaled_height) == resolution
        else:
            assert max(scaled_width, scaled_height) == resolution and min(scaled_width, scaled_height) >= 1


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (33, 20), (2000, 3), (1, 500), (7, 7)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_padded_image_is_whole_on_its_background(size, kind, channels):
    width, height = size
    file = encoded(Image.new("RGB", size, "red"), kind)
    found = decode_image(file, 16, channels, PADDED)
    scaled_width, scaled_height, left, top = PADDED.frame(width, height, 16)
    inside = np.zeros((16, 16), bool)
    inside[-top : scaled_height - top, -left : scaled_width - left] = True
    background = TEAL if channels == 3 else (PADDED.gray,)
    assert (found[~inside] == background).all()
    red = np.array((255, 0, 0) if channels == 3 else (76,))
    assert np.abs(found[inside].astype(int) - red).max() < 12


def test_the_same_image_upright_is_padded_the_same():
    noise = np.random.default_rng(0).integers(0, 256, (20, 48, 3)).astype(np.uint8)
    turned = Image.fromarray(np.rot90(noise))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert (
        decode_image(encoded(turned, exif=exif), 24, 3, PADDED) == decode_image(encoded(noise), 24, 3, PADDED)
    ).all()


@pytest.mark.parametrize("size", [(300, 290), (1200, 75), (90, 1000)])
def test_large_images_are_shrunk_in_strips_and_padded_alike(size, monkeypatch):
    ramp = np.linspace(0, 255, size[0])[None, :] + np.zeros((size[1], 1))
    file = encoded(np.repeat(ramp[..., None], 3, axis=-1).astype(np.uint8))
    whole = decode_image(file, 8, 3, PADDED).astype(int)
    monkeypatch.setattr(images, "_LARGE", 100)
    monkeypatch.setattr(images, "_STRIP", 3000)
    assert np.abs(decode_image(file, 8, 3, PADDED).astype(int) - whole).max() <= 6


@pytest.mark.parametrize("method", ["crop", "pad"])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_pixels_show_the_background(method, mode, channels):
    rgba = Image.new("RGBA", (8, 8), (200, 200, 200, 0))
    rgba.paste((200, 200, 200, 255), (0, 0, 4, 8))
    found = decode_image(encoded(rgba.convert(mode)), 8, channels, Squaring(method, "#102030"))
    expected = (16, 32, 48) if channels == 3 else (Squaring(method, "#102030").gray,)
    assert (found[:, 4:] == expected).all() and (found[:, :4] == 200).all()


def test_half_transparent_pixels_are_mixed_with_the_background():
    file = encoded(Image.new("RGBA", (8, 8), (255, 255, 255, 128)))
    assert np.abs(decode_image(file, 8, 3, Squaring(background="black")).astype(int) - 128).max() <= 1


def test_numbers_that_are_none_show_the_background():
    values = np.full((8, 8), 0.5, np.float32)
    values[0] = np.nan
    found = decode_image(encoded(Image.fromarray(values), "TIFF"), 8, 3, Squaring(background="red"))
    assert (found[0] == (255, 0, 0)).all() and (found[1:] == 128).all()


@pytest.mark.parametrize("background", ["", "whitish", "#12", "#11223344", "rgb(1,2)"])
def test_a_background_that_is_no_color_is_refused_in_a_line(background):
    with pytest.raises(UserError, match=r"config\.corpus\.squaring\.background is"):
        Squaring(background=background)


def test_another_method_is_refused():
    with pytest.raises(UserError, match=r"config\.corpus\.squaring\.method"):
        Squaring("stretch")


def test_boxes_are_where_their_objects_are_in_the_square():
    # A dark rectangle on white, in images that are wide and tall.
    for width, height in ((60, 30), (30, 60)):
        pixels = np.full((height, width, 3), 255, np.uint8)
        pixels[10:20, 6:24] = 0
        for squaring in (CENTER_CROP, Squaring("pad", "white")):
            ((_, box),) = boxes_in_view([("it", (6, 10, 24, 20))], width, height, 60, squaring)
            is_dark = decode_image(encoded(pixels), 60, 1, squaring)[..., 0] < 128
            rows, columns = np.flatnonzero(is_dark.any(1)), np.flatnonzero(is_dark.any(0))
            found = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            assert np.abs(np.array(found) - box).max() <= 1, (width, height, squaring)


def test_outlines_are_where_their_objects_are_in_the_square():
    pixels = np.full((30, 60, 3), 255, np.uint8)
    pixels[10:20, 6:24] = 0
    outlines = [[1, [[6, 10, 24, 10, 24, 20, 6, 20]]]]
    for squaring in (CENTER_CROP, Squaring("pad", "white")):
        options = map_options(60, squaring, width=60, height=30, outlines=outlines)
        areas = decode_image(structure_map(b"", "segmentation", options), 60, 3).any(-1)
        assert (areas == (decode_image(encoded(pixels), 60, 1, squaring)[..., 0] < 128)).mean() > 0.99


def test_maps_of_the_default_have_the_options_that_they_had():
    assert map_options(64, CENTER_CROP) == '{"resolution": 64}'


def test_prompts_and_sets_see_what_the_corpus_saw(vocabulary, image_tokenizer, tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (24, 64, 3)).astype(np.uint8)
    (tmp_path / "a.png").write_bytes(file := encoded(noise))
    config = image_tokenizer.config
    for squaring in (PADDED, CENTER_CROP):
        tokenizer = DocumentTokenizer(vocabulary, image_tokenizer, 4, squaring=squaring)
        (pixels,) = tokenizer.decode(Document((ImageSegment(file),))).images
        codes = read_images([tmp_path / "a.png"], image_tokenizer, squaring)[tmp_path / "a.png"]
        assert (codes == image_tokenizer.encode(pixels[None], 1)[0]).all()
        files = ImageFiles([file], config.resolution, config.in_channels, squaring)
        assert (files[:1][0] == pixels).all()
    cropped = decode_image(file, config.resolution, config.in_channels)
    assert not (cropped == decode_image(file, config.resolution, config.in_channels, PADDED)).all()


def test_the_padding_of_a_mask_is_not_masked():
    everything = encoded(np.full((8, 16), 255, np.uint8))
    assert mask_of_codes(everything, 16, 4, CENTER_CROP).all()
    found = mask_of_codes(everything, 16, 4, replace(PADDED, background="white")).reshape(4, 4)
    assert found.tolist() == [[False] * 4, [True] * 4, [True] * 4, [False] * 4]
