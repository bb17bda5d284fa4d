"""Writes files in the forms that data sets are published in, and splits examples by what belongs together."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Of what belongs together, one in so many is held out.
_ONE_IN = 10
_ROWS_PER_GROUP = 256


def hashed(*key: object) -> int:
    """A number that follows from a key: the choices of this example."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, key)).encode()).digest()[:8], "big")


def chosen(values: Sequence[Any], *key: object) -> Any:
    """One of the values, by a key."""
    return values[hashed(*key) % len(values)]


def shuffled(values: Iterable[Any], *key: object) -> list[Any]:
    """The values in an order that follows from a key."""
    return sorted(values, key=lambda value: (hashed(*key, value), str(value)))


def is_held_out(group: str) -> bool:
    """Whether a group of examples is held out: all maps of a country, all variants of an emoji."""
    return hashed("split", group) % _ONE_IN == 0


def write_bytes(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def write_json(file: Path, content: Any) -> None:
    write_bytes(file, json.dumps(content, ensure_ascii=False).encode())


def write_json_lines(file: Path, rows: Iterable[Any]) -> None:
    write_bytes(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def write_table(file: Path, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Writes a parquet file as the `datasets` library does.

    Args:
      columns: the kind of each: text, number, fraction, image, texts, images, turns ({from, value}), pairs ({user,
        assistant, source}) or phrases (lists of numbers).
    """
    import pyarrow
    from pyarrow import parquet

    text, fraction = pyarrow.string(), pyarrow.float64()
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", text)])
    kinds = {
        "text": text,
        "number": pyarrow.int64(),
        "fraction": fraction,
        "image": image,
        "texts": pyarrow.list_(text),
        "images": pyarrow.list_(image),
        "turns": pyarrow.list_(pyarrow.struct([("from", text), ("value", text)])),
        "pairs": pyarrow.list_(pyarrow.struct([(name, text) for name in ("user", "assistant", "source")])),
        "phrases": pyarrow.list_(pyarrow.list_(fraction)),
    }
    schema = pyarrow.schema([(name, kinds[kind]) for name, kind in columns.items()])
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema), file, row_group_size=_ROWS_PER_GROUP)


def cell(content: bytes, name: str) -> dict[str, Any]:
    """An image in a cell of a table."""
    return {"bytes": content, "path": name}


def table_file(folder: Path, split: str) -> Path:
    """A table as the hub names it: data/train-00000-of-00001.parquet."""
    return folder / "data" / f"{split}-00000-of-00001.parquet"


def write_tar(file: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Writes a tar of files without times and owners, the same whenever it is written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
