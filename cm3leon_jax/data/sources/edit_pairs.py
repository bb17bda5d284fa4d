"""Edits in parquet files, an image before and after in each row: InstructPix2Pix, UltraEdit and OmniEdit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from cm3leon_jax.data.sources.annotated import AnnotatedSource
from cm3leon_jax.data.sources.examples import BadRow, Example, ImageReference, Values, value_of
from cm3leon_jax.data.sources.reading import SkippedExample
from cm3leon_jax.data.sources.splits import hash_of, split_in
from cm3leon_jax.data.sources.tables import read_rows


class EditPairs(AnnotatedSource):
    """A row of a parquet file is an instruction of the template `edit`; each set is a subclass with its columns."""

    source: ClassVar[str]
    target: ClassVar[str]
    instruction: ClassVar[str]
    # Rows with the same value are on the same side of the split.
    group: ClassVar[str]

    def examples(self) -> Iterator[Example | SkippedExample]:
        if not (files := self.files(".parquet", depth=3)):
            raise self.other_form("there is no .parquet file")
        columns = (self.source, self.target, self.instruction, self.group)
        for file in files:
            found = read_rows(self.folder / file, columns, self.form)
            rows = ((f"{file}:{number}", split_in(file), (file, number, row)) for number, row in enumerate(found))
            yield from self.each(rows, self._example)

    def _example(self, where: str, split: str | None, found: tuple[str, int, dict[str, Any]]) -> Iterator[Example]:
        file, number, row = found
        if row[self.source] is None or row[self.target] is None:
            raise BadRow("missing image")
        values: Values = {
            "image": ImageReference(file, self.source, number),
            "instruction": self._instruction(row, number),
            "edited": ImageReference(file, self.target, number),
        }
        yield Example(where, "edit", values, str(row[self.group]), split)

    def _instruction(self, row: dict[str, Any], number: int) -> str:
        found: str = value_of(row, self.instruction, str)
        return found


class InstructPix2Pix(EditPairs):
    """`instruct_pix2pix:PATH`: original_image, edit_prompt, edited_image; all edits of a caption are on one side."""

    form = "parquet files of InstructPix2Pix"
    source, target, instruction, group = "original_image", "edited_image", "edit_prompt", "original_prompt"


class UltraEdit(EditPairs):
    """`ultraedit:PATH`: source_image, edit_prompt, edited_image."""

    form = "parquet files of UltraEdit"
    source, target, instruction, group = "source_image", "edited_image", "edit_prompt", "source_caption"


class OmniEdit(EditPairs):
    """`omniedit:PATH`: src_img, edited_img, and paraphrases of the instruction, of which each row gets one."""

    form = "parquet files of OmniEdit"
    source, target, instruction, group = "src_img", "edited_img", "edited_prompt_list", "omni_edit_id"

    def _instruction(self, row: dict[str, Any], number: int) -> str:
        listed = value_of(row, self.instruction, list)
        paraphrases = [each for each in listed if isinstance(each, str) and each.strip()]
        if not paraphrases:
            raise BadRow("empty field: instruction")
        return paraphrases[hash_of(f"{row[self.group]}".encode()) % len(paraphrases)]
