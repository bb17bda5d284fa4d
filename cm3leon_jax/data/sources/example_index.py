"""The examples of annotations: which there are, in which split, what was skipped, and what they follow from."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from tqdm import tqdm

from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.curation.curator import Curator
from cm3leon_jax.data.sources.examples import BadRow, Example, ImageReference, Value
from cm3leon_jax.data.sources.kept_index import FoundExample, FoundExamples
from cm3leon_jax.data.sources.reading import SkippedExample
from cm3leon_jax.data.sources.skipped import Skipped
from cm3leon_jax.data.sources.splits import assign_splits, hash_of
from cm3leon_jax.data.sources.texts import Texts
from cm3leon_jax.data.templates import TEMPLATES
from cm3leon_jax.data.templates.template import Template
from cm3leon_jax.errors import UserError


@dataclass(frozen=True)
class StoredExample:
    """An example with its fields in the order of its template's segments."""

    where: str
    template: str
    segments: tuple[Value, ...]
    equal: tuple[tuple[ImageReference, ImageReference], ...] = ()
    # Of an interleaved document: why images and texts were left out of it, one reason for each.
    omitted: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps([self.where, self.template, self.segments, self.equal])

    @classmethod
    def from_json(cls, text: str) -> StoredExample:
        where, template, segments, equal = json.loads(text)
        values = tuple(each if isinstance(each, str) else ImageReference(*each) for each in segments)
        pairs = tuple((ImageReference(*first), ImageReference(*second)) for first, second in equal)
        return cls(where, template, values, pairs)

    @property
    def images(self) -> list[ImageReference]:
        """All images that have to be read for it."""
        found = [each for each in self.segments if isinstance(each, ImageReference)]
        return found + [each for pair in self.equal for each in pair]


@dataclass(frozen=True)
class ExampleIndex:
    """The examples of a folder of annotations; their images are read later."""

    folder: Path
    examples: Texts
    splits: Mapping[str, Int64[np.ndarray, "n"]]
    skipped: Skipped
    # Size in bytes and time of change of each file with images, by its name.
    files: Mapping[str, tuple[int, int]]
    compare_times: bool
    # Whether an epoch takes one of the examples of a row.
    is_sampled: bool = False
    # No image may be missing.
    min_images: None = None

    def between(self, split: str, start: int, stop: int) -> Iterator[StoredExample]:
        """Examples start .. stop - 1 of a split."""
        return (self.example(split, index) for index in range(start, stop))

    def file_status(self, name: str) -> tuple[int, int]:
        """Size and time of change of a file with images, as it was found."""
        return self.files[name]

    def example(self, split: str, index: int) -> StoredExample:
        return StoredExample.from_json(self.examples[int(self.splits[split][index])])

    def where(self, split: str, index: int) -> str:
        return self.example(split, index).where

    def provenance(self) -> dict[str, str]:
        """What the examples follow from: their texts, order and splits, and the files of their images."""
        examples, images, times = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
        for split, indices in self.splits.items():
            examples.update(f"{split} {len(indices)}\n".encode())
            for index in indices.tolist():
                examples.update(self.examples[index].encode() + b"\0")
        for name, (size, time) in sorted(self.files.items()):
            images.update(json.dumps([name, size]).encode())
            times.update(json.dumps([name, time]).encode())
        sizes = ", ".join(f"{len(indices):,} {split}" for split, indices in self.splits.items())
        num_bytes = sum(size for size, _ in self.files.values())
        return {
            "examples": f"{sizes}, {examples.hexdigest()[:12]}",
            "images": f"{len(self.files):,} files of {num_bytes:,} bytes, {images.hexdigest()[:12]}",
            **({"times of change": times.hexdigest()[:12]} if self.compare_times else {}),
        }

    def changed_since(self, time: float) -> list[str]:
        """Files of images that were written after a time, in seconds since 1970."""
        return [name for name in sorted(self.files) if (now := status_of(self.folder / name)) and now[1] > time * 1e9]


class ExampleFinder:
    """Takes in what a reader gives: checks that examples are wanted, fit their template, and have their images."""

    def __init__(self, folder: Path, what: str, config: CorpusConfig, curator: Curator) -> None:
        """
        Args:
          what: says in messages what is read, such as "vqa:/data/vqa".
          curator: says of which rows no example is wanted.
        """
        self._folder, self._curator = folder, curator
        self._templates = _Templates(config.annotations.templates, what)

    def part(self, examples: Iterable[Example | SkippedExample], skipped: Skipped) -> FoundExamples:
        """The examples of a reader, which counts in `skipped` what else it skips."""
        found = FoundExamples(skipped=skipped)
        found.examples = self._found(examples, found)
        return found

    def _found(self, examples: Iterable[Example | SkippedExample], part: FoundExamples) -> Iterator[FoundExample]:
        files = _Files(self._folder, part.files)
        for example in examples:
            if isinstance(example, SkippedExample):
                part.skipped.add(example.reason, example.where, example.is_fault)
                continue
            if unwanted := self._curator.of_row(example.row):
                part.skipped.add_unwanted(unwanted, example.where)
                continue
            try:
                stored = self._templates.stored(example)
                for image in stored.images:
                    files.check(image)
                    part.in_file_order |= bool(image.column or image.size)
            except BadRow as error:
                part.skipped.add(str(error), example.where)
                continue
            group = hash_of(example.group.encode("utf-8", "surrogatepass"))
            yield FoundExample(stored.to_json(), group, example.split)


def index_parts(
    folder: Path, what: str, parts: Iterable[FoundExamples], skipped: Skipped, config: CorpusConfig
) -> ExampleIndex:
    """Joins the parts of a source.

    The order of a split is that of a hash, so that the first examples are a fair sample; where images are in tables or
    tars, which are read from their start to their end, it is the reader's.

    Args:
      skipped: gets what is skipped.

    Raises:
      UserError: if there are none, or they do not fit their template.
    """
    texts, hashes, own = Texts(), array("Q"), list[str | None]()
    files, in_file_order = dict[str, tuple[int, int]](), False
    with tqdm(unit=" examples", desc=what, delay=2, disable=None) as progress:
        for part in parts:
            for example in part.examples:
                texts.append(example.text)
                hashes.append(example.group)
                own.append(example.split)
                progress.update()
            if part.skipped is not skipped:
                skipped.update(part.skipped)
            files |= part.files
            in_file_order |= part.in_file_order
    if not len(texts):
        raise UserError(f"{what} has no examples ({skipped.in_one_line(800) or 'nothing of that form is there'})")
    splits = assign_splits(np.array(hashes, np.uint64), own, config.folder.held_out_fraction)
    if in_file_order:
        splits = {split: np.sort(indices) for split, indices in splits.items()}
    return ExampleIndex(folder, texts, splits, skipped, files, config.folder.compare_times, config.rows.is_sampled)


class _Templates:
    """Puts the fields of examples in the order of their templates."""

    def __init__(self, renamed: Mapping[str, str], what: str) -> None:
        self._renamed, self._what = renamed, what
        # Of each template, the fields outside of turns and those of a turn.
        self._fields: dict[str, tuple[list[str], list[str]]] = {}

    def stored(self, example: Example) -> StoredExample:
        name = self._renamed.get(example.template, example.template)
        if not name:
            segments = [(each, field) for field, value in example.values.items() for each in _several(value)]
            return StoredExample(example.where, "", tuple(_checked(*each) for each in segments), example.equal)
        if name not in self._fields:
            self._fields[name] = self._fields_of(name, example)
        once, in_turns = self._fields[name]
        values = example.values
        fields = [_checked(_one(values[field], field), field) for field in once]
        if in_turns:
            turns = list(zip(*(_several(values[field]) for field in in_turns), strict=True))
            if not turns:
                raise BadRow("no turns")
            fields += [_checked(each, field) for turn in turns for each, field in zip(turn, in_turns, strict=True)]
        return StoredExample(example.where, name, tuple(fields), example.equal)

    def _fields_of(self, name: str, example: Example) -> tuple[list[str], list[str]]:
        template: Template = TEMPLATES.load(name)
        if absent := [field for field in template.fields if field not in example.values]:
            raise UserError(
                f"the template {name!r} needs the field {absent[0]}: the examples of {self._what} have "
                f"{', '.join(example.values)}; see config.corpus.annotations.templates"
            )
        in_turns = list(dict.fromkeys(field.name for field in template.in_turns))
        return [field for field in template.fields if field not in in_turns], in_turns


def _one(value: Value | Sequence[Value], field: str) -> Value:
    if not isinstance(value, str | ImageReference):
        raise BadRow(f"several values of the field {field}")
    return value


def _several(value: Value | Sequence[Value]) -> Sequence[Value]:
    return [value] if isinstance(value, str | ImageReference) else value


def _checked(value: Value, field: str) -> Value:
    if not isinstance(value, str):
        return value
    text = value.strip()
    if not text:
        raise BadRow(f"empty field: {field}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow(f"half a character in the field {field}") from None
    return text


class _Files:
    """The files with images that examples name."""

    def __init__(self, folder: Path, found: dict[str, tuple[int, int]]) -> None:
        """`found` gets their sizes and times of change."""
        self._folder, self._found = folder, found

    def check(self, image: ImageReference) -> None:
        """Takes in the file of an image; a `BadRow` if there is none."""
        if image.file not in self._found:
            status = status_of(self._folder / image.file)
            if status is None:
                raise BadRow("missing image")
            self._found[image.file] = status


def status_of(file: Path) -> tuple[int, int] | None:
    """Size in bytes and time of change, in nanoseconds since 1970, of a file; None if there is none."""
    try:
        status = file.stat() if file.is_file() else None
    # A name may hold what no file system takes.
    except (OSError, ValueError):
        return None
    return None if status is None else (status.st_size, status.st_mtime_ns)
