"""GenEval as published: prompts for objects, counts, colors and positions, and what each asks for."""

from __future__ import annotations

from dataclasses import dataclass

from cm3leon_jax.evaluation.sets.base import Item, field_of, read_json_lines


@dataclass(frozen=True)
class GenEval:
    """evaluation_metadata.jsonl: {"tag", "include": [{class, count, color, position}], "exclude", "prompt"}.

    An item's id is the number of its line from 0, with five digits, as the folders of the benchmark are named.
    """

    file: str

    @property
    def files(self) -> list[str]:
        return [self.file]

    def __call__(self) -> list[Item]:
        items = []
        for number, (line, value) in enumerate(read_json_lines(self.file)):
            prompt = field_of(value, "prompt", str, f"{self.file}, line {line}")
            items.append(Item(f"{number:05d}", {"prompt": prompt}, objects=value))
        return items
