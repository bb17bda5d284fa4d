"""Tiny packages in the forms of the true ones, made here: maps, bundles of activities, and emoji."""

from __future__ import annotations

import csv
import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from examples.annotations.emoji_images import TONES
from examples.annotations.published import is_held_out

# Names of maps and emoji on both sides of the split (`published.is_held_out`).
TRAIN_MAP, HELD_OUT_MAP = "chile", "italy"
COLORS = {"Upper": (255, 0, 0), "Left": (0, 0, 255), "Right": (0, 255, 0), "Odd": (200, 120, 140)}
_POINTS = {"": "", "1": "1F3FB", "2": "1F3FC", "3": "1F3FD", "4": "1F3FE", "5": "1F3FF"}
_FIELDS = ("hexcode", "group", "annotation", "tags", "skintone", "skintone_combination", "skintone_base_hexcode")


def encoded(pixels: np.ndarray, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def plain(color: tuple[int, ...], width: int = 64, height: int = 64) -> np.ndarray:
    return np.full((height, width, len(color)), color, np.uint8)


def svg(color: str, side: int = 72) -> bytes:
    """What the stand-in of the renderer takes: a square of a color."""
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side} {side}"><rect fill="{color}"/></svg>'.encode()


def rendered(content: bytes, width: int, height: int) -> Image.Image:
    """Stands in for the renderer of vector graphics."""
    color = content.decode().partition('fill="')[2].partition('"')[0]
    return Image.new("RGBA", (width, height), color)


def write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def map_pixels(side: int = 80) -> np.ndarray:
    """Red above; blue and, twice as wide, green below; a border between them, and a small region of an odd color."""
    pixels = plain((0, 0, 0), side, side)
    pixels[: side // 2 - 1] = COLORS["Upper"]
    pixels[side // 2 + 1 :, : side // 3] = COLORS["Left"]
    pixels[side // 2 + 1 :, side // 3 + 1 :] = COLORS["Right"]
    pixels[-16:, -16:] = COLORS["Odd"]
    return pixels


def write_map(folder: Path, name: str, divisions: Mapping[str, tuple[int, int, int]] | None = None) -> None:
    border = "<division><name>Border</name><ignore>yes</ignore>" + _color((0, 0, 0)) + "</division>"
    found = [
        f"<division><name>{each}</name><capital>{each} City</capital><flag>{each}.png</flag>{_color(color)}</division>"
        for each, color in (divisions or COLORS).items()
    ]
    text = f"<map><mapFile>{name}.png</mapFile><name>{name.title()}</name><divisionsName>Provinces</divisionsName>"
    write(folder / f"{name}.kgm", (text + border + "".join(found) + "</map>").encode())
    write(folder / f"{name}.png", encoded(map_pixels()))


def _color(color: tuple[int, int, int]) -> str:
    red, green, blue = color
    return f"<color><red>{red}</red><green>{green}</green><blue>{blue}</blue></color>"


def bundle(files: Mapping[str, bytes], version: int = 3) -> bytes:
    """A resource bundle of Qt of files by their paths; every other one is compressed."""
    children: dict[tuple[str, ...], list[tuple[str, ...]]] = {(): []}
    for path in files:
        parts = tuple(path.split("/"))
        for length in range(1, len(parts) + 1):
            children.setdefault(parts[:length], [])
            if parts[:length] not in children[parts[: length - 1]]:
                children[parts[: length - 1]].append(parts[:length])
    order: list[tuple[str, ...]] = [()]
    for each in order:
        order += children[each]
    names, data, tree = b"", b"", b""
    for each in order:
        offset, name = len(names), each[-1] if each else ""
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        content = files.get("/".join(each))
        if content is None:
            tree += struct.pack(">IHII", offset, 2, len(children[each]), order.index((children[each] or [()])[0]))
        else:
            is_compressed = len(data) % 2 == 0
            stored = struct.pack(">I", len(content)) + zlib.compress(content) if is_compressed else content
            tree += struct.pack(">IHHHI", offset, int(is_compressed), 0, 0, len(data))
            data += struct.pack(">I", len(stored)) + stored
        tree += b"" if version == 1 else struct.pack(">Q", 0)
    header = 20 + (4 if version == 3 else 0)
    starts = (header, header + len(tree), header + len(tree) + len(data))
    rest = struct.pack(">I", 0) if version == 3 else b""
    return b"qres" + struct.pack(">4I", version, *starts) + rest + tree + data + names


def _board(title: str, background: str, parts: Mapping[str, tuple[float, float]]) -> bytes:
    entries = [f'{{ "pixmapfile" : "image/{background}", "type" : "SHAPE_BACKGROUND_IMAGE" }}']
    entries += [f'{{ "pixmapfile" : "image/{name}", "x" : "{x}", "y" : "{y}" }}' for name, (x, y) in parts.items()]
    body = ",".join(entries)
    return f'QtObject {{\n property string instruction: qsTr("{title}")\n property var levels: [{body}] }}'.encode()


def _explored(activity: str, titles: tuple[str, ...]) -> dict[str, bytes]:
    prefix = f"gcompris/src/activities/{activity}"
    entries = [
        f'{{ "title": qsTr("{each}"), "text": qsTr("The {each} is \\"well\\" known." + " So it is."), '
        f'"image2": "qrc:/{prefix}/resource/{each}.webp", "text2": qsTr("?"), "x": 0.3, "y": 0.5 }}'
        for each in titles
    ]
    files = {f"{prefix}/resource/board/board1.qml": ("property var tab: [" + ",".join(entries) + "]").encode()}
    for number, each in enumerate(titles):
        files[f"{prefix}/resource/{each}.webp"] = encoded(plain((40 * number, 90, 60), 90, 60), "WEBP")
    return files


def painting(width: int = 120, height: int = 80) -> np.ndarray:
    """An image whose pixels differ from each other."""
    down, across = np.mgrid[:height, :width]
    return np.stack([2 * across, 3 * down, (across + down) % 256], -1).astype(np.uint8)


def write_bundles(folder: Path) -> None:
    prefix = "gcompris/src/activities"
    scenes = ["#88ccff", "#00aa00", "#3366ff", "#aa8800"]
    objects = "{x: 120, y:170, r: 0.5, w: 1, h: 2}, {x: 600, y:850, r: 1, w: 2, h: 2}"
    levels = ",".join(f'{{ "coordinates": [{objects}] }}' for _ in scenes)
    hunter = {f"{prefix}/photo_hunter/photo_hunter.js": f"var dataset = [{levels}]\nvar numberOfLevel = 1".encode()}
    for number, color in enumerate(scenes, start=1):
        hunter[f"{prefix}/photo_hunter/resource/photo{number}.svg"] = svg(color)
        for index, object_color in ((1, "#ff0000"), (2, "#ffff00")):
            hunter[f"{prefix}/photo_hunter/resource/photo{number}_{index}.svg"] = svg(object_color)
    pixels, details = painting(), {}
    for number in range(12):
        stem = f"Painting{number}"
        board = _board(f"A Painter, {stem} - 1888", f"{stem}_background.webp", {f"{stem}_0.webp": (0.25, 0.5)})
        details[f"{prefix}/details/resource/board/board{number}_0.qml"] = board
        details[f"{prefix}/details/resource/image/{stem}_background.webp"] = encoded(pixels, "WEBP", lossless=True)
        part = encoded(pixels[30:50, 15:45], "WEBP", lossless=True)
        details[f"{prefix}/details/resource/image/{stem}_0.webp"] = part
    things = ("tools/hammer1", "tools/screwDriver2", "fishes/fish3", "monuments/tajMahal", "renewable/windmill4")
    categorized = {
        f"{prefix}/categorization/resource/images/{name}.webp": encoded(plain((10, 50 * number, 9)), "WEBP")
        for number, name in enumerate(things)
    }
    categorized[f"{prefix}/categorization/resource/images/others/cup.webp"] = b"is not read"
    named = {"photo_hunter": hunter, "details": details, "categorization": categorized}
    named |= {
        f"explore_{each}": _explored(f"explore_{each}", tuple(f"{each.title()} {number}" for number in "12345"))
        for each in ("farm_animals", "world_animals", "monuments", "world_music")
    }
    for activity, files in named.items():
        write(folder / f"{activity}.rcc", bundle(files))


def write_emoji(folder: Path, bases: tuple[str, ...], others: tuple[str, ...]) -> None:
    """Persons in all tones, and other emoji, each in the four styles."""
    rows = []
    for base in bases:
        for number, points in _POINTS.items():
            name = f"waving {base}" + (f": {TONES[number]} skin tone" if number else "")
            code = f"{base}-{points}" if points else base
            rows.append((code, "people-body", name, "", number, "single", base))
    rows += [(code, "animals-nature", f"animal {code}", "pet, fur", "", "", "") for code in others]
    rows.append(("E001", "extras-openmoji", "not in Unicode", "", "", "", ""))
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(_FIELDS)
    table.writerows(rows)
    write(folder / "openmoji" / "data" / "openmoji.csv", text.getvalue().encode())
    for code, _, _, _, tone, _, _ in rows:
        shade, stem = 40 + 30 * int(tone or 6), code.lower()
        for name, hexadecimal in (("color", f"#{shade:02x}8060"), ("black", "#101010")):
            write(folder / "openmoji" / name / "svg" / f"{code}.svg", svg(hexadecimal))
        write(folder / "emoji-datasource-google/img/google/64" / f"{stem}.png", encoded(plain((shade, 120, 40, 255))))
        fluent = encoded(plain((shade, 60, 90, 255), 256, 256), "WEBP", lossless=True)
        write(folder / "fluent-emoji-3d/assets" / f"{stem}-fe0f.webp", fluent)


def write_packages(folder: Path) -> None:
    maps = folder / "usr/share/kgeography"
    for name in (TRAIN_MAP, HELD_OUT_MAP):
        write_map(maps, name)
    for number, color in enumerate(((255, 0, 0), (0, 0, 255), (0, 160, 0), (255, 255, 255), (255, 220, 0))):
        flag = plain(color, 60, 40)
        flag[:, 30 + number :] = (255, 255, 255) if number != 3 else (0, 0, 0)
        write(maps / "flags" / "more" / f"{number}.png", encoded(flag))
    write_bundles(folder / "usr/share/gcompris-qt/rcc")
    write_emoji(folder, _codes(0x1F440), _codes(0x1F400))


def _codes(first: int) -> tuple[str, ...]:
    """Three emoji to train on and one that is held out."""
    found = [f"{code:X}" for code in range(first, first + 64)]
    train = [each for each in found if not is_held_out(each)]
    return (*train[:3], next(each for each in found if is_held_out(each)))
