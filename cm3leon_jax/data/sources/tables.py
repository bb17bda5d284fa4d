"""Parquet and Arrow files whose cells hold images, as the `datasets` library writes them: {bytes, path}, or lists."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cm3leon_jax.data.sources.skipped import printable
from cm3leon_jax.data.sources.unchanged import MissingImage, UnreadableFile
from cm3leon_jax.errors import UserError

TABLE_SUFFIXES = (".parquet", ".arrow", ".feather", ".ipc")

# Rows of images, and of texts, that are in memory at a time.
_IMAGES_AT_ONCE = 16
_TEXTS_AT_ONCE = 1024
# Columns that are open at a time.
_OPEN_AT_ONCE = 8
# Bytes of a column that are read at a time; without such a bound a whole row group is, which may be gigabytes.
_BUFFER = 1 << 20

UNREADABLE_TABLE = "table that cannot be read"


class UnreadableTable(Exception):
    """A file that is no table, or no longer from some row on."""


def read_rows(
    file: Path, columns: Sequence[str], form: str, optional: Sequence[str] = (), start: int = 0
) -> Iterator[dict[str, Any]]:
    """The rows of a table without the bytes of their images, of which no more is known than that they are there.

    Args:
      columns: those that are read, which the file must have.
      form: what a file with such columns is, for messages.
      optional: those that are read where the file has them.
      start: the first row that is read.

    Raises:
      UserError: if it lacks a column, or cannot be read.
    """
    try:
        table = open_table(file)
        names = table.schema.names
        if missing := [name for name in columns if name not in names]:
            raise UserError(f"{printable(str(file))} has no column {missing[0]}: {form} has {', '.join(columns)}")
        yield from table.rows([*columns, *(name for name in optional if name in names)], start)
    except UnreadableTable as error:
        raise UserError(f"{printable(str(file))} is no parquet file that can be read ({error})") from None


class Table(abc.ABC):
    """A file of rows; what it reads of a column is bounded."""

    # Of pyarrow.
    schema: Any

    @abc.abstractmethod
    def num_rows(self) -> int:
        """How many rows it has; an `UnreadableTable` if that cannot be found."""

    @abc.abstractmethod
    def rows(self, names: Sequence[str], start: int = 0) -> Iterator[dict[str, Any]]:
        """The values of some columns, row by row, without the bytes of images: {} stands for one that may be there.

        Groups of rows before `start` are not read.

        Raises:
          UnreadableTable: where they cannot be read any more.
        """

    @abc.abstractmethod
    def group(self, row: int) -> tuple[int, int]:
        """The group that a row is read with, and the group's first row."""

    @abc.abstractmethod
    def blocks(self, column: str, group: int) -> Iterator[Any]:
        """The cells of a column from a group's first row on, in arrays of a few; at least those of the group."""


def open_table(file: Path, buffer: int = 0) -> Table:
    """Opens a parquet file, or an Arrow file or stream.

    Args:
      buffer: bytes of a parquet file's column that are read at a time; 0 for all of a row group.

    Raises:
      UnreadableTable: if it is none of them.
    """
    import pyarrow

    try:
        with file.open("rb") as opened:
            start = opened.read(4)
        if start == b"FEA1":
            raise UnreadableTable("Feather of version 1, which is deprecated: write it again")
        is_parquet = start == b"PAR1" or file.suffix == ".parquet"
        return _ParquetTable(file, buffer) if is_parquet else _ArrowTable(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise UnreadableTable(str(error)) from None


def image_columns(schema: Any) -> list[str]:
    """The columns of a table whose cells hold bytes, alone or with a path, or lists of such."""
    return [field.name for field in schema if _holds_bytes(field.type)]


def texts_of(array: Any) -> list[Any]:
    """The values of an array; what is not UTF-8 stays recognizable, and a value that Python does not have is None."""
    try:
        return list(array.to_pylist())
    # Of texts that are not UTF-8, and times out of range.
    except (ValueError, OverflowError):
        return [_value(scalar) for scalar in array]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        if hasattr(scalar, "as_buffer"):
            return scalar.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")
        return [_value(each) for each in scalar.values] if hasattr(scalar, "values") else None
    except (ValueError, OverflowError):
        return None


def _holds_bytes(kind: Any) -> bool:
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind):
        return _holds_bytes(kind.value_type)
    if types.is_struct(kind):
        return any(field.name == "bytes" and _is_bytes(field.type) for field in kind)
    return _is_bytes(kind)


def _is_bytes(kind: Any) -> bool:
    return str(kind) in ("binary", "large_binary", "binary_view")


class _ParquetTable(Table):
    def __init__(self, file: Path, buffer: int) -> None:
        from pyarrow import parquet

        self._file = parquet.ParquetFile(file, buffer_size=buffer, pre_buffer=False)
        self.schema = self._file.schema_arrow

    def num_rows(self) -> int:
        return int(self._file.metadata.num_rows)

    def rows(self, names: Sequence[str], start: int = 0) -> Iterator[dict[str, Any]]:
        if start < self.num_rows():
            group, first = self.group(start)
            yield from itertools.islice(self._rows(names, group), start - first, None)

    def _rows(self, names: Sequence[str], first_group: int) -> Iterator[dict[str, Any]]:
        import pyarrow

        leaves = [self._file.schema.column(number).path for number in range(len(self._file.schema))]
        light = [leaf for name in names for leaf in self._without_bytes(name, leaves)]
        # Of a column that is bytes alone nothing is read.
        unread: dict[str, Any] = {name: {} for name in names if name not in {leaf.partition(".")[0] for leaf in light}}
        try:
            groups = list(range(first_group, self._file.metadata.num_row_groups))
            for batch in self._file.iter_batches(batch_size=_TEXTS_AT_ONCE, columns=light, row_groups=groups):
                columns = [texts_of(column) for column in batch.columns]
                if not columns:
                    yield from ({**unread} for _ in range(batch.num_rows))
                for values in zip(*columns, strict=True):
                    yield {**dict(zip(batch.schema.names, values, strict=True)), **unread}
        except (OSError, pyarrow.ArrowException) as error:
            raise UnreadableTable(str(error)) from None

    def _without_bytes(self, name: str, leaves: list[str]) -> list[str]:
        if _is_bytes(self.schema.field(name).type):
            return []
        own = [leaf for leaf in leaves if leaf == name or leaf.startswith(f"{name}.")]
        return [leaf for leaf in own if not leaf.endswith(".bytes")]

    def group(self, row: int) -> tuple[int, int]:
        first, metadata = 0, self._file.metadata
        for group in range(metadata.num_row_groups):
            size = metadata.row_group(group).num_rows
            if row < first + size:
                return group, first
            first += size
        raise UnreadableFile("table that was edited meanwhile")

    def blocks(self, column: str, group: int) -> Iterator[Any]:
        batches = self._file.iter_batches(batch_size=_IMAGES_AT_ONCE, row_groups=[group], columns=[column])
        return (batch.column(0) for batch in batches)


class _ArrowTable(Table):
    """An Arrow file or stream, mapped into memory: of its batches only what is asked for is read."""

    def __init__(self, file: Path) -> None:
        self._file = file
        with self._reader() as reader:
            self.schema = reader.schema

    def _reader(self, names: Sequence[str] | None = None) -> Any:
        import pyarrow

        mapped = pyarrow.memory_map(str(self._file))
        fields = None if names is None else [self.schema.get_field_index(name) for name in names]
        options = pyarrow.ipc.IpcReadOptions(included_fields=fields)
        is_file = mapped.read(6) == b"ARROW1"
        mapped.seek(0)
        return (pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(mapped, options=options)

    def _batches(self, names: Sequence[str]) -> Iterator[Any]:
        reader = self._reader(names)
        if hasattr(reader, "num_record_batches"):
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            yield from reader

    def num_rows(self) -> int:
        import pyarrow

        try:
            return sum(batch.num_rows for batch in self._batches(self.schema.names[:1]))
        except (OSError, pyarrow.ArrowException) as error:
            raise UnreadableTable(str(error)) from None

    def rows(self, names: Sequence[str], start: int = 0) -> Iterator[dict[str, Any]]:
        import pyarrow

        try:
            for batch in self._batches(names):
                if start >= batch.num_rows:
                    start -= batch.num_rows
                    continue
                batch, start = batch.slice(start), 0
                columns = {name: _light(batch.column(name)) for name in names}
                for values in zip(*columns.values(), strict=True):
                    yield dict(zip(columns, values, strict=True))
        except (OSError, pyarrow.ArrowException) as error:
            raise UnreadableTable(str(error)) from None

    def group(self, row: int) -> tuple[int, int]:
        return 0, 0

    def blocks(self, column: str, group: int) -> Iterator[Any]:
        return (batch.column(0) for batch in self._batches([column]))


def _light(array: Any) -> list[Any]:
    """The values of an array; of one that holds bytes {} for each that is there, or a list of such."""
    if not _holds_bytes(array.type):
        return texts_of(array)
    if hasattr(array, "value_lengths"):
        return [None if length is None else [{}] * length for length in array.value_lengths().to_pylist()]
    return [{} if is_there else None for is_there in array.is_valid().to_pylist()]


class TableImages:
    """Reads images of the cells of tables; cheap where rows are asked for in their order."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._columns: dict[tuple[str, str], _Column] = {}

    def image(self, file: str, column: str, row: int, number: int) -> bytes:
        """The bytes of an image file in a cell, of several images one; or of the file that a cell without bytes names.

        Raises:
          UnreadableFile: if there is none, or the table cannot be read.
        """
        import pyarrow

        try:
            if (file, column) not in self._columns:
                # Several files are open where an example reaches from one into the next.
                self._columns = dict(list(self._columns.items())[1 - _OPEN_AT_ONCE :])
                self._columns[file, column] = _Column(self._folder / file, column)
            cell = self._columns[file, column].cell(row)
        except (OSError, UnreadableTable, pyarrow.ArrowException):
            raise UnreadableFile(UNREADABLE_TABLE) from None
        if isinstance(cell, list):
            cell = cell[number] if number < len(cell) else None
        found = cell.get("bytes") if isinstance(cell, dict) else cell
        if found is None and isinstance(cell, dict) and cell.get("path"):
            found = self._named(file, cell["path"])
        if not isinstance(found, bytes) or not found:
            raise MissingImage
        return found

    def _named(self, file: str, name: Any) -> bytes | None:
        try:
            return (self._folder / file).parent.joinpath(name).read_bytes()
        except (OSError, ValueError, TypeError):
            return None


class _Column:
    """A column of a table, of which a few rows are in memory."""

    def __init__(self, file: Path, column: str) -> None:
        self._table, self._column = open_table(file, _BUFFER), column
        self._group, self._blocks = -1, iter(())
        self._start = self._stop = 0
        self._cells: Any = None

    def cell(self, row: int) -> Any:
        if not self._start <= row < self._stop:
            group, first = self._table.group(row)
            if group != self._group or row < self._start:
                self._blocks = self._table.blocks(self._column, group)
                self._group, self._stop = group, first
            while self._stop <= row:
                if (cells := next(self._blocks, None)) is None:
                    raise UnreadableFile("table that was edited meanwhile")
                self._cells = cells
                self._start, self._stop = self._stop, self._stop + len(cells)
        return self._cells[row - self._start].as_py()
