"""An evaluation set of one's own: a prompts file whose lines also say what is true.

    {"id": "7", "prompt": "a red apple", "references": ["an apple, red"], "target": "7.png"}
    {"id": "8", "task": "vqa", "prompt": "Which color?", "image": "8.png", "references": ["red", "dark red"]}
    {"id": "9", "task": "edit", "prompt": "make it green", "image": "9.png", "target": "9b.png", "mask": "9m.png"}

Beside the fields of a prompts file: `references` (captions or answers), `choices` (possible answers), `target` (the
real image of a prompt, or the edited one), `mask` (white where an edit should change), `objects` (GenEval's tag,
include, exclude; a list of names and boxes is part of the request, and what is true of it). Images are relative to the
folder of the file. A line without an id has the number of its line.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.sets.base import Item, read_json_lines

_TRUTH = ("id", "references", "choices", "target", "mask", "objects")


@dataclass(frozen=True)
class PromptsFile:
    """A prompts file with references."""

    file: str

    @property
    def files(self) -> list[str]:
        return [self.file]

    def __call__(self) -> list[Item]:
        return [self._item(line, value) for line, value in read_json_lines(self.file)]

    def _item(self, line: int, value: dict[str, Any]) -> Item:
        where, folder = f"{self.file}, line {line}", Path(self.file).parent
        texts = {name: value.get(name, []) for name in ("references", "choices")}
        for name, found in texts.items():
            if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
                raise UserError(f"{where}: {name} is {found!r:.60}: give a list of texts")
        objects = value.get("objects", {})
        if not isinstance(objects, dict | list) or objects == []:
            raise UserError(f"{where}: objects is {objects!r:.60}: give an object with tag and include, or boxes")
        request = {name: each for name, each in value.items() if name not in _TRUTH}
        if isinstance(objects, list):
            request, objects = request | {"objects": objects}, {}
        images = {}
        for name in ("target", "mask"):
            if not isinstance(file := value.get(name, ""), str):
                raise UserError(f"{where}: {name} is {file!r:.60}: give the name of a file")
            images[name] = folder / file if file else None
        return Item(
            id=str(value.get("id", line)),
            request=_with_folder(request, folder),
            references=tuple(texts["references"]),
            choices=tuple(texts["choices"]),
            image=images["target"],
            mask=images["mask"],
            objects=objects,
        )


def _with_folder(value: Any, folder: Path) -> Any:
    """A record whose image files are paths from the working folder."""
    if isinstance(value, dict):
        return {
            name: str(folder / each) if name == "image" and isinstance(each, str) else _with_folder(each, folder)
            for name, each in value.items()
        }
    return [_with_folder(each, folder) for each in value] if isinstance(value, list) else value
