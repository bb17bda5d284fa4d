"""Small files in the forms that data sets are published in."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.sources.config import AnnotationsConfig, FolderConfig, RowsConfig
from cm3leon_jax.data.sources.reading import SkippedExample, TaskReader, open_mixture
from cm3leon_jax.documents import Document, ImageSegment
from cm3leon_jax.images import encode_png

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(value: int, width: int = 8, height: int = 8) -> bytes:
    """A PNG of one gray value, which tells it from others."""
    return encode_png(np.full((height, width, 3), value, np.uint8))


def cell(value: int | None) -> dict[str, Any] | None:
    """An image as the `datasets` library writes it into a parquet file."""
    return None if value is None else {"bytes": png(value), "path": f"{value}.png"}


def write_table(file: Path, rows: list[dict[str, Any]], schema: dict[str, pa.DataType]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(list(schema.items()))), file, row_group_size=2)


def write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def write_images(folder: Path, *names: str, width: int = 8, height: int = 8) -> None:
    """Images of those names, gray values 0, 1, 2, ..."""
    for value, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(value, width, height))


def write_tar(file: Path, members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=form) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def opened(
    mixture: str, held_out_fraction: float = 0.0, rows: dict[str, Any] | None = None, **annotations: Any
) -> TaskReader:
    """The task that a mixture spells; whatever is skipped is allowed."""
    config = CorpusConfig(
        mixture=mixture,
        max_skipped_fraction=1.0,
        rows=RowsConfig(**(rows or {})),
        folder=FolderConfig(held_out_fraction=held_out_fraction),
        annotations=AnnotationsConfig(**annotations),
    )
    (task,) = open_mixture(config)
    return task


def documents(task: TaskReader, split: str = "train") -> list[Document]:
    return [each for each in task.documents(split) if isinstance(each, Document)]


def faults(task: TaskReader, split: str = "train") -> dict[str, str]:
    """What was skipped while examples were read: where, and why."""
    found = list(task.documents(split))
    return {task.where(split, n): each.reason for n, each in enumerate(found) if isinstance(each, SkippedExample)}


def shown(document: Document) -> tuple[str, ...]:
    """The template of a document and its segments, images as the gray value of their first pixel."""
    from cm3leon_jax.images import decode_image

    segments = (
        f"<{decode_image(each.encoded, 8, 1)[0, 0, 0]}>" if isinstance(each, ImageSegment) else each.text
        for each in document.segments
    )
    return (document.template, *segments)
