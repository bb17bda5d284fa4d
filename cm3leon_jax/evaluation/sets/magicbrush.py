"""MagicBrush as published: edits by instruction, in turns, with masks and targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cm3leon_jax.data.sources.splits import split_in
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.sets.base import Item, field_of, read_json
from cm3leon_jax.generation.requests import ImageSource
from cm3leon_jax.ranges import OneOf

_COLUMNS = ("img_id", "turn_index", "source_img", "mask_img", "instruction", "target_img")


@dataclass(frozen=True)
class MagicBrush:
    """A folder of parquet files (img_id, turn_index, source_img, mask_img, instruction, target_img), or of JSON.

    The latter is edit_turns.json, [{input, mask, output, instruction}], beside images/ID/FILE. Each turn is an item
    that begins with the published source, as the benchmark's single-turn setting does; its id is ID-outputTURN.
    Parquet files of several splits are published in one folder; those that are named after the training split, or any
    but that of the option, are not read.
    """

    folder: str
    # "validation" for files that are named after it, or after "dev"; empty: all but those to train on.
    split: Annotated[str, OneOf("", "train", "validation", "test")] = ""
    # The captions of the targets, {ID: {"ID-output1.png": caption}}: global_descriptions.json.
    captions: str = ""

    @property
    def files(self) -> list[str]:
        return [str(file) for file in (*self._tables, Path(self.captions)) if file != Path()]

    @property
    def _tables(self) -> list[Path]:
        tables = sorted(Path(self.folder).glob("*.parquet"))
        if not tables:
            return [Path(self.folder) / "edit_turns.json"]
        splits = {table: split_in(table.name) for table in tables}
        wanted = [table for table, split in splits.items() if (split == self.split if self.split else split != "train")]
        if not wanted:
            found = ", ".join(sorted({split or "no split" for split in splits.values()}))
            raise UserError(
                f"{self.folder} has no parquet files of the split {self.split or 'to evaluate'}, but of {found}: "
                "set the option split of the evaluation set"
            )
        return wanted

    def __call__(self) -> list[Item]:
        captions = read_json(self.captions) if self.captions else {}
        items = []
        for image, target, instruction, (source, mask, edited) in self._turns():
            of_image = field_of(captions, image, dict, self.captions, default={})
            caption = field_of(of_image, f"{target}.png", str, f"{image} of {self.captions}", default="")
            request = {"task": "edit", "prompt": instruction, "image": source}
            items.append(Item(target, request, (caption,) if caption else (), edited, mask))
        return items

    def _turns(self) -> Iterator[tuple[str, str, str, tuple[Any, ImageSource, ImageSource]]]:
        """(id of the image, id of the turn, instruction, (source, mask, target)) of each turn."""
        for table in self._tables:
            if table.suffix == ".parquet":
                for row, where in _rows(table):
                    image = field_of(row, "img_id", str, where)
                    turn = f"{image}-output{field_of(row, 'turn_index', int, where)}"
                    parts = tuple(
                        field_of(field_of(row, name, dict, where), "bytes", bytes, f"{name} of {where}")
                        for name in ("source_img", "mask_img", "target_img")
                    )
                    yield image, turn, field_of(row, "instruction", str, where), parts
                continue
            for number, turn in enumerate(field_of({"turns": read_json(table)}, "turns", list, str(table))):
                where = f"turn {number} of {table}"
                source, mask, target = (field_of(turn, name, str, where) for name in ("input", "mask", "output"))
                # ID-input.png is the source of the first turn, ID-output1.png its target.
                image = target.rpartition("-")[0]
                images = Path(self.folder) / "images" / image
                instruction = field_of(turn, "instruction", str, where)
                yield image, Path(target).stem, instruction, (str(images / source), images / mask, images / target)


def _rows(file: Path) -> Iterator[tuple[dict[str, Any], str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        if missing := [name for name in _COLUMNS if name not in table.schema_arrow.names]:
            raise UserError(f"{file} has no column {missing[0]}: MagicBrush's has {', '.join(_COLUMNS)}")
        number = 0
        for batch in table.iter_batches(batch_size=16, columns=list(_COLUMNS)):
            for row in batch.to_pylist():
                yield row, f"row {number} of {file}"
                number += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{file} is no parquet file that can be read ({error})") from None
