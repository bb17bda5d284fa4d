"""Questions about the colors of flags, as VizWiz is published; the answers are those of all pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from examples.annotations import published
from examples.annotations.colors import COLORS, color_fractions
from examples.annotations.graphics import jpeg, on_white
from examples.annotations.packages import Packages, listed
from examples.annotations.published import chosen, is_held_out

_SIDE = 64
# A color is in a flag from this fraction of it on; what has no name may be on the edges between two colors.
_LEAST, _MOST_UNNAMED = 0.05, 0.08
_CLEARLY_MORE = 1.4
# The side of a corner, as a fraction of the flag's.
_CORNER = 0.12
FLAG_QUESTIONS = ("is_there", "most", "corner")


def write_flags(packages: Packages, folder: Path) -> None:
    """train.json and val.json beside train/ and val/, and ids of the held-out questions of each type."""
    entries: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    prompts: list[dict[str, Any]] = []
    seen: set[bytes] = set()
    for file in listed((packages.maps / "flags").rglob("*.png")):
        with Image.open(file) as opened:
            image = on_white(opened, _SIDE)
        encoded = jpeg(image)
        # Some flags are there under several names.
        if encoded in seen or not (asked := questions(np.asarray(image), file.stem)):
            continue
        seen.add(encoded)
        split = "val" if is_held_out(f"flag {published.hashed(encoded.hex())}") else "train"
        name = f"VizWiz_{split}_{len(seen):08d}.jpg"
        published.write_bytes(folder / split / name, encoded)
        for type, question, answer in asked:
            answers = [{"answer": answer, "answer_confidence": "yes"}]
            more = {"answers": answers, "answer_type": "other", "answerable": 1}
            entries[split].append({"image": name, "question": question, **more})
            request = {"task": "vqa", "prompt": question, "image": f"../flags/{split}/{name}", "references": [answer]}
            prompts += [{"id": f"{type}/{name}", **request}] if split == "val" else []
    for split, of_split in entries.items():
        published.write_json(folder / f"{split}.json", of_split)
    published.write_json_lines(folder.parent / "held_out" / "flags.jsonl", prompts)


def questions(pixels: np.ndarray, key: str) -> list[tuple[str, str, str]]:
    """Type, question and answer of what is certain about a flag."""
    fractions = color_fractions(pixels)
    found: list[tuple[str, str, str]] = []
    if 1 - sum(fractions.values()) > _MOST_UNNAMED or not fractions:
        return found
    there = [color for color, each in fractions.items() if each >= _LEAST]
    absent = [color for color in COLORS if color not in fractions]
    is_yes = published.hashed("flag", key) % 2 == 0
    if colors := (there if is_yes else absent):
        color = chosen(sorted(colors), "flag color", key)
        found.append(("is_there", f"Is there {color} in the flag?", "yes" if is_yes else "no"))
    first, second = [*fractions.items(), ("", 0.0)][:2]
    if first[1] >= _CLEARLY_MORE * second[1]:
        found.append(("most", "Which color covers most of the flag?", first[0]))
    if corner := _corner(pixels):
        found.append(("corner", "Which color is the top left corner of the flag?", corner))
    return found


def _corner(pixels: np.ndarray) -> str | None:
    side = round(_CORNER * len(pixels))
    # The outermost pixels are a border in some flags.
    fractions: dict[str, float] = color_fractions(pixels[1 : 1 + side, 1 : 1 + side])
    color, fraction = next(iter(fractions.items()), ("", 0.0))
    return color if fraction > 1 - _LEAST else None
