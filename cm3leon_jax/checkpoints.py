"""Checkpoints: all that a run needs to go on, written by Orbax while training continues."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore
from flax import nnx

from cm3leon_jax.config import Config, ModelConfig
from cm3leon_jax.errors import UserError

# Most bytes of the pieces in which an array is written: what must be decompressed to read any part of a piece.
_CHUNK_BYTES = 16 << 20


class Checkpoints:
    """The checkpoints of one run: the training state, and `meta`, a JSON object that says what it belongs to.

    A context manager: leaving it waits for what is still being written.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        policies = ocp.checkpoint_managers
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.preservation_policy.LatestN(keep),
            # Which steps are saved is the training loop's to say.
            save_decision_policy=policies.save_decision_policy.FixedIntervalPolicy(1),
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

    @property
    def latest_step(self) -> int | None:
        """The newest complete step, if there is one."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts to write a step; returns as soon as the state is copied."""
        if self.latest_step != step:
            plain = _plain(state)
            saved = ocp.args.PyTreeSave(plain, save_args=jax.tree_util.tree_map_with_path(_pieces, plain))
            self._manager.save(step, args=ocp.args.Composite(state=saved, meta=ocp.args.JsonSave(meta)))

    def meta(self, step: int) -> dict[str, Any]:
        """What the step belongs to."""
        return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def restore(self, step: int, abstract_state: Any) -> Any:
        """Reads a step onto the devices that the abstract state names, whatever devices it was written from."""
        return _like(abstract_state, self._read(step, _plain(abstract_state)))

    def restore_parameters(self, step: int, abstract_parameters: nnx.State) -> nnx.State:
        """Reads only the parameters of a step."""
        found = self._read(step, {"parameters": _plain(abstract_parameters)}, partial=True)
        return _like(abstract_parameters, found["parameters"])

    def lazy_parameters(self, step: int) -> dict[str, tensorstore.TensorStore]:
        """The parameters of a step by dotted name, all opened and none read: `array[i].read().result()` reads a part.

        A part costs the pieces it lies in; `save` gives every layer of a stack pieces of its own.
        """
        folder = Path(self._manager.directory) / str(step) / "state"
        found = ocp.PyTreeCheckpointHandler().metadata(folder)
        database = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
        opened: dict[str, tensorstore.TensorStore] = {}
        for name, array in flat(found.tree["parameters"]).items():
            store = {**database, "path": f"{array.name}/"}
            spec = {"driver": "zarr3" if found.use_zarr3 else "zarr", "kvstore": store}
            opened[name] = tensorstore.open(spec, read=True, open=True).result()
        return opened

    def _read(self, step: int, abstract: Any, partial: bool = False) -> Any:
        restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
        args = ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args, partial_restore=partial)
        try:
            return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]
        except (ValueError, KeyError) as error:
            raise UserError(
                f"the checkpoint {self._manager.directory}/{step} does not fit the model of this config "
                f"({str(error).splitlines()[0]}); give the config it was trained with"
            ) from None

    def wait(self) -> None:
        """Returns when everything is written."""
        self._manager.wait_until_finished()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self.wait()
        self._manager.close()


@contextlib.contextmanager
def trained_checkpoint(workdir: Path, keep: int) -> Iterator[tuple[Checkpoints, int]]:
    """The checkpoints of a run, and the newest complete step; refuses a folder that has none."""
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"no checkpoints in {workdir}: run `cm3leon train` first, or give its --workdir")
    with Checkpoints(workdir / "checkpoints", keep) as checkpoints:
        step = checkpoints.latest_step
        if step is None:
            raise UserError(f"no complete checkpoint in {workdir}/checkpoints: run `cm3leon train` first")
        yield checkpoints, step


def refuse_another_model(meta: Mapping[str, Any], config: Config, what: str, **others: tuple[Any, Any]) -> None:
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
    refuse_changes(trained, given, shapes_nothing, f"{what} was")


def refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any], may_change: Collection[str], what: str) -> None:
    """Compares what `what` was made with and what is given now, field by field.

    Args:
      before: the stored record, nested dicts as JSON gives them back; a field of its config that it lacks, since it is
        newer, had its default.
      now: the same for what is asked for now.
      may_change: dotted names of fields, or of whole parts, that may differ.
      what: begins the message, as in "RUN holds a run".
    """
    defaults = {"config": dataclasses.asdict(Config())} if "config" in before else {}
    stored, given = flat(defaults) | flat(before), flat(now)
    changed = [
        f"{name} was {stored[name]!r} and is {value!r}"
        for name, value in given.items()
        if name in stored and stored[name] != value and not any(f"{name}.".startswith(f"{p}.") for p in may_change)
    ]
    if changed:
        raise UserError(f"{what} made with other values: {'; '.join(changed)}; use those again, or another folder")


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
