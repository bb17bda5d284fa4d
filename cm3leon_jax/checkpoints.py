"""Checkpoints: all that a run needs to go on, written by Orbax while training continues.

A step's folder gets its name when it is complete. Beside the state lie sums over its bits and over `meta`, which every
restore compares, so that a damaged file is noticed whatever it holds. Numbers that are not finite are never saved.
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
from cm3leon_jax.files import is_full_disk
from cm3leon_jax.models.config import ModelConfig
from cm3leon_jax.models.sharding import parameter_name

# Most bytes of the pieces in which an array is written: what must be decompressed to read any part of a piece.
_CHUNK_BYTES = 16 << 20


def _is_not_raised(record: logging.LogRecord) -> bool:
    """Whether a message has no exception of Orbax's threads in it, which is raised where the save is waited for."""
    return not (record.exc_info and "orbax" in record.pathname)


logging.getLogger("absl").addFilter(_is_not_raised)


def _without_late_reads(unraisable: sys.UnraisableHookArgs) -> None:
    """Shows an exception that nobody can catch, unless it is a read or write that Orbax no longer waits for.

    Where one read or write of a step fails, Orbax closes its event loop. TensorStore then has nowhere to say that the
    others ended, and prints that, one traceback each, from threads of its own.
    """
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        _show_unraisable(unraisable)


_show_unraisable = sys.unraisablehook
sys.unraisablehook = _without_late_reads


class DamagedCheckpoint(Exception):
    """A step that is there and cannot be read, or not as it was written; says which, and why."""


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, kept from asking JAX's preemption service whether to stop.

    The service takes the number that was last asked with for how far this process is. The training loop counts its
    steps from where it started, Orbax from the first step of the run, and also from a thread of its own: a SIGTERM
    beside a save would be answered as many steps too late as the run was old when it started.
    """

    def reached_preemption(self, step: int) -> bool:
        """Never: who saves knows why."""
        return False


class Checkpoints:
    """The checkpoints of one run: the training state, and `meta`, a JSON object that says what it belongs to.

    A context manager: leaving it waits for what is still being written.
    """

    def __init__(self, folder: Path, keep: int, read_only: bool = False) -> None:
        """
        Args:
          folder: of all steps.
          keep: how many of them, the newest.
          read_only: leaves alone what is unfinished there: a run may be writing it.
        """
        policies = ocp.checkpoint_managers
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.preservation_policy.LatestN(keep),
            # Which steps are saved is the training loop's to say.
            save_decision_policy=policies.save_decision_policy.FixedIntervalPolicy(1),
            enable_async_checkpointing=True,
            # What a killed process left unfinished would only take up room.
            cleanup_tmp_directories=not read_only,
        )
        self._folder = folder.resolve()
        self._manager = _Manager(self._folder, options=options)

    @property
    def steps(self) -> list[int]:
        """The complete steps, the newest last."""
        return sorted(self._manager.all_steps())

    @property
    def latest_step(self) -> int | None:
        """The newest complete step, if there is one."""
        return self._manager.latest_step()

    def folder(self, step: int) -> Path:
        """Where a step lies."""
        return Path(self._manager.directory) / str(step)

    def get_ready(self, state: Any) -> None:
        """Compiles what a save of such a state needs, so that the first one holds nothing up."""
        sums_and_finiteness(_plain(state))

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts to write a step; returns as soon as the state is copied.

        Raises:
          NotFinite: if an array of the state is not; nothing is written.
          FailedSave: if this step, or the one before, cannot be written.
        """
        if self.latest_step == step:
            return
        plain = _plain(state)
        looked_at = sums_and_finiteness(plain)
        if wrong := [name for name, (_, is_finite) in looked_at.items() if not is_finite]:
            raise NotFinite(f"{wrong[0]} is not finite at step {step:,}: nothing was saved")
        meta = meta | {"bit_sums": {name: bits for name, (bits, _) in looked_at.items()}}
        meta |= {"meta_sum": _json_sum(meta)}
        saved = ocp.args.PyTreeSave(plain, save_args=jax.tree_util.tree_map_with_path(_pieces, plain))
        with self._saving():
            if not self._folder.is_dir():
                # Orbax would make it anew, and the run would go on without what else was there.
                raise FileNotFoundError(f"{self._folder} is gone: it was deleted or renamed during the run")
            self._manager.save(step, args=ocp.args.Composite(state=saved, meta=ocp.args.JsonSave(meta)))

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except jax.errors.JaxRuntimeError:
            # Another process is gone; nothing is known of the files.
            raise
        # What Orbax and TensorStore raise for files that cannot be written has no class in common.
        except Exception as error:
            where = f"a checkpoint in {self._folder} cannot be written"
            raise FailedSave(
                f"{where} ({_in_short(error)}): mend that and run the same command again; it goes on from the last "
                "complete checkpoint that it finds"
            ) from error

    def meta(self, step: int) -> dict[str, Any]:
        """What the step belongs to.

        Raises:
          DamagedCheckpoint: if it cannot be read, or is not what was written.
        """
        meta = self._meta_with_sums(step)
        del meta["bit_sums"]
        return meta

    def _meta_with_sums(self, step: int) -> dict[str, Any]:
        meta = self._restore(step, meta=ocp.args.JsonRestore())["meta"]
        if not isinstance(meta, dict) or not isinstance(meta.get("bit_sums"), dict):
            raise DamagedCheckpoint(f"{self.folder(step)} has a record that is none of a checkpoint")
        # Checkpoints from before there was this sum have none.
        stored = meta.pop("meta_sum", None)
        if stored not in (None, _json_sum(meta)):
            raise DamagedCheckpoint(f"{self.folder(step)} has another record than was written")
        return meta

    def restore(self, step: int, abstract_state: Any) -> Any:
        """Reads a step onto the devices that the abstract state names, whatever devices it was written from.

        Raises:
          DamagedCheckpoint: if it cannot be read, or is not what was written.
          UserError: if it is whole, and of another shape.
        """
        return _like(abstract_state, self._read(step, _plain(abstract_state)))

    def restore_parameters(self, step: int, abstract_parameters: nnx.State) -> nnx.State:
        """The same for the parameters of a step alone."""
        found = self._read(step, {"parameters": _plain(abstract_parameters)}, partial=True)
        return _like(abstract_parameters, found["parameters"])

    def quarantine(self, step: int) -> Path:
        """Gives a step that is no use a name under which it is no longer found; returns it."""
        aside = self.folder(step).with_name(f"damaged-{step}")
        number = 1
        while aside.exists():
            number += 1
            aside = self.folder(step).with_name(f"damaged-{step}-{number}")
        # Another process may have been first.
        with contextlib.suppress(FileNotFoundError):
            self.folder(step).rename(aside)
        self.look_again()
        return aside

    def look_again(self) -> None:
        """Takes notice of steps that another process wrote or deleted."""
        self._manager.reload()

    def drop_after(self, step: int) -> None:
        """Deletes every step behind this one."""
        self.wait()
        for later in self.steps:
            if later > step:
                self._manager.delete(later)

    def lazy_parameters(self, step: int) -> dict[str, tensorstore.TensorStore]:
        """The parameters of a step by dotted name, all opened and none read: `array[i].read().result()` reads a part.

        A part costs the pieces it lies in; `save` gives every layer of a stack pieces of its own.
        """
        folder = self.folder(step) / "state"
        database = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
        opened: dict[str, tensorstore.TensorStore] = {}
        try:
            found = ocp.PyTreeCheckpointHandler().metadata(folder)
            for name, array in flat(found.tree["parameters"]).items():
                store = {**database, "path": f"{array.name}/"}
                spec = {"driver": "zarr3" if found.use_zarr3 else "zarr", "kvstore": store}
                opened[name] = tensorstore.open(spec, read=True, open=True).result()
        except Exception as error:
            raise _damaged(self.folder(step), error) from error
        return opened

    def streamed_parameters(self, step: int, abstract_parameters: nnx.State) -> StreamedParameters:
        """The same, held to shapes, and to the sums over their bits once all of them are read.

        Raises:
          DamagedCheckpoint: if they cannot be opened.
          UserError: if they are whole, and of other shapes.
        """
        self._refuse_another_shape(step, {"parameters": _plain(abstract_parameters)})
        return StreamedParameters(self.folder(step), self.lazy_parameters(step), self._meta_with_sums(step)["bit_sums"])

    def _read(self, step: int, abstract: Any, partial: bool = False) -> Any:
        self._refuse_another_shape(step, abstract)
        restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
        args = ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args, partial_restore=partial)
        found, sums = self._restore(step, state=args)["state"], self._meta_with_sums(step)["bit_sums"]
        for name, (bits, is_finite) in sums_and_finiteness(found).items():
            if sums.get(name) != bits:
                raise DamagedCheckpoint(f"{self.folder(step)} has other bits in {name} than were written")
            if not is_finite:
                raise DamagedCheckpoint(f"{self.folder(step)} holds numbers in {name} that are not finite")
        return found

    def _refuse_another_shape(self, step: int, abstract: Any) -> None:
        try:
            stored = _shapes(ocp.PyTreeCheckpointHandler().metadata(self.folder(step) / "state").tree)
        except Exception as error:
            raise _damaged(self.folder(step), error) from error
        for name, shape in _shapes(abstract).items():
            if stored.get(name) != shape:
                raise UserError(
                    f"the checkpoint {self.folder(step)} does not fit the model of this config ({name} is "
                    f"{stored.get(name, 'missing')} there and {shape} here); give the config it was trained with"
                )

    def _restore(self, step: int, **args: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**args))
        except jax.errors.JaxRuntimeError:
            # Another process is gone; nothing is known of the files.
            raise
        # What Orbax, TensorStore and the JSON reader raise for files that are cut off, missing or changed has no class
        # in common; the shapes were compared before.
        except Exception as error:
            raise _damaged(self.folder(step), error) from error

    def wait(self) -> None:
        """Returns when everything is written.

        Raises:
          FailedSave: if it cannot be.
        """
        with self._saving():
            self._manager.wait_until_finished()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is not None and jax.process_count() > 1:
            # A step is complete when every process has written its part, and the others may not go on.
            return
        if isinstance(exception[1], FailedSave):
            # It has nothing more to wait for, and its threads never end.
            return
        self.wait()
        self._manager.close()


class StreamedParameters:
    """The parameters of a step, each of which is read once, in parts."""

    def __init__(self, folder: Path, stored: Mapping[str, tensorstore.TensorStore], sums: Mapping[str, int]) -> None:
        """Takes the folder of the step, and the sums that it was written with."""
        self._folder, self._stored, self._written = folder, stored, sums
        self._read = dict.fromkeys(stored, 0)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every parameter, by name."""
        return {name: tuple(array.shape) for name, array in self._stored.items()}

    def read(self, name: str, start: tuple[int, ...], stop: tuple[int, ...]) -> Shaped[np.ndarray, "..."]:
        """A part of a parameter, between two places on its first axes.

        Raises:
          DamagedCheckpoint: if it cannot be read, or has values that are not finite.
        """
        index = tuple(slice(first, last) for first, last in zip(start, stop, strict=True))
        try:
            part = self._stored[name][index].read().result()
        except Exception as error:
            raise _damaged(self._folder, error) from error
        # No run saves such parameters.
        if not np.isfinite(part).all():
            raise DamagedCheckpoint(f"{self._folder} has values in parameters.{name} that are NaN or infinite")
        self._read[name] += bit_sum_of_part(part, start)
        return part

    def check(self) -> None:
        """Compares what was read with what was written, when all of it was read.

        Raises:
          DamagedCheckpoint: names a parameter with other bits.
        """
        for name, found in self._read.items():
            if self._written.get(f"parameters.{name}") != found % (1 << 32):
                raise DamagedCheckpoint(f"{self._folder} has other bits in parameters.{name} than were written")


def check_same_model(meta: Mapping[str, Any], config: Config, what: str, **others: tuple[Any, Any]) -> None:
    """Compares the model that a checkpoint holds with that of a config.

    Args:
      meta: the checkpoint's.
      config: what is asked for.
      what: names the checkpoint.
      others: further fields to compare: as stored, and as given.
    """
    trained, given = ({name: pair[side] for name, pair in others.items()} for side in (0, 1))
    trained |= {
        # A field that is newer than the checkpoint had its default.
        "model": dataclasses.asdict(ModelConfig()) | meta["config"]["model"],
        "batch": {"sequence_length": meta["config"]["batch"]["sequence_length"]},
    }
    given |= {"model": dataclasses.asdict(config.model), "batch": {"sequence_length": config.batch.sequence_length}}
    shapes_nothing = ("model.attention", "model.remat", "model.scan_layers", "model.compute_dtype")
    check_unchanged(trained, given, shapes_nothing, f"{what} was")


def check_unchanged(
    before: Mapping[str, Any], now: Mapping[str, Any], may_change: Collection[str], what: str
) -> list[str]:
    """Compares what `what` was made with and what is given now, field by field; returns the changes that may be.

    Args:
      before: the stored record, nested dicts as JSON gives them back; a field of its config that it lacks, since it is
        newer, had its default.
      now: the same for what is asked for now.
      may_change: dotted names of fields, or of whole parts, that may differ.
      what: begins the message, as in "RUN holds a run".
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
    """Nested dicts as one dict of dotted names; tuples as lists, as JSON gives them back."""
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


def _json_sum(value: Any) -> str:
    """A digest of what JSON makes of a value, whatever the order of its fields."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {parameter_name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _damaged(folder: Path, error: Exception) -> Exception:
    if is_full_disk(error):
        return error
    return DamagedCheckpoint(f"{folder} cannot be read ({_in_short(error)})")


def _in_short(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


def _pieces(path: tuple[Any, ...], array: Any) -> ocp.SaveArgs:
    """Bounds what a later read of a part must decompress; every layer of a stack stands alone."""
    is_stack = any(getattr(key, "key", None) == "blocks" for key in path)
    return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,) if is_stack and array.ndim else ())


def _plain(state: Any) -> Any:
    """The same arrays in plain dicts and tuples, named as a person would look for them."""
    return jax.tree.map(
        lambda leaf: leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf,
        jax.tree.map(
            lambda node: nnx.to_pure_dict(node) if isinstance(node, nnx.State) else node,
            state,
            is_leaf=lambda node: isinstance(node, nnx.State),
        ),
    )


def _like(abstract: Any, plain: Any) -> Any:
    return jax.tree.unflatten(jax.tree.structure(abstract), jax.tree.leaves(plain))
