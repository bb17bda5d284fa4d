"""Mutations of bytes, of JSON and of the files of a folder, each drawn from a random generator."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

# What a field may hold that its reader did not expect.
EXTREMES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**63, -(2**63), 10**30, 0.5, 1e308, float("nan"), float("inf")),
    *("", " ", "x", "0", "x" * 5_000, "\0", "\n", "\x1b[2J", "\ud800", "e\u0301", "../..", "/etc/passwd", "~"),
    *([], {}, [[]], [None], ["x"], [0, -1], {"a": 1}, [[[[[[0]]]]]]),
)
NUMBERS = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
NAMES = (
    *("CAP.PNG", "cafe\u0301.png", "caf\u00e9.txt", "a b.png", "new\nline.png", "-rf.png", "\x1b[2J.png"),
    *(
        "x" * 240 + ".png",
        ".hidden.png",
        "no_suffix",
        "two.png.txt",
        "a.jpeg",
        "\u6570.webp",
        "\udce9.png",
        "\udce9.txt",
    ),
)


def mutated_bytes(data: bytes, rng: np.random.Generator, other: bytes = b"") -> bytes:
    """Bytes flipped, overwritten, removed, doubled, inserted, cut off, or spliced with those of another file."""
    found = bytearray(data) or bytearray(b"\0")
    start = int(rng.integers(len(found)))
    stop = min(len(found), start + int(2 ** rng.uniform(0, 10)))
    match int(rng.integers(8)):
        case 0:
            for place in rng.integers(0, len(found), int(rng.integers(1, 9))):
                found[place] ^= 1 << int(rng.integers(8))
        case 1:
            found[start:stop] = bytes([int(rng.choice([0, 0x20, 0x7F, 0xFF]))]) * (stop - start)
        case 2:
            del found[start:stop]
        case 3:
            found[start:start] = found[start:stop] * int(rng.integers(1, 5))
        case 4:
            found[start:start] = rng.bytes(stop - start)
        case 5:
            del found[start:]
        case 6:
            number, order = int(rng.choice(NUMBERS)), rng.choice(["<I", ">I", "<H", ">H"])
            packed = struct.pack(order, number & (0xFFFF if "H" in order else 0xFFFFFFFF))
            found[start : start + len(packed)] = packed
        case _:
            from_other = int(rng.integers(len(other) + 1))
            found[start:stop] = other[from_other : from_other + stop - start]
    return bytes(found)


def mutated_png(data: bytes, rng: np.random.Generator) -> bytes:
    """A PNG with other contents of one of its chunks, and the sum that belongs to them."""
    chunks, place = [], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    number = int(rng.integers(len(chunks)))
    chunks[number] = chunks[number][0], mutated_bytes(chunks[number][1], rng)
    parts = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return data[:8] + b"".join(parts)


def mutated_json(value: Any, rng: np.random.Generator) -> Any:
    """The value with one of its parts replaced, removed, renamed, doubled or wrapped."""
    value = json.loads(json.dumps(value))
    places = list(_places(value))
    if not places or rng.random() < 0.05:
        return _pick(EXTREMES, rng)
    parent, key = places[int(rng.integers(len(places)))]
    match int(rng.integers(8)):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[f"{key}{_pick(('', '_', '.', 'x'), rng)}x"] = parent.pop(key)
        case 1 | 2:
            other, other_key = places[int(rng.integers(len(places)))]
            # As text: a part may hold the other.
            parent[key] = json.loads(
                json.dumps(other.get(other_key) if isinstance(other, dict) else other[other_key : other_key + 1])
            )
        case 3:
            parent[key] = [parent[key]] * int(rng.integers(1, 4))
        case _:
            parent[key] = _pick(EXTREMES, rng)
    return value


def mutated_json_text(text: str, rng: np.random.Generator) -> str:
    """A JSON file, or one of JSON lines, with one mutated part."""
    if rng.random() < 0.03:
        return _pick(("[" * 100_000, '{"a":' * 5_000, "1" * 5_000, "", "\ufeff" + text, text * 2), rng)
    try:
        return json.dumps(mutated_json(json.loads(text), rng), ensure_ascii=bool(rng.integers(2)))
    except (ValueError, RecursionError):
        lines = text.split("\n")
        number = int(rng.integers(len(lines)))
        try:
            lines[number] = json.dumps(mutated_json(json.loads(lines[number]), rng))
        except (ValueError, RecursionError):
            lines[number] = lines[number] * 2
        return "\n".join(lines)


def mutate_folder(folder: Path, rng: np.random.Generator, only: str = "", pipes: bool = False) -> None:
    """Changes one file of a folder: what it holds, what it is called, or what it is.

    Args:
      folder: with the files.
      rng: chooses.
      only: how the file's name ends.
      pipes: whether the file may become a pipe that nobody writes to, as may lie in folders of other people.
    """
    files = sorted(path for path in folder.rglob(f"*{only}") if path.is_file() and not path.is_symlink())
    if not files:
        return
    file, other = (files[int(place)] for place in rng.integers(0, len(files), 2))
    draw = rng.random()
    if draw < 0.8:
        data = file.read_bytes()
        if file.suffix in (".json", ".jsonl") and rng.random() < 0.7:
            text = mutated_json_text(data.decode("utf-8", "replace"), rng)
            file.write_bytes(text.encode("utf-8", "surrogatepass"))
        else:
            file.write_bytes(mutated_bytes(data, rng, other.read_bytes()))
        return
    match int(rng.integers(7 if pipes else 6)):
        case 0:
            file.unlink()
        case 1:
            file.write_bytes(b"")
        case 2:
            first, second = file.read_bytes(), other.read_bytes()
            file.write_bytes(second)
            other.write_bytes(first)
        case 3:
            file.rename(file.with_name(_pick(NAMES, rng)))
        case 4:
            file.unlink()
            file.mkdir()
        case 5:
            file.unlink()
            file.symlink_to(_pick((".", "..", "nowhere", file.name, "/dev/null", "/dev/zero"), rng))
        case _:
            file.unlink()
            os.mkfifo(file)


def copied(base: Path, work: Path) -> Path:
    """The files of a valid input, to be mutated."""
    shutil.copytree(base, work, dirs_exist_ok=True)
    return work


def _places(value: Any) -> Any:
    """Every part of a JSON value, as what it lies in and its name or number there."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _pick(values: tuple[Any, ...], rng: np.random.Generator) -> Any:
    return values[int(rng.integers(len(values)))]
