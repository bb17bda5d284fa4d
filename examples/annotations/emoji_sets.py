"""Data sets of emoji: edits as InstructPix2Pix, MagicBrush, UltraEdit and OmniEdit are published, and questions."""

from __future__ import annotations

import io
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from examples.annotations import published
from examples.annotations.emoji_images import SIDE, STYLES, TONES, Emoji, EmojiImages, read_emoji
from examples.annotations.graphics import as_image, png
from examples.annotations.packages import Packages
from examples.annotations.published import cell, chosen, hashed, is_held_out, shuffled, table_file

_TONE_WORDINGS = (
    "make the skin tone {tone}",
    "change the skin tone to {tone}",
    "give it a {tone} skin tone",
    "the skin should be {tone}",
)
_LINE_WORDINGS = ("make it a line drawing", "turn it into a drawing of lines", "remove the colors and keep the lines")
_COLOR_WORDINGS = ("color the drawing", "fill the lines with color", "add the colors")
_STYLE_WORDINGS = {
    "fluent": ("render it in 3D", "make it three-dimensional", "turn it into a 3D rendering"),
    "google": ("make it flat", "draw it in a flat style", "turn it into a flat drawing"),
}
# Edits of each person from one tone to another, beside those from yellow to every tone.
_MORE_TONE_EDITS = 5
_TURNS = 2


def write_emoji(packages: Packages, output: Path) -> None:
    """The folders tones, tone_sessions, lines, styles and emoji_questions, and prompts in held_out/."""
    images = EmojiImages(packages)
    found = read_emoji(packages.openmoji / "data" / "openmoji.csv")
    for split in ("train", "val"):
        of_split = [each for each in found if is_held_out(each.family) == (split == "val")]
        write_tones(of_split, images, split, output)
        write_tone_sessions(of_split, images, split, output / "tone_sessions")
        write_lines(of_split, images, split, output)
        write_styles(of_split, images, split, output)
        write_emoji_questions(of_split, images, split, output)


def persons(found: Sequence[Emoji], images: EmojiImages, style: str) -> Iterator[dict[str, Emoji]]:
    """Of each emoji with all skin tones, the variants by tone."""
    by_base: dict[str, dict[str, Emoji]] = defaultdict(dict)
    for each in found:
        if each.tone is not None and images.has(each, style):
            by_base[each.base][each.tone] = each
    yield from (tones for tones in by_base.values() if len(tones) == len(TONES))


def write_tones(found: Sequence[Emoji], images: EmojiImages, split: str, output: Path) -> None:
    """InstructPix2Pix: other skin tones of Google's emoji. A held-out request has all tones as its alternatives."""
    rows: list[dict[str, Any]] = []
    alternatives = _Alternatives(output / "held_out", "tones")
    for tones in persons(found, images, "google"):
        base, encoded = tones["yellow"], {tone: images.image(each, "google") for tone, each in tones.items()}
        pairs = [(before, after) for before in tones for after in tones if before != after]
        edits = [("yellow", tone) for tone in tones if tone != "yellow"]
        edits += [each for each in shuffled(pairs, "tones", base.code) if each not in edits][:_MORE_TONE_EDITS]
        for before, after in edits:
            instruction = chosen(_TONE_WORDINGS, "tone", base.code, before, after).format(tone=after)
            rows.append(
                {
                    "original_prompt": tones[before].name,
                    "original_image": cell(encoded[before], f"{tones[before].file_stem}.png"),
                    "edit_prompt": instruction,
                    "edited_prompt": tones[after].name,
                    "edited_image": cell(encoded[after], f"{tones[after].file_stem}.png"),
                }
            )
            alternatives.add(base.file_stem, instruction, before, after, encoded)
    columns = dict.fromkeys(("original_prompt", "edit_prompt", "edited_prompt"), "text")
    columns |= dict.fromkeys(("original_image", "edited_image"), "image")
    published.write_table(table_file(output / "tones", split), rows, columns)
    if split == "val":
        alternatives.write()


def write_tone_sessions(found: Sequence[Emoji], images: EmojiImages, split: str, folder: Path) -> None:
    """MagicBrush in tables: tone after tone of Fluent's emoji, with masks that are transparent where an edit is."""
    rows: list[dict[str, Any]] = []
    for tones in persons(found, images, "fluent"):
        base = tones["yellow"]
        order = shuffled(tones, "session", base.code)[: _TURNS + 1]
        for turn, (before, after) in enumerate(itertools.pairwise(order), start=1):
            source, target = (images.image(tones[tone], "fluent") for tone in (before, after))
            rows.append(
                {
                    "img_id": base.file_stem,
                    "turn_index": turn,
                    "source_img": cell(source, f"{base.file_stem}-{turn - 1}.png"),
                    "mask_img": cell(_mask(source, target), f"{base.file_stem}-mask{turn}.png"),
                    "instruction": chosen(_TONE_WORDINGS, "session", base.code, turn).format(tone=after),
                    "target_img": cell(target, f"{base.file_stem}-{turn}.png"),
                }
            )
    columns = {"img_id": "text", "turn_index": "number", "instruction": "text"}
    columns |= dict.fromkeys(("source_img", "mask_img", "target_img"), "image")
    published.write_table(table_file(folder, split), rows, columns)


def _mask(source: bytes, target: bytes) -> bytes:
    """The source, transparent where the target differs."""
    before, after = (np.asarray(Image.open(io.BytesIO(each))) for each in (source, target))
    alpha = np.where((before != after).any(-1), 0, 255).astype(np.uint8)
    return png(Image.fromarray(np.concatenate([before, alpha[..., None]], axis=-1)))


def write_lines(found: Sequence[Emoji], images: EmojiImages, split: str, output: Path) -> None:
    """UltraEdit: OpenMoji's colors taken away, or added."""
    rows: list[dict[str, Any]] = []
    alternatives = _Alternatives(output / "held_out", "lines")
    for each in found:
        # The lines of all skin tones are the same.
        if each.tone in (None, "yellow") and images.has(each, "color", "lines"):
            encoded = {style: images.image(each, style) for style in ("color", "lines")}
            before, after = ("color", "lines") if hashed("lines", each.code) % 2 else ("lines", "color")
            wordings = _LINE_WORDINGS if after == "lines" else _COLOR_WORDINGS
            instruction = chosen(wordings, "lines", each.code)
            mask = png(as_image(np.full((SIDE, SIDE, 3), 255, np.uint8)))
            rows.append(
                {
                    "source_caption": each.name,
                    "target_caption": f"{each.name}, {'line drawing' if after == 'lines' else 'in color'}",
                    "edit_prompt": instruction,
                    "source_image": cell(encoded[before], f"{each.file_stem}-{before}.png"),
                    "edited_image": cell(encoded[after], f"{each.file_stem}-{after}.png"),
                    "mask_image": cell(mask, "white.png"),
                }
            )
            if split == "val" and images.has(each, *STYLES):
                encoded |= {style: images.image(each, style) for style in ("google", "fluent")}
                alternatives.add(each.file_stem, instruction, before, after, encoded)
    columns = dict.fromkeys(("source_caption", "target_caption", "edit_prompt"), "text")
    columns |= dict.fromkeys(("source_image", "edited_image", "mask_image"), "image")
    published.write_table(table_file(output / "lines", split), rows, columns)
    if split == "val":
        alternatives.write()


def write_styles(found: Sequence[Emoji], images: EmojiImages, split: str, output: Path) -> None:
    """OmniEdit: Google's flat style and Fluent's 3D, each way for half of the emoji."""
    rows: list[dict[str, Any]] = []
    alternatives = _Alternatives(output / "held_out", "styles")
    # OmniEdit's held-out file is called dev.
    name = "dev" if split == "val" else split
    for each in found:
        if images.has(each, "google", "fluent"):
            before, after = ("google", "fluent") if hashed("styles", each.code) % 2 else ("fluent", "google")
            encoded = {style: images.image(each, style) for style in ("google", "fluent")}
            rows.append(
                {
                    "omni_edit_id": f"style_{each.file_stem}",
                    "task": "style",
                    "src_img": cell(encoded[before], f"{each.file_stem}-{before}.png"),
                    "edited_img": cell(encoded[after], f"{each.file_stem}-{after}.png"),
                    "edited_prompt_list": list(_STYLE_WORDINGS[after]),
                    "width": SIDE,
                    "height": SIDE,
                }
            )
            if split == "val" and images.has(each, *STYLES):
                encoded |= {style: images.image(each, style) for style in ("color", "lines")}
                instruction = chosen(_STYLE_WORDINGS[after], "styles", each.code)
                alternatives.add(each.file_stem, instruction, before, after, encoded)
    columns = {"omni_edit_id": "text", "task": "text", "src_img": "image", "edited_img": "image"}
    columns |= {"edited_prompt_list": "texts", "width": "number", "height": "number"}
    published.write_table(table_file(output / "styles", name), rows, columns)
    if split == "val":
        alternatives.write()


def write_emoji_questions(found: Sequence[Emoji], images: EmojiImages, split: str, output: Path) -> None:
    """LLaVA-OneVision: what an emoji is, and its skin tone or group; held_out/emoji_questions.jsonl asks of tones."""
    rows: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    for each in found:
        if images.has(each, "google"):
            asked = (
                [("What is it?", each.plain_name), ("Which skin tone does it have?", each.tone)]
                if each.tone
                else [("What is it?", each.name), ("What is it about?", each.group.replace("-", " and "))]
            )
            turns = []
            # Either comes first, as a request asks for one alone.
            for number, (question, answer) in enumerate(shuffled(asked, "asked", each.code)):
                turns.append({"from": "human", "value": question if number else f"<image>\n{question}"})
                turns.append({"from": "gpt", "value": answer})
            encoded = images.image(each, "google")
            rows.append({"id": each.file_stem, "image": cell(encoded, f"{each.file_stem}.png"), "conversations": turns})
            if split == "val" and each.tone:
                file = output / "held_out" / "emoji" / f"{each.file_stem}.png"
                published.write_bytes(file, encoded)
                request = {"task": "vqa", "prompt": "Which skin tone does it have?", "image": f"emoji/{file.name}"}
                lines.append({"id": each.file_stem, **request, "references": [each.tone]})
    columns = {"id": "text", "image": "image", "conversations": "turns"}
    published.write_table(table_file(output / "emoji_questions", split), rows, columns)
    if split == "val":
        published.write_json_lines(output / "held_out" / "emoji_questions.jsonl", lines)


class _Alternatives:
    """Held-out edits: a prompts file, NAME.jsonl, and NAME_alternatives.jsonl, the images that judge."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._requests: list[dict[str, Any]] = []
        self._alternatives: list[dict[str, Any]] = []
        self._images: dict[str, bytes] = {}

    def add(self, base: str, instruction: str, before: str, after: str, encoded: dict[str, bytes]) -> None:
        """An edit of an emoji from one of its alternatives to another; `encoded` are their images."""
        id = f"{base}-{before}-{after}"
        names = {}
        for alternative, content in encoded.items():
            names[alternative] = f"{self._name}/{published.hashed(content.hex()):016x}.png"
            self._images[names[alternative]] = content
        request = {"task": "edit", "prompt": instruction, "image": names[before], "target": names[after]}
        self._requests.append({"id": id, **request})
        self._alternatives.append({"id": id, "group": base, "images": names, "before": before, "after": after})

    def write(self) -> None:
        for name, content in self._images.items():
            published.write_bytes(self._folder / name, content)
        published.write_json_lines(self._folder / f"{self._name}.jsonl", self._requests)
        published.write_json_lines(self._folder / f"{self._name}_alternatives.jsonl", self._alternatives)
