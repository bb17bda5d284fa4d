"""Writes TensorBoard's event files on the caller's thread, so that a full disk is noticed, and without TensorFlow."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8

from cm3leon_jax.images import encode_png
from cm3leon_jax.storage import mirror
from cm3leon_jax.storage.address import address_of
from cm3leon_jax.training.loggers import LoggedRun, tag

# Longest time for which curves are kept back.
_FLUSH_SECONDS = 30.0
# Bytes of a file in a bucket, which is sent again at every flush.
_LONGEST_IN_BUCKET = 1 << 22


class TensorBoard:
    """Writes WORKDIR/tensorboard: grouped curves, images, and the config of each start as text."""

    def __init__(self, run: LoggedRun) -> None:
        folder, first_step = run.workdir / "tensorboard" / run.name, run.first_step
        folder.mkdir(parents=True, exist_ok=True)
        # Starts within the same second must not share a file.
        suffix = f"{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{first_step}"
        self._first_path, self._number = folder / f"events.out.tfevents.{suffix}", 0
        self._open()
        self._flushed = time.monotonic()
        # A start: what other files have from this step on is no longer shown.
        self._write(first_step + 1, _bytes(7, _integer(1, 1)))
        text = f"```json\n{json.dumps(run.config, indent=2, ensure_ascii=False)}\n```"
        string_type = 7
        tensor = _integer(1, string_type) + _bytes(2, _bytes(2, _integer(1, 1))) + _bytes(8, text.encode())
        self._write_value(
            first_step, "config/text_summary", _bytes(8, tensor) + _bytes(9, _bytes(1, _bytes(1, b"text")))
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._write_value(step, tag(name), b"\x15" + np.float32(value).tobytes())
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def write_image(self, step: int, name: str, pixels: UInt8[np.ndarray, "R1 R2 C"]) -> None:
        height, width, channels = pixels.shape
        shape = _integer(1, height) + _integer(2, width) + _integer(3, channels)
        self._write_value(step, name, _bytes(4, shape + _bytes(4, encode_png(pixels))))
        self.flush()

    def flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._flushed = time.monotonic()
        if address_of(self._path):
            mirror.publish(self._path, self._path)
            if self._file.tell() > _LONGEST_IN_BUCKET:
                # An object cannot be appended to: what is written next goes to a file of its own.
                self._file.close()
                self._number += 1
                self._open()

    def close(self) -> None:
        self.flush()
        self._file.close()

    def _open(self) -> None:
        part = f".{self._number}" if self._number else ""
        self._path = self._first_path.with_name(self._first_path.name + part)
        self._file = self._path.open("ab")
        self._write(0, _bytes(3, b"brain.Event:2"))

    def _write_value(self, step: int, name: str, content: bytes) -> None:
        self._write(step, _bytes(5, _bytes(1, _bytes(1, name.encode()) + content)))

    def _write(self, step: int, content: bytes) -> None:
        event = b"\x09" + struct.pack("<d", time.time()) + _integer(2, step) + content
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked_crc(length) + event + _masked_crc(event))


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _crc_entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC_TABLE = [_crc_entry(byte) for byte in range(256)]


def _masked_crc(data: bytes) -> bytes:
    """CRC-32C, masked as TFRecord files have it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
