"""Writes checkpoints with Orbax while training continues, reads them back, and detects damaged ones.

A step's folder gets its name once it is complete. It holds sums over the bits of the state and a digest of `meta`,
which every restore compares, so that any damage to a file is noticed. A state with NaN or infinity is never saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from flax import nnx
from jaxtyping import Shaped

from cm3leon_jax.bit_sums import bit_sum_of_part, sums_and_finiteness
from cm3leon_jax.config import Config
from cm3leon_jax.errors import FailedSave, NotFinite, UserError
from cm3leon_jax.files import check_format, is_full_disk
from cm3leon_jax.models.sharding import parameter_name

# Version of what `Checkpoints.save` writes; 0.1 of this package wrote none.
FORMAT_VERSION = 2

# Upper bound on the bytes of a chunk of an array: reading any part of a chunk decompresses all of it.
_CHUNK_BYTES = 16 << 20

# Orbax logs the exceptions of its threads, which `Checkpoints.wait` raises as well.
logging.getLogger("absl").addFilter(lambda record: not (record.exc_info and "orbax" in record.pathname))


def _hide_late_reads(unraisable: sys.UnraisableHookArgs) -> None:
    """Shows an exception that nobody can catch, unless it is of a read or write that Orbax no longer waits for.

    When one read or write of a step fails, Orbax closes its event loop. TensorStore then prints one traceback from its
    own threads for each of the others, because it cannot report that they ended.
    """
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        _show_unraisable(unraisable)


_show_unraisable = sys.unraisablehook
sys.unraisablehook = _hide_late_reads


class DamagedCheckpoint(Exception):
    """A step that cannot be read, or differs from what was written; the text says which, and why."""


class _Manager(ocp.CheckpointManager):
    """Orbax's manager without its question to JAX's preemption service, which the training loop asks.

    The service takes the largest step asked for as this process's position. The training loop counts steps from where
    it started, Orbax from the first step of the run: a SIGTERM during a save would take effect that many steps late.
    """

    def reached_preemption(self, step: int) -> bool:
        """Returns False: the training loop decides when to save."""
        return False


class Checkpoints:
    """The checkpoints of one run: the training state, and `meta`, a JSON object that says what it belongs to.

    A context manager that waits, on exit, for what is still being written.
    """

    def __init__(self, folder: Path, keep: int, read_only: bool = False) -> None:
        """Keeps the newest steps; with `read_only` also unfinished ones, which a running training may be writing."""
        policies = ocp.checkpoint_managers
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.preservation_policy.LatestN(keep),
            # The training loop decides which steps are saved.
            save_decision_policy=policies.save_decision_policy.FixedIntervalPolicy(1),
            enable_async_checkpointing=True,
            cleanup_tmp_directories=not read_only,
        )
        self._folder = folder.resolve()
        self._manager = _Manager(self._folder, options=options)

    @property
    def steps(self) -> list[int]:
        """The complete steps in increasing order."""
        return sorted(self._manager.all_steps())

    @property
    def latest_step(self) -> int | None:
        """The newest complete step, if there is one."""
        return self._manager.latest_step()

    def folder(self, step: int) -> Path:
        return Path(self._manager.directory) / str(step)

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
        saved = ocp.args.PyTreeSave(plain, save_args=jax.tree_util.tree_map_with_path(_save_args, plain))
        with self._writing():
            if not self._folder.is_dir():
                # Orbax would create it, and the run would go on without its other files.
                raise FileNotFoundError(f"{self._folder} is gone: it was deleted or renamed during the run")
            self._manager.save(step, args=ocp.args.Composite(state=saved, meta=ocp.args.JsonSave(meta)))

    def wait(self) -> None:
        """Returns when everything is written; raises `FailedSave` if it cannot be."""
        with self._writing():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except jax.errors.JaxRuntimeError:
            # Another process is gone, which says nothing about the files.
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
        meta = self._restore(step, meta=ocp.args.JsonRestore())["meta"]
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
        folder = self.folder(step) / "state"
        database = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
        opened: dict[str, tensorstore.TensorStore] = {}
        with _reading(self.folder(step)):
            found = ocp.PyTreeCheckpointHandler().metadata(folder)
            for name, array in flat(found.tree["parameters"]).items():
                store = {**database, "path": f"{array.name}/"}
                spec = {"driver": "zarr3" if found.use_zarr3 else "zarr", "kvstore": store}
                opened[name] = tensorstore.open(spec, read=True, open=True).result()
        return opened

    def streamed_parameters(self, step: int, abstract_parameters: nnx.State) -> StreamedParameters:
        """Opens the parameters of a step to be read once, in parts, and compared with their sums."""
        self._check_shapes(step, {"parameters": _plain(abstract_parameters)})
        return StreamedParameters(self.folder(step), self.lazy_parameters(step), self.bit_sums(step))

    def quarantine(self, step: int) -> Path:
        """Renames a damaged step so that it is no longer found; returns its new path."""
        number, aside = 1, self.folder(step).with_name(f"damaged-{step}")
        while aside.exists():
            number += 1
            aside = aside.with_name(f"damaged-{step}-{number}")
        # Another process may have been first.
        with contextlib.suppress(FileNotFoundError):
            self.folder(step).rename(aside)
        self.look_again()
        return aside

    def look_again(self) -> None:
        """Notices steps that another process wrote or deleted."""
        self._manager.reload()

    def drop_after(self, step: int) -> None:
        """Deletes every later step."""
        self.wait()
        for later in self.steps:
            if later > step:
                self._manager.delete(later)

    def _read(self, step: int, abstract: Any, partial: bool = False) -> Any:
        self._check_shapes(step, abstract)
        restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
        args = ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args, partial_restore=partial)
        found, sums = self._restore(step, state=args)["state"], self.bit_sums(step)
        for name, (bits, is_finite) in sums_and_finiteness(found).items():
            if sums.get(name) != bits:
                raise DamagedCheckpoint(f"{self.folder(step)} has other bits in {name} than were written")
            if not is_finite:
                raise DamagedCheckpoint(f"{self.folder(step)} holds numbers in {name} that are not finite")
        return found

    def _check_shapes(self, step: int, abstract: Any) -> None:
        with _reading(self.folder(step)):
            stored = _shapes(ocp.PyTreeCheckpointHandler().metadata(self.folder(step) / "state").tree)
        for name, shape in _shapes(abstract).items():
            if stored.get(name) != shape:
                raise UserError(
                    f"the checkpoint {self.folder(step)} does not fit the model of this config ({name} is "
                    f"{stored.get(name, 'missing')} there and {shape} here); give the config it was trained with"
                )

    def _restore(self, step: int, **args: Any) -> Any:
        with _reading(self.folder(step)):
            return self._manager.restore(step, args=ocp.args.Composite(**args))

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        # A step is complete only when every process has written its part, and after an error the others may not do so.
        # A failed save has nothing more to wait for, and its threads never end.
        if (exception[0] and jax.process_count() > 1) or isinstance(exception[1], FailedSave):
            return
        self.wait()
        self._manager.close()


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

    A field of the config that the stored record lacks had its default. `may_change` are dotted names of fields, or of
    whole parts, that may differ; `what` begins the message, as in "RUN holds a run".
    """
    defaults = {"config": dataclasses.asdict(Config())} if "config" in before else {}
    stored, given = flat(defaults) | flat(before), flat(now)
    changes = {
        name: f"{name} was {stored[name]!r} and is {value!r}"
        for name, value in given.items()
        if name in stored and stored[name] != value
    }
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
    except jax.errors.JaxRuntimeError:
        # Another process is gone, which says nothing about the files.
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


def _save_args(path: tuple[Any, ...], array: Any) -> ocp.SaveArgs:
    """Bounds the chunks of an array; each layer of a stack has chunks of its own."""
    is_stack = any(getattr(key, "key", None) == "blocks" for key in path)
    return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,) if is_stack and array.ndim else ())


def _plain(state: Any) -> Any:
    """The arrays of a state in plain dicts and tuples, so that a checkpoint shows dotted names."""
    return jax.tree.map(
        lambda node: nnx.to_pure_dict(node) if isinstance(node, nnx.State) else node,
        state,
        is_leaf=lambda node: isinstance(node, nnx.State),
    )


def _like(abstract: Any, plain: Any) -> Any:
    return jax.tree.unflatten(jax.tree.structure(abstract), jax.tree.leaves(plain))
