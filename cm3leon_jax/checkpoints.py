"""Writes checkpoints while training continues, reads them back, and detects damaged ones.

A step is found once it is complete, on a disk (orbax_steps.py) or in a bucket (bucket_steps.py). It holds sums over
the bits of the state and a digest of `meta`, which every restore compares, so that any damage to a file is noticed. A
state with NaN or infinity is never saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore
from flax import nnx
from jaxtyping import Shaped

from cm3leon_jax.bit_sums import bit_sum_of_part, sums_and_finiteness
from cm3leon_jax.bucket_steps import BucketSteps
from cm3leon_jax.config import Config
from cm3leon_jax.errors import FailedSave, NotFinite, RestartError, UserError
from cm3leon_jax.files import check_format, is_full_disk
from cm3leon_jax.models.sharding import parameter_name
from cm3leon_jax.orbax_steps import OrbaxSteps
from cm3leon_jax.storage.address import address_of

# Version of what `Checkpoints.save` writes; 0.1 of this package wrote none.
FORMAT_VERSION = 2


class DamagedCheckpoint(Exception):
    """A step that cannot be read, or differs from what was written; the text says which, and why."""


class Checkpoints:
    """The checkpoints of one run: the training state, and `meta`, a JSON object that says what it belongs to.

    A context manager that waits, on exit, for what is still being written.
    """

    def __init__(self, folder: Path, keep: int, read_only: bool = False) -> None:
        """Keeps the newest steps; with `read_only` also unfinished ones, which a running training may be writing."""
        self._folder = folder.resolve()
        address = address_of(self._folder)
        self._steps = BucketSteps(address, keep, read_only) if address else OrbaxSteps(self._folder, keep, read_only)

    @property
    def steps(self) -> list[int]:
        """The complete steps in increasing order."""
        return self._steps.complete()

    @property
    def latest_step(self) -> int | None:
        """The newest complete step, if there is one."""
        return self._steps.latest()

    def folder(self, step: int) -> Path:
        return self._folder / str(step)

    def get_ready(self, state: Any) -> None:
        """Compiles what a save of such a state needs, so that the first one is not slower."""
        sums_and_finiteness(_plain(state))

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts to write a step; returns as soon as the state is copied.

        Raises `NotFinite`, having written nothing, or `FailedSave` if this step or the one before cannot be written.
        """
        if self.latest_step == step:
            return
        plain = _plain(state)
        found = sums_and_finiteness(plain)
        if wrong := [name for name, (_, is_finite) in found.items() if not is_finite]:
            raise NotFinite(f"{wrong[0]} is not finite at step {step:,}: nothing was saved")
        meta = meta | {"format_version": FORMAT_VERSION, "bit_sums": {name: bits for name, (bits, _) in found.items()}}
        meta |= {"meta_sum": _digest(meta)}
        with self._writing():
            self._steps.save(step, plain, meta)

    def wait(self) -> None:
        """Returns when everything is written; raises `FailedSave` if it cannot be."""
        with self._writing():
            self._steps.wait()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (jax.errors.JaxRuntimeError, RestartError):
            # Another process is gone, or a bucket cannot be reached, which says nothing about the files.
            raise
        # Orbax and TensorStore raise many types for files that cannot be written.
        except Exception as error:
            raise FailedSave(
                f"a checkpoint in {self._folder} cannot be written ({_in_short(error)}): fix that and run the same "
                "command again; it goes on from the last complete checkpoint that it finds"
            ) from error

    def meta(self, step: int) -> dict[str, Any]:
        """Reads the `meta` of a step, if it is what was written and by this format; else raises `DamagedCheckpoint`."""
        meta = self._stored_meta(step)
        return {name: value for name, value in meta.items() if name not in ("bit_sums", "format_version")}

    def bit_sums(self, step: int) -> dict[str, int]:
        """Reads the sums over the bits of a step's arrays, by name."""
        return self._stored_meta(step)["bit_sums"]

    def _stored_meta(self, step: int) -> dict[str, Any]:
        with _reading(self.folder(step)):
            meta = self._steps.meta(step)
        if not isinstance(meta, dict) or not isinstance(meta.get("bit_sums"), dict):
            raise DamagedCheckpoint(f"{self.folder(step)} has a record that is none of a checkpoint")
        check_format(meta, FORMAT_VERSION, f"the checkpoint {self.folder(step)}", "train again, in another folder")
        if meta.pop("meta_sum", None) != _digest(meta):
            raise DamagedCheckpoint(f"{self.folder(step)} has another record than was written")
        return meta

    def restore(self, step: int, abstract_state: Any) -> Any:
        """Reads a step onto the devices that the abstract state names, whatever devices it was written from.

        Raises `DamagedCheckpoint` if it differs from what was written.
        """
        return _like(abstract_state, self._read(step, _plain(abstract_state)))

    def restore_parameters(self, step: int, abstract_parameters: nnx.State) -> nnx.State:
        """Reads the parameters of a step alone, like `restore`."""
        found = self._read(step, {"parameters": _plain(abstract_parameters)}, partial=True)
        return _like(abstract_parameters, found["parameters"])

    def lazy_parameters(self, step: int) -> dict[str, tensorstore.TensorStore]:
        """Opens the parameters of a step by dotted name without reading: `array[i].read().result()` reads a part.

        Reading a part costs the chunks it overlaps; `save` never puts two layers of a stack in one chunk.
        """
        with _reading(self.folder(step)):
            return self._steps.open_parameters(step)

    def streamed_parameters(self, step: int, abstract_parameters: nnx.State) -> StreamedParameters:
        """Opens the parameters of a step to be read once, in parts, and compared with their sums."""
        self._check_shapes(step, {"parameters": _plain(abstract_parameters)})
        return StreamedParameters(self.folder(step), self.lazy_parameters(step), self.bit_sums(step))

    def quarantine(self, step: int) -> Path:
        """Renames a damaged step so that it is no longer found; returns its new path."""
        aside = self._steps.quarantine(step)
        self.look_again()
        return aside

    def look_again(self) -> None:
        """Notices steps that another process wrote or deleted."""
        self._steps.look_again()

    def drop_after(self, step: int) -> None:
        """Deletes every later step."""
        self.wait()
        self._steps.delete_after(step)

    def _read(self, step: int, abstract: Any, partial: bool = False) -> Any:
        self._check_shapes(step, abstract)
        with _reading(self.folder(step)):
            found = self._steps.read(step, abstract, partial)
        sums = self.bit_sums(step)
        for name, (bits, is_finite) in sums_and_finiteness(found).items():
            if sums.get(name) != bits:
                raise DamagedCheckpoint(f"{self.folder(step)} has other bits in {name} than were written")
            if not is_finite:
                raise DamagedCheckpoint(f"{self.folder(step)} holds numbers in {name} that are not finite")
        return found

    def _check_shapes(self, step: int, abstract: Any) -> None:
        with _reading(self.folder(step)):
            stored = self._steps.shapes(step)
        for name, shape in _shapes(abstract).items():
            if stored.get(name) != shape:
                raise UserError(
                    f"the checkpoint {self.folder(step)} does not fit the model of this config ({name} is "
                    f"{stored.get(name, 'missing')} there and {shape} here); give the config it was trained with"
                )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        # A step is complete only when every process has written its part, and after an error the others may not do so.
        # A failed save has nothing more to wait for, and its threads never end.
        if (exception[0] and jax.process_count() > 1) or isinstance(exception[1], FailedSave):
            return
        self.wait()
        self._steps.close()


class StreamedParameters:
    """The parameters of a step, each of which is read once, in parts."""

    def __init__(self, folder: Path, stored: Mapping[str, tensorstore.TensorStore], sums: Mapping[str, int]) -> None:
        self._folder, self._stored, self._sums = folder, stored, sums
        self._sums_read = dict.fromkeys(stored, 0)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter by name."""
        return {name: tuple(array.shape) for name, array in self._stored.items()}

    def read(self, name: str, start: tuple[int, ...], stop: tuple[int, ...]) -> Shaped[np.ndarray, "..."]:
        """Reads the part of a parameter between two positions on its first axes."""
        index = tuple(slice(first, last) for first, last in zip(start, stop, strict=True))
        with _reading(self._folder):
            part = self._stored[name][index].read().result()
        if not np.isfinite(part).all():
            raise DamagedCheckpoint(f"{self._folder} has values in parameters.{name} that are NaN or infinite")
        self._sums_read[name] += bit_sum_of_part(part, start)
        return part

    def check(self) -> None:
        """Raises `DamagedCheckpoint` unless what was read, all of it by now, is what was written."""
        for name, found in self._sums_read.items():
            if self._sums.get(f"parameters.{name}") != found % (1 << 32):
                raise DamagedCheckpoint(f"{self._folder} has other bits in parameters.{name} than were written")


def check_same_model(meta: Mapping[str, Any], config: Config, what: str, **others: tuple[Any, Any]) -> None:
    """Compares the model of a checkpoint, by its `meta`, with that of a config.

    `what` names the checkpoint; `others` are further fields to compare: as stored, and as given.
    """
    model, batch = dataclasses.asdict(config.model), {"sequence_length": config.batch.sequence_length}
    trained, given = ({name: pair[side] for name, pair in others.items()} for side in (0, 1))
    trained |= {"config": meta["config"]}
    given |= {"config": {"model": model, "batch": batch}}
    no_shapes = ("attention", "remat", "scan_layers", "compute_dtype")
    check_unchanged(trained, given, [f"config.model.{name}" for name in no_shapes], f"{what} was")


def check_unchanged(
    before: Mapping[str, Any], now: Mapping[str, Any], may_change: Collection[str], what: str
) -> list[str]:
    """Compares the stored values of a run with the given ones, field by field; returns the allowed changes as text.

    A field of the config that the stored record lacks had its default, and so has a field of an architecture that one
    of both lacks. `may_change` are dotted names of fields, or of whole parts, that may differ; `what` begins the
    message, as in "RUN holds a run".
    """
    defaults = {"config": dataclasses.asdict(Config())} if "config" in before else {}
    stored, given = flat(defaults) | flat(before), flat(now)
    compared = [name for name in given if name in stored]
    if "architecture" in before:
        compared += [name for name in sorted(stored.keys() ^ given.keys()) if name.startswith("architecture.")]
    pairs = {name: (stored.get(name, "the default"), given.get(name, "the default")) for name in compared}
    changes = {name: f"{name} was {was!r} and is {value!r}" for name, (was, value) in pairs.items() if was != value}
    allowed = [name for name in changes if any(f"{name}.".startswith(f"{part}.") for part in may_change)]
    if refused := [change for name, change in changes.items() if name not in allowed]:
        raise UserError(f"{what} made with other values: {'; '.join(refused)}; use those again, or another folder")
    return [changes[name] for name in allowed]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict of dotted names; tuples become lists, as in JSON."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[prefix + name] = list(value) if isinstance(value, tuple) else value
    return result


def abstract_on(abstract: Any, shardings: Any) -> Any:
    """Shapes and types with the shardings that a restored state is to have."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings
    )


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turns what a file that is cut off, missing or changed raises into `DamagedCheckpoint`."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, RestartError):
        # Another process is gone, or a bucket cannot be reached, which says nothing about the files.
        raise
    # Orbax, TensorStore and the JSON reader raise many types.
    except Exception as error:
        if is_full_disk(error):
            raise
        raise DamagedCheckpoint(f"{folder} cannot be read ({_in_short(error)})") from error


def _in_short(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


def _digest(value: Any) -> str:
    """Hashes a value as JSON, whatever the order of its fields."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {parameter_name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _plain(state: Any) -> Any:
    """The arrays of a state in plain dicts and tuples, so that a checkpoint shows dotted names."""
    return jax.tree.map(
        lambda node: nnx.to_pure_dict(node) if isinstance(node, nnx.State) else node,
        state,
        is_leaf=lambda node: isinstance(node, nnx.State),
    )


def _like(abstract: Any, plain: Any) -> Any:
    return jax.tree.unflatten(jax.tree.structure(abstract), jax.tree.leaves(plain))
