"""TFRecord files of `tf.train.Example`, read without TensorFlow: the values of each, and where its bytes are.

A record is the length of its data (8 bytes, little-endian), the masked CRC-32C of these, the data, and theirs
(https://www.tensorflow.org/tutorials/load_data/tfrecord). The data is a protocol buffer, of `Example` and what is in it
(tensorflow/core/example/example.proto, feature.proto; https://protobuf.dev/programming-guides/encoding). Of bytes only
their position is read, so that an index of images costs little.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, NamedTuple

from cm3leon_jax.data.sources.skipped import printable
from cm3leon_jax.errors import UserError

CUT = "TFRecord file that is cut off"
DAMAGED = "TFRecord file that is damaged"

_HEADER = struct.Struct("<QI")
_FOOTER = 4
# First bytes of gzip, and of zlib at its levels.
_COMPRESSED = (b"\x1f\x8b", b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
# Bytes that are read at a time; what is longer is mostly skipped.
_AT_ONCE = 1 << 12
_VARINT, _EIGHT_BYTES, _DELIMITED, _FOUR_BYTES = 0, 1, 2, 5
# Of `Features` in `Example`, and of what is in them.
_FEATURES = _ENTRY = _KEY = _LIST = 1
_FEATURE = 2
_BYTES, _FLOATS, _INTEGERS = 1, 2, 3


class BytesAt(NamedTuple):
    """Bytes in a file: where they begin, and how many they are."""

    start: int
    size: int


class ExampleRecord(NamedTuple):
    """A record: its number in the file, and its values by name; None where it is no `tf.train.Example`."""

    number: int
    features: Mapping[str, list[BytesAt] | list[int] | list[float]] | None


class RecordFault(NamedTuple):
    """What is wrong with a file, and at which byte; from there on it is lost."""

    kind: str
    start: int


_Read = Callable[[int, int], bytes]


class _Malformed(Exception):
    """Data that is no protocol buffer of the expected form."""


class TFRecordFile:
    """A file that is open, of which pieces are read, a little ahead."""

    def __init__(self, file: IO[bytes]) -> None:
        self._descriptor, self._name = file.fileno(), file.name
        self._start, self._window = 0, b""

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from one position up to another, as far as there are any."""
        if not self._start <= start <= stop <= self._start + len(self._window):
            self._start, self._window = start, os.pread(self._descriptor, max(_AT_ONCE, stop - start), start)
        return self._window[start - self._start : stop - self._start]

    def records(self) -> Iterator[ExampleRecord | RecordFault]:
        """The records in their order.

        Raises:
          UserError: if the file is compressed, so that no image can be read by itself.
        """
        start = number = 0
        end = os.fstat(self._descriptor).st_size
        while start < end:
            header = self.read(start, min(end, start + _HEADER.size))
            if len(header) < _HEADER.size:
                yield RecordFault(CUT, start)
                return
            size, checksum = _HEADER.unpack(header)
            if _masked_crc32c(header[:8]) != checksum:
                if start == 0 and header.startswith(_COMPRESSED):
                    raise UserError(
                        f"{printable(self._name)} is compressed, so no image in it can be read by itself: write it "
                        "without compression"
                    )
                yield RecordFault(DAMAGED, start)
                return
            data = start + _HEADER.size
            if data + size + _FOOTER > end:
                yield RecordFault(CUT, start)
                return
            try:
                yield ExampleRecord(number, _features(self.read, data, data + size))
            except _Malformed:
                yield ExampleRecord(number, None)
            start, number = data + size + _FOOTER, number + 1


def _features(read: _Read, start: int, stop: int) -> dict[str, list[BytesAt] | list[int] | list[float]]:
    found: dict[str, list[BytesAt] | list[int] | list[float]] = {}
    for _, features in _messages(read, start, stop, _FEATURES):
        for _, entry in _messages(read, *features, _ENTRY):
            name, values = "", list[BytesAt]()
            for number, part in _messages(read, *entry, _KEY, _FEATURE):
                if number == _KEY:
                    try:
                        name = read(*part).decode()
                    except UnicodeDecodeError:
                        raise _Malformed from None
                else:
                    values = _values(read, *part)
            found[name] = values
    return found


def _values(read: _Read, start: int, stop: int) -> list:
    """The values of a feature, all of one type."""
    values: list = []
    for kind, (first, last) in _messages(read, start, stop, _BYTES, _FLOATS, _INTEGERS):
        values = []
        for number, wire, value in _fields(read, first, last):
            if number != _LIST:
                continue
            if kind == _BYTES and wire == _DELIMITED:
                values.append(BytesAt(value[0], value[1] - value[0]))
            elif kind == _FLOATS and wire in (_DELIMITED, _FOUR_BYTES):
                packed = read(*value)
                if len(packed) % 4:
                    raise _Malformed
                values += struct.unpack(f"<{len(packed) // 4}f", packed)
            elif kind == _INTEGERS and wire in (_DELIMITED, _VARINT):
                values += map(_signed, _varints(read, *value) if wire == _DELIMITED else [value])
            else:
                raise _Malformed
    return values


def _messages(read: _Read, start: int, stop: int, *numbers: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """The fields of these numbers, which are messages, bytes or texts: the number, and where each begins and ends."""
    for number, wire, value in _fields(read, start, stop):
        if number in numbers:
            if wire != _DELIMITED:
                raise _Malformed
            yield number, value


def _fields(read: _Read, at: int, stop: int) -> Iterator[tuple[int, int, Any]]:
    """The fields of a message: number, wire type, and its integer, or where its bytes begin and end."""
    while at < stop:
        key, at = _varint(read, at, stop)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(read, at, stop)
            yield number, wire, value
            continue
        if wire == _DELIMITED:
            size, at = _varint(read, at, stop)
        elif wire in (_FOUR_BYTES, _EIGHT_BYTES):
            size = 4 if wire == _FOUR_BYTES else 8
        else:
            raise _Malformed
        if not number or at + size > stop:
            raise _Malformed
        yield number, wire, (at, at + size)
        at += size


def _varints(read: _Read, at: int, stop: int) -> Iterator[int]:
    while at < stop:
        value, at = _varint(read, at, stop)
        yield value


def _varint(read: _Read, at: int, stop: int) -> tuple[int, int]:
    value = 0
    for shift, byte in enumerate(read(at, min(stop, at + 10))):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, at + shift + 1
    raise _Malformed


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _crc_of(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC32C = tuple(map(_crc_of, range(256)))


def _masked_crc32c(content: bytes) -> int:
    """CRC-32C (Castagnoli), rotated and moved by a constant, as TFRecord files have it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
