"""Image files of any format, mode, orientation and size become the right pixels, or say why not, at a bounded cost."""

import io
import json
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from cm3leon_jax import images
from cm3leon_jax.images import IMAGE_SUFFIXES, UNSUPPORTED_IMAGE_SUFFIXES, UnreadableImage, decode_image, encode_png


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def png(
    rows: np.ndarray, depth: int, color: int, chunks: tuple[tuple[bytes, bytes], ...] = (), interlaced: bool = False
) -> bytes:
    """A PNG, written by the standard, of rows [height, width, samples] of `depth` bits; `color` is its color type."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def lines(part: np.ndarray) -> bytes:
        if not part.size:
            return b""
        bits = (part.reshape(len(part), -1, 1) >> np.arange(depth - 1, -1, -1)) & 1
        packed = np.packbits(bits.reshape(len(part), -1).astype(np.uint8), axis=1)
        return b"".join(b"\0" + line.tobytes() for line in packed)

    adam7 = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
    passes = [rows[y::dy, x::dx] for y, dy, x, dx in adam7] if interlaced else [rows]
    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], depth, color, 0, 0, interlaced)
    data = zlib.compress(b"".join(map(lines, passes)))
    parts = [chunk(b"IHDR", header), *(chunk(*each) for each in chunks), chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(values: np.ndarray, photometric: int = 1, sample_format: int = 1, order: str = "<") -> bytes:
    """An uncompressed TIFF, written by the standard, of values [height, width] or [height, width, samples]."""
    samples = values.shape[2] if values.ndim == 3 else 1
    bits = values.dtype.itemsize * 8
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    entries = [
        *((256, 4, values.shape[1]), (257, 4, values.shape[0]), (259, 3, 1), (262, 3, photometric)),
        *((273, 4, 8), (277, 3, samples), (278, 4, values.shape[0]), (279, 4, len(data)), (339, 3, sample_format)),
    ]
    directory = 8 + len(data)
    after = directory + 2 + 12 * (len(entries) + 1) + 4
    fields = [
        struct.pack(order + ("HHII" if kind == 4 else "HHIHxx"), tag, kind, 1, value) for tag, kind, value in entries
    ]
    if samples == 1:
        fields.insert(2, struct.pack(order + "HHIHxx", 258, 3, 1, bits))
    else:
        fields.insert(2, struct.pack(order + "HHII", 258, 3, samples, after))
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, directory)
    tail = struct.pack(order + "I", 0) + struct.pack(order + f"{samples}H", *[bits] * samples)
    return head + data + struct.pack(order + "H", len(fields)) + b"".join(fields) + tail


def plainly(image: Image.Image, resolution: int, channels: int) -> np.ndarray:
    """Transparent on white, short side scaled, center cropped: all of it at full size, one step after the other."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    image = image.convert("L" if channels == 1 else "RGB")
    scale = resolution / min(image.size)
    size = tuple(max(resolution, round(side * scale)) for side in image.size)
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - resolution) // 2, (size[1] - resolution) // 2
    cropped = image.crop((left, top, left + resolution, top + resolution))
    return np.asarray(cropped).reshape(resolution, resolution, channels)


def noise(mode: str, size: tuple[int, int]) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), np.uint8)
    return Image.fromarray(values, "RGBA").convert(mode)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_the_right_size_comes_back_exactly(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, channels), dtype=np.uint8)
    np.testing.assert_array_equal(decode_image(encode_png(pixels), 16, channels), pixels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "BMP", "WEBP", "PPM", "ICO"])
def test_ordinary_images_come_out_bit_for_bit_as_pillow_makes_them(mode, kind):
    options = {"lossless": True} if kind == "WEBP" else {"bitmap_format": "png"} if kind == "ICO" else {}
    for size in ((8, 8), (136, 128), (33, 57), (120, 31)):
        try:
            file = encoded(noise(mode, size), kind, **options)
        except (OSError, ValueError):
            assert (mode, kind) in {("PA", "PNG"), ("P", "PPM"), ("LA", "GIF"), ("LA", "BMP"), ("LA", "PPM")}
            continue
        for resolution, channels in ((8, 1), (32, 3), (64, 3), (200, 1)):
            expected = plainly(Image.open(io.BytesIO(file)), resolution, channels)
            np.testing.assert_array_equal(decode_image(file, resolution, channels), expected)


def test_the_short_side_is_scaled_and_the_middle_kept():
    image = Image.new("RGB", (90, 30), "blue")
    image.paste("red", (30, 0, 60, 30))
    pixels = decode_image(encoded(image), 15, 3)
    assert pixels.shape == (15, 15, 3)
    assert np.abs(pixels[:, 3:-3].astype(int) - [255, 0, 0]).max() <= 2


# How the stored rows and columns are shown, by the table of the EXIF standard (0th row / 0th column at ...).
SHOWN = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],
    7: lambda stored: stored.swapaxes(0, 1)[::-1, ::-1],
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}
CARRIERS = [
    *[("JPEG", mode, {"quality": 95}) for mode in ("L", "RGB", "CMYK")],
    ("JPEG", "RGB", {"quality": 95, "progressive": True}),
    ("MPO", "RGB", {"quality": 95}),
    *[("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
    *[("WEBP", mode, {"lossless": True}) for mode in ("RGB", "RGBA")],
    *[("AVIF", mode, {"quality": 95}) for mode in ("L", "RGB", "RGBA")],
    *[("TIFF", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I", "F")],
    *[("TIFF", mode, {"compression": "tiff_lzw"}) for mode in ("L", "RGB")],
]


# 0 and 9 mean nothing, and cannot be written in a compressed TIFF.
@pytest.mark.parametrize(
    ("kind", "mode", "options", "orientation"),
    [
        (*each, number)
        for each in CARRIERS
        for number in (*SHOWN, 0, 9)
        if number in SHOWN or "compression" not in each[2]
    ],
)
def test_images_are_shown_upright(kind, mode, options, orientation):
    # Quarters of four grays, wider than high, so that every orientation shows something else.
    stored = np.kron(np.array([[0, 255, 90], [90, 0, 255]], np.uint8), np.ones((16, 16), np.uint8))
    if mode == "1":
        stored = np.where(stored == 90, 0, stored)
    image = Image.fromarray(stored)
    if mode == "I;16":
        image = Image.fromarray(stored.astype(np.uint16) * 257)
    elif mode == "LAB":
        # Lightness of the grays 0, 90 and 255 in sRGB.
        lightness = np.select([stored == 0, stored == 90], [0, 97], 255)
        image = Image.fromarray(np.stack([lightness, 0 * stored, 0 * stored], -1).astype(np.uint8), "LAB")
        image = Image.merge("LAB", [image.getchannel(0), *[Image.new("L", image.size, 128)] * 2])
    else:
        image = (image.convert("RGB") if mode == "CMYK" else image).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    extra = {"save_all": True, "append_images": [image]} if kind == "MPO" else {}
    file = encoded(image, kind, exif=exif, **options, **extra)
    shown = np.ascontiguousarray(SHOWN.get(orientation, SHOWN[1])(stored))
    expected = plainly(Image.fromarray(shown), 16, 1)
    difference = np.abs(decode_image(file, 16, 1).astype(int) - expected)
    assert np.median(difference) <= 3 and difference.mean() <= 6, (kind, mode, orientation)


def test_exif_that_cannot_be_parsed_leaves_the_image_as_it_is_stored():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for junk in (b"", b"junk", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"):
        file = encoded(Image.fromarray(pixels), "WEBP", lossless=True, exif=junk)
        np.testing.assert_array_equal(decode_image(file, 8, 3), pixels)


def test_orientation_in_the_texts_of_a_png_is_found():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 1), dtype=np.uint8)
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", '<rdf tiff:Orientation="3"/>')
    file = encoded(Image.fromarray(pixels[..., 0]), pnginfo=texts)
    np.testing.assert_array_equal(decode_image(file, 8, 1), pixels[::-1, ::-1])


RAMP = np.linspace(0, 1, 256).reshape(16, 16)
RAMP_8 = np.round(RAMP * 255)


def netpbm(kind: str, values: np.ndarray, most: int) -> bytes:
    """A gray map of 16 rows and columns, as text (P2) or bytes (P5)."""
    header = f"{kind} 16 16 {most}\n".encode()
    if kind == "P2":
        return header + b" ".join(str(value).encode() for value in values.ravel())
    return header + values.astype(">u2" if most > 255 else np.uint8).tobytes()


DEEP = {
    "png 16": png((RAMP * 65535).round().astype(int)[..., None], 16, 0),
    "png 16 interlaced": png((RAMP * 65535).round().astype(int)[..., None], 16, 0, interlaced=True),
    "png 16 rgb": png((RAMP * 65535).round().astype(int)[..., None].repeat(3, 2), 16, 2),
    "png 16 gray, alpha": png(np.stack([RAMP * 65535, RAMP * 0 + 65535], -1).round().astype(int), 16, 4),
    "png 16 rgba": png(np.stack([RAMP * 65535] * 3 + [RAMP * 0 + 65535], -1).round().astype(int), 16, 6),
    "tiff 16": tiff((RAMP * 65535).round().astype(np.uint16)),
    "tiff 16 big-endian": tiff((RAMP * 65535).round().astype(np.uint16), order=">"),
    "tiff 16 white is zero": tiff(((1 - RAMP) * 65535).round().astype(np.uint16), photometric=0),
    "tiff 16 rgb": tiff((RAMP[..., None].repeat(3, 2) * 65535).round().astype(np.uint16), photometric=2),
    "tiff 16 signed": tiff((RAMP * 65535 - 32768).round().astype(np.int16), sample_format=2),
    "tiff 32": tiff((RAMP * (2**32 - 1)).round().astype(np.uint32)),
    "tiff 32 of 16": tiff((RAMP * 65535).round().astype(np.uint32)),
    "tiff 32 of 8": tiff(RAMP_8.astype(np.uint32)),
    "tiff 32 signed": tiff((RAMP * (2**32 - 1) - 2**31).round().astype(np.int32), sample_format=2),
    "tiff float": tiff(RAMP.astype(np.float32), sample_format=3),
    "tiff float, big-endian": tiff(RAMP.astype(np.float32), sample_format=3, order=">"),
    "tiff float, white is zero": tiff((1 - RAMP).astype(np.float32), photometric=0, sample_format=3),
    "tiff float of 8": tiff(RAMP_8.astype(np.float32), sample_format=3),
    "tiff float of 16": tiff((RAMP * 65535).astype(np.float32), sample_format=3),
    "tiff float, around 0": tiff((RAMP * 2 - 1).astype(np.float32), sample_format=3),
    "tiff float, large": tiff((RAMP * 3e30).astype(np.float32), sample_format=3),
    "pfm": encoded(Image.fromarray(RAMP.astype(np.float32)), "PPM"),
    "pgm 16": netpbm("P5", (RAMP * 65535).round().astype(int), 65535),
    "pgm of 1000": netpbm("P5", (RAMP * 1000).round().astype(int), 1000),
    "plain pgm of 1000": netpbm("P2", (RAMP * 1000).round().astype(int), 1000),
    "pgm of 100": netpbm("P5", (RAMP * 100).round().astype(int), 100),
    "jpeg 2000 16": encoded(Image.fromarray((RAMP * 65535).round().astype(np.uint16)), "JPEG2000"),
}


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_ramp_of_more_than_8_bits_keeps_its_levels(name, channels):
    pixels = decode_image(DEEP[name], 16, channels)
    # A gray map of 100 levels is up to a level and a half off.
    assert np.abs(pixels - RAMP_8[..., None]).max() <= (2 if "of 100" in name else 1)


def test_numbers_that_are_none_are_white_and_infinities_extremes():
    values = np.full((8, 8), 0.25, np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    values[1, :2] = 0, 1
    pixels = decode_image(tiff(values, sample_format=3), 8, 1)[..., 0]
    assert pixels[0, :4].tolist() == [255, 255, 0, 64]
    assert pixels[1, :2].tolist() == [0, 255]
    for value in (np.nan, np.inf):
        assert (decode_image(tiff(np.full((8, 8), value, np.float32), sample_format=3), 8, 1) == 255).all()


@pytest.mark.parametrize(("depth", "color"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)])
def test_the_transparent_color_of_a_png_is_white(depth, color):
    samples = 3 if color == 2 else 1
    rows = np.zeros((8, 8, samples), int)
    rows[:4] = 1 << (depth - 1)
    pixels = decode_image(png(rows, depth, color, ((b"tRNS", bytes(2 * samples)),)), 8, 3)
    assert (pixels[4:] == 255).all()
    # The other half is as it is without a transparent color.
    np.testing.assert_array_equal(pixels[:4], decode_image(png(rows, depth, color), 8, 3)[:4])


def test_transparent_pixels_become_white():
    palette = Image.new("P", (8, 8))
    palette.putpalette([0, 0, 0, 10, 20, 30])
    for image, options in (
        (Image.new("RGBA", (8, 8), (0, 0, 0, 0)), {}),
        (Image.new("LA", (8, 8), (0, 0)), {}),
        (palette, {"transparency": 0}),
        (palette, {"transparency": b"\0\xff"}),
    ):
        file = encoded(image, **options)
        assert (decode_image(file, 8, 3) == 255).all()
        assert (decode_image(file, 8, 1) == 255).all()
    half = decode_image(encoded(palette, transparency=b"\x80\xff"), 8, 3)
    assert np.abs(half.astype(int) - 127).max() <= 1


@pytest.mark.parametrize("mode", ["YCbCr", "CMYK", "LAB"])
def test_other_color_spaces_become_rgb(mode):
    # An orange in each space. CIE Lab of sRGB 255, 128, 0 is 67, 43, 74 where white is that of sRGB; TIFF's is warmer.
    orange = Image.new("RGB", (8, 8), (255, 128, 0))
    lab = Image.merge("LAB", [Image.new("L", (8, 8), value) for value in (171, 128 + 43, 128 + 74)])
    file = encoded(lab if mode == "LAB" else orange.convert(mode), "TIFF")
    assert np.abs(decode_image(file, 8, 3).astype(int) - [255, 128, 0]).max() <= (10 if mode == "LAB" else 4)
    assert np.abs(decode_image(file, 8, 1).astype(int) - 151).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "AVIF", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(kind):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue", "green")]
    options = {"lossless": True} if kind == "WEBP" else {}
    file = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert np.abs(decode_image(file, 8, 3).astype(int) - [255, 0, 0]).max() <= 6


@pytest.mark.parametrize("interlaced", [False, True])
def test_interlaced_and_plain_pngs_are_the_same(interlaced):
    rows = np.random.default_rng(0).integers(0, 256, (16, 16, 3))
    np.testing.assert_array_equal(decode_image(png(rows, 8, 2, interlaced=interlaced), 16, 3), rows)


def test_photos_are_decoded_at_a_smaller_scale_and_look_the_same():
    y, x = np.mgrid[:600, :800] / 100
    photo = Image.fromarray((127 + 120 * np.stack([np.sin(x), np.cos(y), np.sin(x * y / 4)], -1)).astype(np.uint8))
    for options in ({}, {"progressive": True}):
        pixels = decode_image(encoded(photo, "JPEG", quality=95, **options), 32, 3).astype(int)
        assert np.abs(pixels - plainly(photo, 32, 3)).max() <= 6


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "F"])
@pytest.mark.parametrize("size", [(100, 70), (71, 300), (64, 64)])
def test_large_images_are_shrunk_in_strips_and_look_the_same(mode, size, monkeypatch):
    y, x = np.mgrid[: size[1], : size[0]] / 100
    gray = (0.5 + np.sin(3 * x) * np.cos(2 * y) / 2).clip(0, 1)
    if mode == "I;16":
        image = Image.fromarray((gray * 65535).astype(np.uint16))
    elif mode == "F":
        image = Image.fromarray(gray.astype(np.float32))
    else:
        image = Image.fromarray((gray * 255).astype(np.uint8)).convert(mode)
    if mode[-1] == "A":
        image.putalpha(Image.fromarray((255 - gray[::-1] * 255).astype(np.uint8)))
    file = encoded(image, "TIFF" if mode == "F" else "PNG")
    small = decode_image(file, 8, 3).astype(int)
    monkeypatch.setattr(images, "_LARGE", 1)
    monkeypatch.setattr(images, "_STRIP", 500)
    difference = np.abs(decode_image(file, 8, 3) - small)
    # Blocks and strips begin elsewhere than the pixels of the result; an image of two colors shows it.
    assert difference.max() <= (60 if mode == "1" else 12) and difference.mean() <= (10 if mode == "1" else 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF"])
@pytest.mark.parametrize("upright", [False, True])
def test_of_long_thin_images_the_middle_is_shown(kind, upright):
    length = 16000 if kind in ("WEBP", "AVIF") else 20001
    values = np.zeros((8, length), np.uint8)
    values[:, length // 2 - 50 : length // 2] = 200
    values[:, length // 2 :] = 100
    image = Image.fromarray(values.T.copy() if upright else values)
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind in ("JPEG", "AVIF") else {}
    pixels = decode_image(encoded(image.convert("RGB") if kind == "WEBP" else image, kind, **options), 64, 1)
    pixels = pixels[..., 0].T if upright else pixels[..., 0]
    assert np.abs(pixels[:, :16].astype(int) - 200).max() <= 25
    assert np.abs(pixels[:, -16:].astype(int) - 100).max() <= 25


_MEASURE = """
import json, resource, sys
from cm3leon_jax.images import UnreadableImage, decode_image
files = [bytes.fromhex(line) for line in sys.stdin.read().split()]
ends = []
for file in files:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        end = str(decode_image(file, 256, 3).shape)
    except UnreadableImage as error:
        end = str(error)
    ends.append([end, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024])
print(json.dumps(ends))
"""


def measured(files: list[bytes]) -> list[tuple[str, int]]:
    """How opening each file ends, and the MiB it took, in a process of its own, which has to print nothing else."""
    result = subprocess.run(
        # A shell between, as a child's peak begins with that of the process that forked it.
        ["/bin/sh", "-c", 'exec "$0" -W default -c "$1"', sys.executable, _MEASURE],
        input="\n".join(file.hex() for file in files),
        capture_output=True,
        text=True,
        check=True,
    )
    assert not result.stderr
    return [tuple(each) for each in json.loads(result.stdout)]


def test_no_header_and_no_shape_costs_much_memory():
    thin = [
        encoded(Image.new(mode, size, 1), kind)
        for kind, mode in (("PNG", "L"), ("TIFF", "F"), ("PNG", "I;16"), ("GIF", "P"), ("JPEG", "L"), ("BMP", "RGB"))
        for size in ((1, 20000), (20000, 1), (1, 60000), (60000, 1))
    ]
    png_header = struct.pack(">II", 60000, 60000)
    small = encoded(Image.new("RGB", (8, 8)))
    gif, bmp = encoded(Image.new("P", (8, 8)), "GIF"), encoded(Image.new("RGB", (8, 8)), "BMP")
    jpeg = encoded(Image.new("L", (8, 8)), "JPEG", progressive=True)
    at = jpeg.index(b"\xff\xc2") + 5
    icon = encoded(Image.new("RGBA", (16, 16)), "ICO")
    inside = icon.index(b"IHDR")
    crc = struct.pack(">I", zlib.crc32(b"IHDR" + png_header + icon[inside + 12 : inside + 17]))
    huge = [
        small[:16]
        + png_header
        + small[24:29]
        + struct.pack(">I", zlib.crc32(b"IHDR" + png_header + small[24:29]))
        + small[33:],
        gif[:6] + struct.pack("<HH", 60000, 60000) + gif[10:],
        bmp[:18] + struct.pack("<ii", 60000, 60000) + bmp[26:],
        jpeg[:at] + struct.pack(">HH", 60000, 60000) + jpeg[at + 4 :],
        tiff(np.zeros((8, 8), np.uint8)).replace(
            struct.pack("<HHII", 256, 4, 1, 8), struct.pack("<HHII", 256, 4, 1, 2**30)
        ),
        b"P6 60000 60000 255\n" + bytes(100),
        icon[: inside + 4] + png_header + icon[inside + 12 : inside + 17] + crc + icon[inside + 21 :],
    ]
    for end, mebibytes in measured(thin):
        assert end == "(256, 256, 3)" and mebibytes < 64
    for end, mebibytes in measured(huge):
        assert end == "more than 134,217,728 pixels" and mebibytes < 64


@pytest.mark.slow
def test_an_image_of_ninety_million_pixels_is_read_without_a_warning():
    ((end, mebibytes),) = measured([encoded(Image.new("1", (9500, 9500), 1))])
    assert end == "(256, 256, 3)" and mebibytes < 300


def test_texts_and_profiles_of_any_size_do_not_matter():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
    large, plain = zlib.compress(bytes(8 << 20)), bytes(8 << 20)
    for chunks in (
        ((b"iCCP", b"name\0\0" + large),),
        ((b"zTXt", b"Comment\0\0" + large),) * 20,
        ((b"iTXt", b"Comment\0\1\0\0\0" + large),),
        ((b"tEXt", b"workflow\0" + plain),) * 10,
        ((b"tEXt", b"no keyword"),),
    ):
        np.testing.assert_array_equal(decode_image(png(pixels, 8, 2, chunks), 8, 3), pixels)
    photo = encoded(Image.new("RGB", (8, 8), "red"), "JPEG", icc_profile=bytes(4 << 20))
    assert decode_image(photo, 8, 3)[0, 0, 0] > 245


@pytest.mark.parametrize("damage", [b"", b"no image", encoded(Image.new("RGB", (64, 64), "red"))[:60]])
def test_an_unreadable_image_says_so(damage):
    with pytest.raises(UnreadableImage):
        decode_image(damage, 8, 3)


@pytest.mark.parametrize("kind", ["EPS", "TGA", "PCX", "DDS", "SGI", "QOI", "IM", "ICNS", "XBM", "PDF"])
def test_only_the_decoders_of_the_list_are_used(kind):
    file = encoded(Image.new("1" if kind == "XBM" else "RGB", (16, 16)), kind)
    with pytest.raises(UnreadableImage, match="none of PNG, JPEG"):
        decode_image(file, 8, 3)


def test_suffixes_are_those_of_the_decoders():
    registered = Image.registered_extensions()
    decoders = {registered[suffix] for suffix in IMAGE_SUFFIXES}
    assert decoders <= {"PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "ICO"}
    assert set(registered) & set(UNSUPPORTED_IMAGE_SUFFIXES) and not set(IMAGE_SUFFIXES) & set(
        UNSUPPORTED_IMAGE_SUFFIXES
    )
    for suffix, kind in registered.items():
        # None of a decoder's suffixes is forgotten.
        assert suffix in IMAGE_SUFFIXES or kind not in decoders, suffix
    for suffix in (*IMAGE_SUFFIXES, *UNSUPPORTED_IMAGE_SUFFIXES):
        assert suffix.startswith(".") and suffix == suffix.lower()


_VALID = {
    **{
        kind: encoded(noise(mode, (24, 16)), kind)
        for kind, mode in (
            *(("PNG", "RGBA"), ("JPEG", "RGB"), ("WEBP", "RGB"), ("AVIF", "RGB"), ("GIF", "P"), ("BMP", "RGB")),
            *(("TIFF", "RGB"), ("JPEG2000", "RGB"), ("PPM", "RGB"), ("ICO", "RGBA")),
        )
    },
    "TIFF LZW": encoded(noise("RGB", (24, 16)), "TIFF", compression="tiff_lzw"),
    "TIFF float": DEEP["tiff float"],
    "PNG 16": DEEP["png 16 interlaced"],
    "PNG palette": encoded(noise("P", (24, 16)), transparency=b"\0\x80"),
    "plain PGM": DEEP["plain pgm of 1000"],
    "PFM": DEEP["pfm"],
    "JPEG turned": encoded(
        noise("RGB", (24, 16)), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0" + bytes(4)
    ),
}


@pytest.mark.parametrize("kind", _VALID)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_damaged_files_are_unreadable_or_pixels(kind, data):
    file = bytearray(_VALID[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(file) - 1)))
        step = data.draw(st.sampled_from(["flip", "replace", "cut", "insert", "end"]))
        if step == "flip" and file:
            file[at] ^= 1 << data.draw(st.integers(0, 7))
        elif step == "replace":
            file[at : at + 4] = data.draw(
                st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\1\0"])
            )
        elif step == "cut":
            del file[at : at + data.draw(st.integers(1, 64))]
        elif step == "insert":
            file[at:at] = data.draw(st.binary(min_size=1, max_size=16))
        else:
            del file[at:]
    ends = []
    for _ in range(2):
        try:
            ends.append(decode_image(bytes(file), 8, 3).shape)
        except UnreadableImage as error:
            ends.append(str(error))
    assert ends[0] == ends[1]
    if isinstance(ends[0], str):
        # One line that can be printed, without an address in memory.
        assert ends[0].isprintable() and " at 0x" not in ends[0]
    else:
        assert ends[0] == (8, 8, 3)
