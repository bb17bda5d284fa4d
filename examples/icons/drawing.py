"""Icons of the npm package @iconify/json: what is drawn of them, and their names, sets and licenses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from cm3leon_jax.errors import UserError
from cm3leon_jax.images import UnreadableImage, decode_image

SIDE = 32

# Licenses by their SPDX names: what asks that derived works be under the same license, or not be sold, is left out.
_RESTRICTED = ("SA", "GPL", "NC", "AGPL", "LGPL")
_LOGOS = "Logos"
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


@dataclass(frozen=True)
class Icon:
    """An icon that is not drawn yet."""

    set_name: str
    # Of its set, to be read: "Material Symbols".
    set_title: str
    license: str
    name: str
    svg: str

    @property
    def key(self) -> str:
        return f"{self.set_name}:{self.name}"

    @property
    def caption(self) -> str:
        """Its name with spaces, and its set, which says the style."""
        return f"{self.name.replace('-', ' ')}, {self.set_title}"


def icons(package: Path, is_colored: bool = False) -> Iterator[Icon]:
    """The icons of the free sets of a package, in the order of their keys; of one color, or else of several.

    Raises:
      UserError: if the folder is not that of the package.
    """
    files = sorted((package / "json").glob("*.json"))
    if not files:
        raise UserError(f"{package} has no json/*.json: unpack @iconify/json and name its folder package/")
    for file in files:
        loaded: dict[str, Any] = json.loads(file.read_text())
        info = loaded["info"]
        license = info["license"].get("spdx", info["license"]["title"])
        if not is_free(license) or info.get("category") == _LOGOS or bool(info.get("palette")) != is_colored:
            continue
        for name, icon in sorted(loaded["icons"].items()):
            if not icon.get("hidden"):
                yield Icon(loaded["prefix"], info["name"], license, name, _svg(icon, loaded))


def is_free(license: str) -> bool:
    """Whether a license lets images be used by anyone for anything."""
    words = license.upper().replace(" ", "-").split("-")
    return not any(word in _RESTRICTED for word in words)


def _svg(icon: dict[str, Any], of_set: dict[str, Any]) -> str:
    """The icon as a file, in the middle of a square; black where it has no color of its own."""
    left, top = (icon.get(name, of_set.get(name, 0)) for name in ("left", "top"))
    width, height = (icon.get(name, of_set.get(name, 16)) for name in ("width", "height"))
    side = max(width, height)
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    head = f'xmlns="{_SVG}" xmlns:xlink="{_XLINK}" viewBox="{box}" width="{SIDE}" height="{SIDE}" color="#000"'
    return f"<svg {head}>{icon['body']}</svg>"


def draw(icon: Icon, channels: int = 1) -> UInt8[np.ndarray, "32 32 C"] | None:
    """The pixels of an icon on white; None where nothing is to be seen, or it cannot be drawn.

    Raises:
      UserError: if the library that draws is not installed.
    """
    try:
        import resvg_py
    except ModuleNotFoundError:
        raise UserError("drawing icons needs resvg: pip install resvg-py==0.5.0") from None
    try:
        png = resvg_py.svg_to_bytes(svg_string=icon.svg, background="white", skip_system_fonts=True)
        pixels = decode_image(bytes(png), SIDE, channels)
    except (ValueError, UnreadableImage):
        return None
    return None if np.ptp(pixels) == 0 else pixels


def likeness_key(pixels: UInt8[np.ndarray, "32 32 C"]) -> bytes:
    """120 bits that near copies share: which of 8 by 8 areas are above the median, and which lighter than the next."""
    areas = pixels.mean(-1).reshape(8, SIDE // 8, 8, SIDE // 8).mean((1, 3))
    bits = np.concatenate([(areas > np.median(areas)).ravel(), (np.diff(areas, axis=1) > 0).ravel()])
    return np.packbits(bits).tobytes()
