"""Decodes image files of any format, mode, orientation and size into square pixels, at a bounded cost."""

from __future__ import annotations

import io
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from cm3leon_jax.squaring import CENTER_CROP, Squaring

# The decoders to try, in this order, with the suffixes of their files. Other decoders of Pillow run programs (EPS),
# call the operating system (WMF), or accept bytes of any kind (TGA).
_DECODERS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "AVIF": (".avif", ".avifs"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "PPM": (".pbm", ".pgm", ".ppm", ".pnm", ".pfm"),
    "ICO": (".ico",),
}
IMAGE_SUFFIXES = tuple(suffix for suffixes in _DECODERS.values() for suffix in suffixes)

# Files that a person would take for images and that are not read.
UNSUPPORTED_IMAGE_SUFFIXES = (
    *(".heic", ".heif", ".hif", ".jxl", ".jxr"),
    *(".svg", ".svgz", ".eps", ".ai", ".wmf", ".emf"),
    *(".psd", ".psb", ".xcf", ".kra"),
    *(".tga", ".dib", ".pcx", ".dds", ".exr", ".hdr", ".qoi", ".sgi", ".icns", ".cur", ".xbm", ".xpm", ".djvu"),
    *(".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".orf", ".raf", ".rw2", ".pef", ".srw"),
)

# Images of more pixels are not decoded: 2**27 are half a GiB for most decoders, 2 GiB and more for WebP and JPEG 2000.
MAX_PIXELS = 2**27

# Images of more pixels are decoded one at a time, and shrunk while they are converted to 8 bits.
_LARGE = 2**24
_large_images = threading.Lock()

# Pixels to convert to 8 bits at a time.
_STRIP = 2**22

# Cheap ways to shrink (by powers of two in JPEG's decoder, by means of blocks) leave this many times the resolution to
# the Lanczos filter, whose result then differs from that of the whole image only by rounding.
_REDUCING_GAP = 3

# Longer images that are cropped are so to this many times the short side before anything is scaled.
_MAX_ASPECT_RATIO = 4

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Tags of TIFF, and their values.
_BITS_PER_SAMPLE, _PHOTOMETRIC_INTERPRETATION, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _UNSIGNED, _SIGNED = 0, 1, 2

# UnreadableImage reports what is odd about a file; Pillow would print it as well.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


class UnreadableImage(Exception):
    """The bytes of an image segment cannot be decoded; the text says why, the same in every run."""


class _ValueRange(NamedTuple):
    """The values for black, white and transparent in a one-channel image of more than 8 bits."""

    black: float
    white: float
    transparent: float | None
    # Whether Pillow takes its unsigned 32 bits for signed.
    unsigned: bool


def decode_image(
    encoded: bytes, resolution: int, channels: int, squaring: Squaring = CENTER_CROP
) -> UInt8[np.ndarray, "R R C"]:
    """Decodes an image file, turns it upright, scales it, and crops or pads it to a square.

    Transparent pixels show the background. Of an animation the first frame is taken. Values of 16 bits are scaled from
    their full range; values of 32 bits, integers or floats, from the smallest of 0..1, 0..255 and 0..65535 that holds
    all of them, or else from their own minimum and maximum; NaN counts as transparent.

    Raises `UnreadableImage` for damaged bytes, an unsupported format, or more than `MAX_PIXELS` pixels.
    """
    try:
        with Image.open(io.BytesIO(_without_metadata(encoded)), formats=tuple(_DECODERS)) as file:
            _check_size(file)
            with _large_images if file.width * file.height > _LARGE else nullcontext():
                return _square(file, resolution, channels, squaring)
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(f"none of {', '.join(_DECODERS)}, or damaged") from None
    except Image.DecompressionBombError:
        raise UnreadableImage(_TOO_LARGE) from None
    # On damaged bytes decoders raise exceptions of any type.
    except Exception as error:
        raise UnreadableImage(_reason(error)) from error


def page_of(encoded: bytes, page: int) -> bytes:
    """A page of a TIFF, as a TIFF of its own with the same pixels; `UnreadableImage` where it cannot be read."""
    try:
        with Image.open(io.BytesIO(encoded), formats=("TIFF",)) as file:
            file.seek(page)
            _check_size(file)
            buffer = io.BytesIO()
            (file.convert("RGB") if file.mode == "YCbCr" else file).save(buffer, "TIFF", compression="raw")
            return buffer.getvalue()
    except UnreadableImage:
        raise
    except Exception as error:
        raise UnreadableImage(_reason(error)) from None


def num_pages(encoded: bytes) -> int:
    """How many pages a TIFF has; `UnreadableImage` where it cannot be read."""
    try:
        with Image.open(io.BytesIO(encoded), formats=("TIFF",)) as file:
            return int(getattr(file, "n_frames", 1))
    except Exception as error:
        raise UnreadableImage(_reason(error)) from None


def image_size(encoded: bytes) -> tuple[int, int]:
    """The width and height of an image file as it is stored, read from its header; may raise `UnreadableImage`."""
    try:
        with Image.open(io.BytesIO(_without_metadata(encoded)), formats=tuple(_DECODERS)) as file:
            return file.size
    except Exception as error:
        raise UnreadableImage(_reason(error)) from None


def encode_png(pixels: UInt8[np.ndarray, "R1 R2 C"]) -> bytes:
    """Encodes one image of one (gray) or three channels as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, format="PNG")
    return buffer.getvalue()


_TOO_LARGE = f"more than {MAX_PIXELS:,} pixels"


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImage(_TOO_LARGE)


def _reason(error: Exception) -> str:
    """The message of a decoder as one short printable line without memory addresses."""
    text = re.sub(r" ?<[^>]*>| at 0x[0-9a-f]+", "", str(error))
    text = "".join(character if character.isprintable() else " " for character in text)[:200].strip()
    return f"cannot be decoded: {text or type(error).__name__}"


def _without_metadata(encoded: bytes) -> bytes:
    """Removes the color profile and texts of a PNG: Pillow refuses an image with large ones.

    The texts with EXIF or XMP stay, since they hold the orientation.
    """
    signature = b"\x89PNG\r\n\x1a\n"
    if not encoded.startswith(signature):
        return encoded
    kept, at = [signature], len(signature)
    while at < len(encoded):
        end = at + 12 + int.from_bytes(encoded[at : at + 4], "big")
        kind, keyword = encoded[at + 4 : at + 8], encoded[at + 8 : at + 88].partition(b"\0")[0]
        is_text = kind in (b"tEXt", b"zTXt", b"iTXt")
        if kind != b"iCCP" and not (is_text and keyword not in (b"Raw profile type exif", b"XML:com.adobe.xmp")):
            kept.append(encoded[at:end])
        at = end
    return b"".join(kept)


def _square(file: Image.Image, resolution: int, channels: int, squaring: Squaring) -> UInt8[np.ndarray, "R R C"]:
    # Which four pixels are the nearest ones depends on how many there are.
    if squaring.filter != "bilinear":
        file.draft(None, (_REDUCING_GAP * resolution,) * 2)
    _scale_transparency(file)
    file.load()
    _check_size(file)
    upright = _UPRIGHT.get(_orientation(file))
    # Before a transposition, whose result has no tags.
    values = _value_range(file)
    image = _flat(file if upright is None else file.transpose(upright), values, resolution, channels, squaring)
    image, left, top = _scaled(image, resolution, squaring)
    if left < 0 or top < 0:
        padded = Image.new(image.mode, (resolution, resolution), squaring.gray if channels == 1 else squaring.color)
        padded.paste(image, (-left, -top))
        image = padded
    elif image.size != (resolution, resolution):
        image = image.crop((left, top, left + resolution, top + resolution))
    pixels = np.asarray(image)
    return pixels.reshape(resolution, resolution, channels)


def _scaled(image: Image.Image, resolution: int, squaring: Squaring) -> tuple[Image.Image, int, int]:
    """An image at the size of its frame, and the left and top of the square in it."""
    decides = min if squaring.method == "crop" else max
    while squaring.filter == "bicubic" and decides(image.size) >= 2 * resolution and min(image.size) > 1:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    width, height, left, top = squaring.frame(*image.size, resolution)
    if image.size == (width, height):
        return image, left, top
    if squaring.filter == "bilinear":
        # What `resize` calls bilinear is a mean over all pixels.
        scales = (image.width / width, 0, 0, 0, image.height / height, 0)
        return image.transform((width, height), Image.Transform.AFFINE, scales, Image.Resampling.BILINEAR), left, top
    filters = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}
    return image.resize((width, height), filters[squaring.filter]), left, top


def _orientation(file: Image.Image) -> int:
    # Cameras and editors write damaged EXIF into images that are fine.
    try:
        return int(file.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _scale_transparency(file: Image.Image) -> None:
    """Converts the transparent color of a PNG to 8 bits, as the decoder converts the pixels."""
    value, tiles = file.info.get("transparency"), getattr(file, "tile", None)
    if file.format != "PNG" or value is None or not tiles:
        return
    raw_mode = tiles[0][3]
    if raw_mode in ("L;2", "L;4"):
        file.info["transparency"] = value * 255 // (2 ** int(raw_mode[-1]) - 1)
    elif raw_mode == "RGB;16B":
        file.info["transparency"] = tuple(part >> 8 for part in value)


def _value_range(file: Image.Image) -> _ValueRange | None:
    """The range of an image of more than 8 bits per channel; None for other images."""
    if not (file.mode.startswith("I;16") or file.mode in ("I", "F")):
        return None
    tags = getattr(file, "tag_v2", {})
    bits, sample_format = tags.get(_BITS_PER_SAMPLE, (16,))[0], tags.get(_SAMPLE_FORMAT, (_SIGNED,))[0]
    unsigned = file.mode == "I" and bits == 32 and sample_format == _UNSIGNED
    if file.mode.startswith("I;16"):
        low, high = 0.0, 2.0**bits - 1
    elif file.format == "PPM" and file.mode == "I":
        # Pillow scales to this, whatever maximum the header gives.
        low, high = 0.0, 65535.0
    else:
        low, high = _extrema(file, unsigned)
        usual = [top for top in (1.0, 255.0, 65535.0) if low >= 0 and high <= top]
        low, high = (0.0, usual[0]) if usual else (low, high)
    black, white = (high, low) if tags.get(_PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO else (low, high)
    return _ValueRange(black, white, file.info.get("transparency"), unsigned)


def _extrema(image: Image.Image, unsigned: bool) -> tuple[float, float]:
    low, high = np.inf, -np.inf
    for strip in _strips(image, (0, 0, *image.size), 1):
        numbers = _numbers(strip, unsigned)
        numbers = numbers[np.isfinite(numbers)]
        if numbers.size:
            low, high = min(low, float(numbers.min())), max(high, float(numbers.max()))
    return (low, high) if low <= high else (0.0, 0.0)


def _strips(image: Image.Image, box: tuple[int, int, int, int], factor: int) -> Iterator[Image.Image]:
    """Cuts a part of an image from the top into strips of a multiple of `factor` rows; the last may have fewer."""
    left, top, right, bottom = box
    rows = max(1, _STRIP // (right - left) // factor) * factor
    for y in range(top, bottom, rows):
        yield image.crop((left, y, right, min(y + rows, bottom)))


def _flat(
    image: Image.Image, values: _ValueRange | None, resolution: int, channels: int, squaring: Squaring
) -> Image.Image:
    """Converts what is needed of an image to gray or RGB of 8 bits without transparency, shrinking a large one."""
    short, long = min(image.size), max(image.size)
    scaled, most = (short, _MAX_ASPECT_RATIO * short) if squaring.method == "crop" else (long, long)
    # A pixel of the short side stays, however long the other is.
    factor = max(1, min(short, scaled // (_REDUCING_GAP * resolution))) if image.width * image.height > _LARGE else 1
    left, right = _middle(image.width, most, factor)
    top, bottom = _middle(image.height, most, factor)
    mode = "L" if channels == 1 else "RGB"
    if factor == 1 and (left, top, right, bottom) == (0, 0, *image.size) and _is_flat(image, values, mode):
        return image
    flat = Image.new(mode, ((right - left) // factor, (bottom - top) // factor))
    y = 0
    for strip in _strips(image, (left, top, right, bottom), factor):
        strip = _opaque(strip, values, squaring).convert(flat.mode).reduce(factor)
        flat.paste(strip, (0, y))
        y += strip.height
    return flat


def _is_flat(image: Image.Image, values: _ValueRange | None, mode: str) -> bool:
    """Whether an image is what `_flat` makes of it already."""
    return values is None and image.mode == mode and not image.has_transparency_data


def _middle(length: int, most: int, factor: int) -> tuple[int, int]:
    """Start and stop of the middle of a side: at most `most` pixels, in whole blocks of `factor`."""
    kept = min(length, most)
    # The same number is cut off at both ends.
    kept -= (length - kept) % 2
    kept -= kept % factor
    start = (length - kept) // 2
    return start, start + kept


def _opaque(image: Image.Image, values: _ValueRange | None, squaring: Squaring) -> Image.Image:
    """An image of 8 bits per channel, on the background."""
    if values is not None:
        pixels, is_transparent = _to_8_bits(_numbers(image, values.unsigned), values)
        gray = Image.fromarray(pixels)
        if not is_transparent.any():
            return gray
        return Image.composite(
            Image.new("RGB", gray.size, squaring.color), gray.convert("RGB"), Image.fromarray(is_transparent)
        )
    if image.has_transparency_data:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, squaring.color), rgba)
    if image.mode == "LAB":
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
        assert converted is not None
        return converted
    return image


def _numbers(image: Image.Image, unsigned: bool) -> np.ndarray:
    numbers = np.asarray(image)
    return (numbers.view(np.uint32) if unsigned else numbers).astype(np.float64)


def _to_8_bits(
    numbers: np.ndarray, values: _ValueRange
) -> tuple[UInt8[np.ndarray, "height width"], Bool[np.ndarray, "height width"]]:
    """Numbers as 8 bits, and which of them are transparent."""
    span = values.white - values.black
    # An image of a single value is black.
    scaled = (numbers - values.black) / span * 255 if span else np.zeros_like(numbers)
    is_transparent = np.isnan(numbers)
    if values.transparent is not None:
        is_transparent |= numbers == values.transparent
    scaled[is_transparent] = 0
    return np.clip(np.round(scaled), 0, 255).astype(np.uint8), is_transparent
