"""The steps of a run in a bucket, written and read by TensorStore, by processes that share no disk.

    CHECKPOINTS/STEP/state/NAME/         an array of the state in the zarr format, in chunks of at most 16 MiB
    CHECKPOINTS/STEP/written/00000.json  a process has written its part
    CHECKPOINTS/STEP/record.json         the step is complete; what the run keeps with it, and shapes of the arrays

Every process writes the chunks that its devices hold. Process 0 waits for all, writes the record, and deletes the steps
that are no longer kept, their records first. A step without a record is none.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore
from jaxtyping import Shaped

from cm3leon_jax.models.sharding import parameter_name
from cm3leon_jax.orbax_steps import CHUNK_BYTES, is_stack
from cm3leon_jax.storage import objects

_RECORD = "record.json"
_POLL_SECONDS = 0.5
_FACTORS = (2, 3, 5, 7, 11, 13)

log = logging.getLogger(__name__)


class BucketSteps:
    """The steps below an address."""

    def __init__(self, address: str, keep: int, read_only: bool) -> None:
        """Keeps the newest steps; deletes unfinished ones, except with `read_only`."""
        self._address, self._keep = address, keep
        self._writer: threading.Thread | None = None
        self._failure: Exception | None = None
        self._started: int | None = None
        self._complete: list[int] = []
        if not read_only and jax.process_index() == 0:
            for step in self._steps():
                if not self._is_complete(step):
                    objects.delete_below(f"{address}/{step}")
        self.look_again()

    def complete(self) -> list[int]:
        """The complete steps in increasing order."""
        return list(self._complete)

    def latest(self) -> int | None:
        """The newest step that is complete, or is being written by this process."""
        return max((*self._complete, *([] if self._started is None else [self._started])), default=None)

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts to write a step; returns as soon as the state is copied."""
        self.wait()
        parts = [_WrittenArray.of(path, array) for path, array in jax.tree_util.tree_leaves_with_path(state)]
        self._started = step
        self._writer = threading.Thread(target=self._write, args=(step, parts, meta), name="checkpoint", daemon=True)
        self._writer.start()

    def wait(self) -> None:
        """Returns when everything is written, by the other processes too."""
        if self._writer is not None:
            self._writer.join()
            self._writer, self._started = None, None
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            self.look_again()

    def _write(self, step: int, parts: list[_WrittenArray], meta: dict[str, Any]) -> None:
        folder, record = f"{self._address}/{step}", f"{self._address}/{step}/{_RECORD}"
        try:
            writes = [write for part in parts for write in part.write(f"{folder}/state")]
            for write in writes:
                write.result()
            objects.write_object_bytes(f"{folder}/written/{jax.process_index():05d}.json", b"{}")
            if jax.process_index() == 0:
                _wait_until(lambda: len(objects.list_objects(f"{folder}/written")) == jax.process_count())
                shapes = {part.name: part.shape for part in parts}
                objects.write_object_bytes(record, json.dumps({"meta": meta, "shapes": shapes}).encode())
                self._delete(self._finished()[: -self._keep])
            else:
                _wait_until(lambda: objects.find_object(record) is not None)
        except Exception as error:
            self._failure = error

    def meta(self, step: int) -> Any:
        """Reads what the run keeps with a step."""
        return self._record(step)["meta"]

    def shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """The shape of every array of a step by dotted name."""
        return {name: tuple(shape) for name, shape in self._record(step)["shapes"].items()}

    def read(self, step: int, abstract: Any, partial: bool) -> Any:
        """Reads the arrays of a step that `abstract` has onto its devices; each process reads what its devices hold."""
        found = jax.tree_util.tree_map_with_path(
            lambda path, leaf: _Reading(self._open(step, parameter_name(path)), leaf), abstract
        )
        return jax.tree.map(_Reading.result, found)

    def open_parameters(self, step: int) -> dict[str, tensorstore.TensorStore]:
        """Opens the parameters of a step by dotted name without reading."""
        names = [name for name in self._record(step)["shapes"] if name.startswith("parameters.")]
        return {name.removeprefix("parameters."): self._open(step, name) for name in names}

    def quarantine(self, step: int) -> Path:
        """Renames a damaged step so that it is no longer found; returns its new path."""
        number, aside = 1, f"damaged-{step}"
        while objects.list_objects(f"{self._address}/{aside}"):
            number += 1
            aside = f"damaged-{step}-{number}"
        # Another process may have been first.
        with contextlib.suppress(FileNotFoundError):
            objects.move_object(f"{self._address}/{step}/{_RECORD}", f"{self._address}/{aside}/{_RECORD}")
            objects.move_below(f"{self._address}/{step}", f"{self._address}/{aside}")
        return Path(aside)

    def look_again(self) -> None:
        """Notices steps that another process wrote or deleted."""
        self._complete = self._finished()

    def delete_after(self, step: int) -> None:
        """Deletes every later step."""
        if jax.process_index() == 0:
            self._delete([later for later in self._finished() if later > step])
        self._complete = [earlier for earlier in self._complete if earlier <= step]

    def close(self) -> None:
        """Nothing is kept open."""

    def _delete(self, steps: list[int]) -> None:
        for step in steps:
            objects.delete_object(f"{self._address}/{step}/{_RECORD}")
            objects.delete_below(f"{self._address}/{step}")

    def _steps(self) -> list[int]:
        return sorted(int(name) for name in objects.list_folder(self._address)[1] if name.isdecimal())

    def _is_complete(self, step: int) -> bool:
        return objects.find_object(f"{self._address}/{step}/{_RECORD}") is not None

    def _finished(self) -> list[int]:
        return [step for step in self._steps() if self._is_complete(step)]

    def _record(self, step: int) -> dict[str, Any]:
        content = objects.read_object_bytes(f"{self._address}/{step}/{_RECORD}")
        if content is None:
            raise FileNotFoundError(f"{self._address}/{step}/{_RECORD} is gone")
        found: dict[str, Any] = json.loads(content)
        return found

    def _open(self, step: int, name: str) -> tensorstore.TensorStore:
        spec = {"driver": "zarr", "kvstore": _store(f"{self._address}/{step}/state/{name}/")}
        return tensorstore.open(spec, open=True, read=True).result()


class _WrittenArray:
    """What this process writes of an array: a copy of the parts that its devices hold, if no other process does."""

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: Any,
        chunks: tuple[int, ...],
        shards: list[tuple[Any, np.ndarray]],
    ) -> None:
        self.name, self.shape = name, shape
        self._dtype, self._chunks, self._shards = dtype, chunks, shards

    @classmethod
    def of(cls, path: tuple[Any, ...], array: Any) -> _WrittenArray:
        name, shard_shape = parameter_name(path), array.sharding.shard_shape(array.shape)
        num_shards = math.prod(-(-size // part) for size, part in zip(array.shape, shard_shape, strict=True) if part)
        # Of several copies, each writes some of the arrays.
        writer = zlib.crc32(name.encode()) % max(1, array.sharding.num_devices // num_shards)
        own = [shard for shard in array.addressable_shards if shard.replica_id == writer]
        copies = [(shard.index, np.array(shard.data)) for shard in own]
        chunks = chunk_shape(shard_shape, array.dtype.itemsize, is_stack(path))
        return cls(name, array.shape, array.dtype, chunks, copies)

    def write(self, folder: str) -> list[Any]:
        """Starts to write; returns the futures."""
        if not self._shards:
            return []
        spec = {
            "driver": "zarr",
            "kvstore": _store(f"{folder}/{self.name}/"),
            "metadata": {"chunks": [max(1, size) for size in self._chunks], "compressor": {"id": "zstd", "level": 1}},
        }
        opened = tensorstore.open(spec, create=True, open=True, dtype=self._dtype, shape=self.shape).result()
        return [opened[index].write(data) for index, data in self._shards]


class _Reading:
    """An array whose parts for the devices of this process are being read."""

    def __init__(self, stored: tensorstore.TensorStore, leaf: jax.ShapeDtypeStruct) -> None:
        self._leaf = leaf
        indices = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
        self._parts = {
            _key(index): stored[index].read() for index in {_key(index): index for index in indices}.values()
        }

    def result(self) -> jax.Array:
        """Waits for the parts and puts them on the devices."""

        def part(index: Any) -> Shaped[np.ndarray, "..."]:
            return np.asarray(self._parts[_key(index)].result()).astype(self._leaf.dtype, copy=False)

        return jax.make_array_from_callback(self._leaf.shape, self._leaf.sharding, part)


def _key(index: tuple[slice, ...]) -> tuple[tuple[int | None, int | None], ...]:
    return tuple((part.start, part.stop) for part in index)


def chunk_shape(shard: tuple[int, ...], itemsize: int, is_stack: bool) -> tuple[int, ...]:
    """The chunks into which a shard is divided evenly: of at most `CHUNK_BYTES`, one layer of a stack in each."""
    sizes = list(shard)
    if is_stack and sizes:
        sizes[0] = 1
    while math.prod(sizes) * itemsize > CHUNK_BYTES:
        factors = [next((factor for factor in _FACTORS if size % factor == 0), None) for size in sizes]
        # The longest axis that can be divided into few parts; a chunk of one that cannot is larger.
        axis = max((axis for axis, factor in enumerate(factors) if factor), key=sizes.__getitem__, default=None)
        if axis is None:
            break
        sizes[axis] //= factors[axis]  # type: ignore[operator]
    return tuple(sizes)


def _store(address: str) -> dict[str, Any]:
    """TensorStore's name for an address."""
    scheme, _, path = address.partition("://")
    bucket, _, key = path.partition("/")
    if scheme == "gs":
        if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
            os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", emulator)
            os.environ.setdefault("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        return {"driver": "gcs", "bucket": bucket, "path": key}
    store: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": key}
    if "AWS_ACCESS_KEY_ID" in os.environ:
        # Without a look at files that are not there, which AWS's library reports as errors.
        store["aws_credentials"] = {"type": "environment"}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        store |= {"endpoint": endpoint}
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        store |= {"aws_region": region}
    return store


def _wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(_POLL_SECONDS)
