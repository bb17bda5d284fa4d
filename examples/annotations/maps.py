"""Maps of kgeography: X.kgm names the color of each region in X.png, so that every region's pixels are known."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image
from scipy import ndimage

from cm3leon_jax.errors import UserError
from examples.annotations.colors import color_name

# Views are at most so large; of larger windows every second, third .. pixel is taken, which makes no new colors.
_MOST_PIXELS = 64
_LEAST_WINDOW = 40
# A region is part of a view from this fraction of its pixels on, and hardly to be seen below the other.
LEAST_VISIBLE = 0.02
_HARDLY_VISIBLE = 0.002
# Files of one country begin with the same word, spain.kgm and spain_provinces.kgm, but for these.
_SAME_COUNTRY = {"italyprovince": "italy", "republic_of_ireland": "ireland"}


@dataclass(frozen=True)
class Region:
    """A division of a map; its capital is empty where the package has none."""

    name: str
    color: tuple[int, int, int]
    capital: str = ""


@dataclass(frozen=True)
class RegionMap:
    """A map: `codes` has the color of each pixel as one number."""

    # The name of its files, and what the package calls it and its divisions.
    key: str
    name: str
    divisions: str
    codes: Int[np.ndarray, "H W"]
    regions: tuple[Region, ...]

    @property
    def country(self) -> str:
        """What all maps of one country have in common."""
        return _SAME_COUNTRY.get(self.key) or re.split("[-_]", self.key)[0]


@dataclass(frozen=True)
class Visible:
    """A region in a view."""

    region: Region
    mask: Bool[np.ndarray, "S S"]

    @cached_property
    def color(self) -> str | None:
        """The name of its color, if it has one."""
        return color_name(self.region.color)

    @cached_property
    def area(self) -> float:
        """The fraction of the view that it is."""
        return float(self.mask.mean())

    @cached_property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom in pixels, the last two exclusive."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    @cached_property
    def center(self) -> tuple[float, float]:
        """The mean of its pixels, right and down, as fractions of the view's side."""
        down, right = np.nonzero(self.mask)
        return float(right.mean() + 0.5) / len(self.mask), float(down.mean() + 0.5) / len(self.mask)


@dataclass(frozen=True)
class View:
    """A square part of a map around one of its regions, with the regions in it, the largest first."""

    map: RegionMap
    about: Region
    codes: Int[np.ndarray, "S S"]
    regions: tuple[Visible, ...]
    # Whether every region is either among `regions` or hardly to be seen, so that they can be counted.
    is_complete: bool

    @property
    def key(self) -> str:
        return f"{self.map.key}/{self.about.name}"

    @property
    def side(self) -> int:
        return len(self.codes)

    @cached_property
    def pixels(self) -> UInt8[np.ndarray, "S S 3"]:
        return np.stack([self.codes >> shift & 255 for shift in (16, 8, 0)], axis=-1).astype(np.uint8)

    @cached_property
    def named(self) -> list[Visible]:
        """The regions whose color has a name."""
        return [each for each in self.regions if each.color is not None]

    def unique(self, least_area: float = 0.0) -> list[Visible]:
        """The regions whose color is that of no other region, and of no pixel that belongs to none."""
        colors = [each.color for each in self.named]
        return [
            each
            for each in self.named
            if each.area >= least_area and colors.count(each.color) == 1 and each.color not in self._other_colors
        ]

    @cached_property
    def _other_colors(self) -> set[str | None]:
        """The names of the colors of what is no region of this view: water, other countries, slivers."""
        inside = np.any([each.mask for each in self.regions], axis=0)
        return {color_name(_color_of(int(code))) for code in np.unique(self.codes[~inside])}

    def shows(self, color: str) -> bool | None:
        """Whether a color is in the view; None where that is a matter of opinion."""
        if any(each.color == color for each in self.regions):
            return True
        is_certain = len(self.named) == len(self.regions) and not {color, None} & self._other_colors
        return False if is_certain else None


def read_maps(folder: Path) -> Iterator[RegionMap]:
    """The maps of the package.

    Raises:
      UserError: if there are none, or one is damaged.
    """
    files = sorted(folder.glob("*.kgm"))
    if not files:
        raise UserError(f"{folder} has no .kgm file: give the folder of kgeography-data")
    for file in files:
        yield read_map(file)


def read_map(file: Path) -> RegionMap:
    """A map of the package. Raises a `UserError` if it is damaged."""
    try:
        root = ElementTree.fromstring(file.read_bytes())
        with Image.open(io.BytesIO((file.parent / _text(root, "mapFile")).read_bytes())) as image:
            pixels = np.asarray(image.convert("RGB")).astype(np.int32)
        regions = [_region(each) for each in root.iter("division") if _text(each, "ignore") != "yes"]
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{file} is no map of kgeography that can be read ({error})") from None
    codes = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    return RegionMap(file.stem, _text(root, "name"), _text(root, "divisionsName"), codes, tuple(regions))


def _region(division: ElementTree.Element) -> Region:
    red, green, blue = (int(_text(division, f"color/{name}")) for name in ("red", "green", "blue"))
    return Region(_text(division, "name"), (red, green, blue), _text(division, "capital"))


def _text(element: ElementTree.Element, name: str) -> str:
    return " ".join((element.findtext(name) or "").split())


def views(map: RegionMap, margin: float) -> Iterator[View]:
    """A view around each region that is well visible in it: a window of `margin` times its longer side."""
    known, indices = np.unique(map.codes, return_inverse=True)
    # The rows and columns of each color; zero is no label.
    slices = ndimage.find_objects(indices.reshape(map.codes.shape) + 1)
    bounds = dict(zip(known.tolist(), slices, strict=True))
    for about in map.regions:
        if _code(about) not in bounds:
            continue
        spans = [(int(each.start), int(each.stop)) for each in bounds[_code(about)]]
        longest = max(stop - start for start, stop in spans)
        side = min(max(round(margin * longest), _LEAST_WINDOW), *map.codes.shape)
        top, left = (
            min(max((start + stop - side) // 2, 0), size - side)
            for (start, stop), size in zip(spans, map.codes.shape, strict=True)
        )
        view = _view(map, about, map.codes[top : top + side, left : left + side])
        if any(each.region == about for each in view.regions):
            yield view


def _view(map: RegionMap, about: Region, window: Int[np.ndarray, "S S"]) -> View:
    taken = np.arange(0, len(window), -(-len(window) // _MOST_PIXELS))
    codes = window[np.ix_(taken, taken)]
    visible = [Visible(each, mask) for each in map.regions if (mask := codes == _code(each)).any()]
    regions = sorted((each for each in visible if each.area >= LEAST_VISIBLE), key=lambda each: -each.area)
    is_complete = not any(_HARDLY_VISIBLE < each.area < LEAST_VISIBLE for each in visible)
    return View(map, about, codes, tuple(regions), is_complete)


def _code(region: Region) -> int:
    red, green, blue = region.color
    return red << 16 | green << 8 | blue


def _color_of(code: int) -> Sequence[int]:
    return code >> 16, code >> 8 & 255, code & 255


def rectangles(mask: Bool[np.ndarray, "S S"]) -> list[list[int]]:
    """A mask as polygons that cover its pixels exactly: rectangles, [left, top, right, top, ..] of each."""
    found: list[list[int]] = []
    runs: list[list[tuple[int, int]]] = [[] for _ in range(len(mask) + 1)]
    # Where a row begins or ceases to be in the mask, in turn.
    rows, columns = np.nonzero(np.diff(np.pad(mask, ((0, 0), (1, 1))), axis=1))
    for row, left, right in zip(rows[::2].tolist(), columns[::2].tolist(), columns[1::2].tolist(), strict=True):
        runs[row].append((left, right))
    # Runs of the row above, by their ends, with the row they began in.
    above: dict[tuple[int, int], int] = {}
    for row, of_row in enumerate(runs):
        for (left, right), top in above.items():
            if (left, right) not in of_row:
                found.append([left, top, right, top, right, row, left, row])
        above = {run: above.get(run, row) for run in of_row}
    return found
