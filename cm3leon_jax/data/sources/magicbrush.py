"""MagicBrush as published: sessions of edits, each turn of which starts from the image of the turn before."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from cm3leon_jax.data.sources.annotated import AnnotatedSource
from cm3leon_jax.data.sources.examples import BadRow, Example, ImageReference, Values, value_of
from cm3leon_jax.data.sources.reading import SkippedExample
from cm3leon_jax.data.sources.splits import split_in
from cm3leon_jax.data.sources.tables import read_rows


class _Turn(NamedTuple):
    where: str
    split: str | None
    session: str
    number: int
    source: ImageReference
    instruction: str
    target: ImageReference


class MagicBrushSessions(AnnotatedSource):
    """`magicbrush:PATH`: parquet files, or edit_turns.json beside images/ID/FILE, of each split in a folder.

    A session of one turn is an `edit`, of several `edits`. A turn that is missing ends a session, and the next begins
    another with the source that is published for it.
    """

    form = "parquet files, or edit_turns.json, of MagicBrush"

    def examples(self) -> Iterator[Example | SkippedExample]:
        tables = self.files(".parquet", depth=3)
        turns = [name for name in self.files(".json", depth=3) if name.endswith("edit_turns.json")]
        if not tables and not turns:
            raise self.other_form()
        found = (self._rows(name) for name in tables) if tables else (self._entries(name) for name in turns)
        session: list[_Turn] = []
        for turn in itertools.chain.from_iterable(found):
            if isinstance(turn, SkippedExample):
                yield turn
                continue
            if session and not _goes_on(session[-1], turn):
                yield _example(session)
                session = []
            session.append(turn)
        if session:
            yield _example(session)

    def _rows(self, file: str) -> Iterator[_Turn | SkippedExample]:
        columns, old = ("img_id", "turn_index", "instruction"), ("input_img", "output_img")
        new = ("source_img", "target_img")
        for number, row in enumerate(read_rows(self.folder / file, columns, self.form, (*new, *old))):
            where = f"{file}:{number}"
            source, target = new if new[0] in row else old
            try:
                if row.get(source) is None or row.get(target) is None:
                    raise BadRow("missing image")
                session, turn = value_of(row, "img_id", str), value_of(row, "turn_index", int)
                images = ImageReference(file, source, number), ImageReference(file, target, number)
                yield _Turn(where, split_in(file), session, turn, images[0], _instruction(row), images[1])
            except BadRow as error:
                yield SkippedExample(str(error), where)

    def _entries(self, file: str) -> Iterator[_Turn | SkippedExample]:
        content = self.read_json(file)
        if not isinstance(content, list):
            raise self.other_form(f"{file} is no list")
        folder = file.rpartition("/")[0]
        for number, entry in enumerate(content):
            where = f"{file}:{number}"
            try:
                source, target = value_of(entry, "input", str), value_of(entry, "output", str)
                # ID-input.png is the source of the first turn, ID-output1.png its target.
                session, _, last = target.rpartition("-")
                images = [self._file(f"images/{session}/{name}", folder) for name in (source, target)]
                turn = int("".join(filter(str.isdigit, last)) or 0)
                yield _Turn(where, split_in(file), session, turn, images[0], _instruction(entry), images[1])
            except BadRow as error:
                yield SkippedExample(str(error), where)

    def _file(self, name: str, folder: str) -> ImageReference:
        found = self.image(name, folder)
        if not (self.folder / found.file).is_file():
            raise BadRow("missing image")
        return found


def _instruction(row: Any) -> str:
    found: str = value_of(row, "instruction", str).strip()
    if not found:
        raise BadRow("empty field: instruction")
    return found


def _goes_on(before: _Turn, turn: _Turn) -> bool:
    """Whether a turn is the next of a session; of files, names say whether it starts from the image before."""
    is_next = (before.session, before.number + 1, before.split) == (turn.session, turn.number, turn.split)
    return is_next and bool(turn.source.column or turn.source == before.target)


def _example(session: list[_Turn]) -> Example:
    first = session[0]
    if len(session) == 1:
        values: Values = {"image": first.source, "instruction": first.instruction, "edited": first.target}
        return Example(first.where, "edit", values, first.session, first.split)
    instructions, targets = [turn.instruction for turn in session], [turn.target for turn in session]
    values = {"image": first.source, "instruction": instructions, "edited": targets}
    pairs: Iterable[tuple[_Turn, _Turn]] = itertools.pairwise(session)
    equal = tuple((after.source, before.target) for before, after in pairs if after.source != before.target)
    return Example(first.where, "edits", values, first.session, first.split, equal)
