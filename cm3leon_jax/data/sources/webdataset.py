"""WebDataset tars, as img2dataset and others write them: the files of one key are an image and what is known of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from cm3leon_jax.data.sources.annotated import FileByFileSource
from cm3leon_jax.data.sources.captions import LONGEST, BadCaption, captions_in
from cm3leon_jax.data.sources.examples import BadRow, Example, ImageReference
from cm3leon_jax.data.sources.json_lines import parsed
from cm3leon_jax.data.sources.listing import UNSUPPORTED
from cm3leon_jax.data.sources.reading import SkippedExample
from cm3leon_jax.data.sources.rows import CAPTION_COLUMNS, captioned, captions_of, find_column, in_languages
from cm3leon_jax.data.sources.skipped import Skipped
from cm3leon_jax.data.sources.splits import split_in
from cm3leon_jax.data.sources.tars import TarFault, TarMember, read_members
from cm3leon_jax.images import IMAGE_SUFFIXES, UNSUPPORTED_IMAGE_SUFFIXES

# Suffixes of files that hold a caption and nothing else.
_TEXTS = ("txt", "text", "caption")


class _Sample(NamedTuple):
    """The files of one key by their suffixes in small letters, of a tar that is open."""

    file: str
    key: str
    members: dict[str, TarMember]
    # Whether a suffix is there twice, so that nobody knows what belongs together.
    is_ambiguous: bool
    opened: IO[bytes]


class WebDataset(FileByFileSource):
    """`webdataset:PATH`: tars in a folder and those below, one tar, or a pattern; documents of a caption and its image.

    A file's key ends at the first dot of its name. The caption is in .txt or .caption, or else in .json; other files,
    and what is beside the tars, are left alone. Each tar is read in the order of its keys.
    """

    form = "WebDataset tars"

    def example_files(self) -> list[str]:
        if not (files := self.files(".tar", depth=4)):
            raise self.other_form("there is no .tar file")
        return files

    def examples_of(self, file: str, skipped: Skipped) -> Iterator[Example | SkippedExample]:
        return self.each(self._samples(file, skipped), self._example)

    def _samples(self, file: str, skipped: Skipped) -> Iterator[tuple[str, str | None, _Sample]]:
        samples: dict[str, dict[str, TarMember]] = {}
        ambiguous: set[str] = set()
        for member in read_members(self.folder / file):
            if isinstance(member, TarFault):
                skipped.add(member.kind, f"{file}, byte {member.start}", is_document=False)
                continue
            folder, slash, name = member.name.rpartition("/")
            first, dot, suffix = name.partition(".")
            if not first or not dot:
                continue
            key = folder + slash + first
            found = samples.setdefault(key, {})
            if found.setdefault(suffix.lower(), member) is not member:
                ambiguous.add(key)
        if not samples:
            return
        with (self.folder / file).open("rb") as opened:
            for key in sorted(samples):
                sample = _Sample(file, key, samples.pop(key), key in ambiguous, opened)
                yield f"{file}:{key}", split_in(file), sample

    def _example(self, where: str, split: str | None, sample: _Sample) -> Iterator[Example | SkippedExample]:
        if sample.is_ambiguous:
            raise BadRow("key that is there twice")
        image = self._image_of(sample)
        row = _row(sample)
        rows = self.corpus.rows
        suffixes = (rows.caption_column.lower(),) if rows.caption_column else _TEXTS
        if text := next((suffix for suffix in suffixes if suffix in sample.members), None):
            try:
                listed = captions_in(_content(sample, text), self.corpus.folder.caption_line)
            except BadCaption as error:
                raise BadRow(str(error)) from None
            captions: list[Any] = in_languages(row, list(listed), rows)
        elif column := find_column(list(row), rows.caption_column, CAPTION_COLUMNS):
            captions = captions_of(row, column, rows)
        else:
            raise BadRow("image without a caption")
        yield from captioned(where, split, row, image, captions, rows.captions)

    def _image_of(self, sample: _Sample) -> ImageReference:
        if wanted := self.corpus.rows.image_column.lower():
            suffixes = [wanted] if wanted in sample.members else []
        else:
            suffixes = [suffix for suffix in sample.members if f".{suffix}" in IMAGE_SUFFIXES]
        if not suffixes:
            raise BadRow(_without_image(sample))
        if len(suffixes) > 1:
            raise BadRow("several images of one key")
        _, start, size = sample.members[suffixes[0]]
        if not size:
            raise BadRow("empty image")
        return ImageReference(sample.file, start=start, size=size)


def _without_image(sample: _Sample) -> str:
    if any(f".{suffix}" in UNSUPPORTED_IMAGE_SUFFIXES for suffix in sample.members):
        return UNSUPPORTED
    if any(suffix.endswith(IMAGE_SUFFIXES) for suffix in sample.members):
        return "image whose name has a dot before its suffix"
    return "key without an image"


def _row(sample: _Sample) -> dict[str, Any]:
    """What the JSON of a key says of it."""
    if "json" not in sample.members:
        return {}
    found = parsed(_content(sample, "json"))
    if not isinstance(found, dict):
        raise BadRow("malformed JSON")
    return found


def _content(sample: _Sample, suffix: str) -> bytes:
    member = sample.members[suffix]
    sample.opened.seek(member.start)
    return sample.opened.read(min(member.size, LONGEST + 1))
