"""Reads the files of a resource bundle of Qt (.rcc), whose integers are big-endian.

The header names the start of a tree of nodes, of their names and of their data. A node has the offset of its name,
flags, and either the number of its children and the index of the first, or the offset of its data. In versions 2 and 3
of the format a node ends with a time.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from cm3leon_jax.errors import UserError

_MAGIC = b"qres"
_NODE_SIZES = {1: 14, 2: 22, 3: 22}
_COMPRESSED, _FOLDER, _ZSTANDARD = 1, 2, 4
# Before zlib's own bytes is the size of the content.
_SIZE_BYTES = 4


def read_bundle(file: Path) -> dict[str, bytes]:
    """The files of a bundle by their paths in it.

    Raises:
      UserError: if it cannot be read, or is no bundle.
    """
    try:
        content = file.read_bytes()
        if content[:4] != _MAGIC:
            raise UserError(f"{file} is no resource bundle of Qt: it does not begin with {_MAGIC.decode()!r}")
        return dict(_Bundle(content).files())
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})") from None
    except (struct.error, zlib.error, KeyError, ValueError) as error:
        raise UserError(f"{file} is no resource bundle that can be read ({error})") from None


class _Bundle:
    def __init__(self, content: bytes) -> None:
        self._content = content
        version, self._tree, self._data, self._names = self._unpacked(">4I", 4)
        self._node_size = _NODE_SIZES[version]

    def files(self, node: int = 0, folders: tuple[str, ...] = ()) -> Iterator[tuple[str, bytes]]:
        start = self._tree + node * self._node_size
        name_offset, flags = self._unpacked(">IH", start)
        # The root has no name.
        path = (*folders, self._name(name_offset)) if node else folders
        if flags & _FOLDER:
            count, first = self._unpacked(">II", start + 6)
            for child in range(first, first + count):
                if child <= node:
                    raise ValueError("a folder that is its own parent")
                yield from self.files(child, path)
        else:
            # Two numbers for the language are before the offset.
            (offset,) = self._unpacked(">I", start + 10)
            yield "/".join(path), self._file(self._data + offset, flags)

    def _name(self, offset: int) -> str:
        (length,) = self._unpacked(">H", self._names + offset)
        # A hash is before the letters.
        start = self._names + offset + 6
        return self._content[start : start + 2 * length].decode("utf-16-be")

    def _file(self, start: int, flags: int) -> bytes:
        (size,) = self._unpacked(">I", start)
        stored = self._content[start + 4 : start + 4 + size]
        if len(stored) < size:
            raise ValueError("it ends within a file")
        if flags & _ZSTANDARD:
            raise ValueError("a file in it is compressed by Zstandard, which is not read")
        return zlib.decompress(stored[_SIZE_BYTES:]) if flags & _COMPRESSED else stored

    def _unpacked(self, form: str, start: int) -> tuple[int, ...]:
        return struct.unpack_from(form, self._content, start)
