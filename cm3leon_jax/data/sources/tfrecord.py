"""TFRecord files of captioned images: `tf.train.Example` as img2dataset, TensorFlow's models and others write them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from cm3leon_jax.data.sources.annotated import FileByFileSource
from cm3leon_jax.data.sources.captions import LONGEST
from cm3leon_jax.data.sources.examples import BadRow, Example, ImageReference, UnwantedRow
from cm3leon_jax.data.sources.reading import SkippedExample
from cm3leon_jax.data.sources.rows import CAPTION_COLUMNS, GROUP_COLUMNS, captioned, captions_of, find_column
from cm3leon_jax.data.sources.skipped import Skipped
from cm3leon_jax.data.sources.splits import split_in
from cm3leon_jax.data.sources.tfrecord_files import BytesAt, RecordFault, TFRecordFile

_SUFFIXES = (".tfrecord", ".tfrecords", ".tfrec")
_IMAGES = ("jpg", "jpeg", "png", "webp", "image/encoded", "image", "img", "image_raw", "image_bytes")
_CAPTIONS = ("txt", *CAPTION_COLUMNS, "image/text", "image/caption", "image/captions")
UNREADABLE = "TFRecord file that cannot be read"


class _Record(NamedTuple):
    """The values of a record of an open file by their names; None where it is no `tf.train.Example`."""

    name: str
    file: TFRecordFile
    features: Mapping[str, list[Any]] | None


class CaptionedRecords(FileByFileSource):
    """`tfrecord:PATH`: `tf.train.Example`s with the bytes of an image file and captions.

    PATH is a folder with what is below it, a file, or a pattern; files are called NAME.tfrecord, or
    NAME.tfrecord-00000-of-00010, and each is read in its order.
    """

    form = "TFRecord files of captioned images"

    def example_files(self) -> list[str]:
        if not (files := self.files(*_SUFFIXES, depth=4)):
            raise self.other_form(f"there is no {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]} file")
        return files

    def examples_of(self, file: str, skipped: Skipped) -> Iterator[Example | SkippedExample]:
        return self.each(self._records(file, skipped), self._example)

    def _records(self, name: str, skipped: Skipped) -> Iterator[tuple[str, str | None, _Record]]:
        split = split_in(name)
        try:
            with (self.folder / name).open("rb") as opened:
                file = TFRecordFile(opened)
                for record in file.records():
                    if isinstance(record, RecordFault):
                        skipped.add(record.kind, f"{name}, byte {record.start}", is_document=False)
                    else:
                        yield f"{name}:{record.number}", split, _Record(name, file, record.features)
        except OSError:
            skipped.add(UNREADABLE, name, is_document=False)

    def _example(self, where: str, split: str | None, record: _Record) -> Iterator[Example | SkippedExample]:
        if record.features is None:
            raise BadRow("record that is no tf.train.Example")
        rows, names = self.corpus.rows, list(record.features)
        image = find_column(names, rows.image_column, _IMAGES)
        caption = find_column(names, rows.caption_column, _CAPTIONS)
        if image is None:
            raise BadRow(f"record without an image ({rows.image_column or 'see config.corpus.rows.image_column'})")
        if caption is None:
            raise BadRow(f"record without a caption ({rows.caption_column or 'see config.corpus.rows.caption_column'})")
        wanted = (caption, rows.language_column, *GROUP_COLUMNS, "status", *self.curator.columns)
        columns = dict.fromkeys(each if each in names else each.partition(".")[0] for each in wanted)
        row = {each: _value(record.file, record.features[each]) for each in columns if each in names}
        if (row.get("status") or "success") != "success":
            raise UnwantedRow("image that was not downloaded")
        found = _image(record, image)
        yield from captioned(where, split, row, found, captions_of(row, caption, rows), rows.captions)


def _image(record: _Record, name: str) -> ImageReference:
    values = (record.features or {}).get(name, [])
    if not values:
        raise BadRow("missing image")
    if len(values) > 1:
        raise BadRow("several images of one row")
    if not isinstance(values[0], BytesAt):
        raise BadRow("image that is no bytes")
    if not values[0].size:
        raise BadRow("empty image")
    return ImageReference(record.name, start=values[0].start, size=values[0].size)


def _value(file: TFRecordFile, values: list[Any]) -> Any:
    """A value, or the list of several; texts as they are written, and none where they are too long for any."""
    found = [_text(file, each) if isinstance(each, BytesAt) else each for each in values]
    return found[0] if len(found) == 1 else found or None


def _text(file: TFRecordFile, found: BytesAt) -> str | None:
    if found.size > LONGEST:
        return None
    return file.read(found.start, found.start + found.size).decode("utf-8", "surrogateescape")
