"""The steps of a run on a disk that all its processes share, written and read by Orbax."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore

from cm3leon_jax.models.sharding import parameter_name

# Upper bound on the bytes of a chunk of an array: reading any part of a chunk decompresses all of it.
CHUNK_BYTES = 16 << 20

# Orbax logs the exceptions of its threads, which `OrbaxSteps.wait` raises as well.
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


class _Manager(ocp.CheckpointManager):
    """Orbax's manager without its question to JAX's preemption service, which the training loop asks.

    The service takes the largest step asked for as this process's position. The training loop counts steps from where
    it started, Orbax from the first step of the run: a SIGTERM during a save would take effect that many steps late.
    """

    def reached_preemption(self, step: int) -> bool:
        """Returns False: the training loop decides when to save."""
        return False


class OrbaxSteps:
    """The steps in a folder."""

    def __init__(self, folder: Path, keep: int, read_only: bool) -> None:
        """Keeps the newest steps; with `read_only` also unfinished ones, which a running training may be writing."""
        policies = ocp.checkpoint_managers
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.preservation_policy.LatestN(keep),
            # The training loop decides which steps are saved.
            save_decision_policy=policies.save_decision_policy.FixedIntervalPolicy(1),
            enable_async_checkpointing=True,
            cleanup_tmp_directories=not read_only,
        )
        self._folder = folder
        self._manager = _Manager(folder, options=options)

    def complete(self) -> list[int]:
        """The complete steps in increasing order."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The newest complete step, if there is one."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts to write a step; returns as soon as the state is copied."""
        if not self._folder.is_dir():
            # Orbax would create it, and the run would go on without its other files.
            raise FileNotFoundError(f"{self._folder} is gone: it was deleted or renamed during the run")
        saved = ocp.args.PyTreeSave(state, save_args=jax.tree_util.tree_map_with_path(_save_args, state))
        self._manager.save(step, args=ocp.args.Composite(state=saved, meta=ocp.args.JsonSave(meta)))

    def wait(self) -> None:
        """Returns when everything is written."""
        self._manager.wait_until_finished()

    def meta(self, step: int) -> Any:
        """Reads the record of a step."""
        return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """The shape of every array of a step by dotted name."""
        tree = ocp.PyTreeCheckpointHandler().metadata(self._folder / str(step) / "state").tree
        return {parameter_name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}

    def read(self, step: int, abstract: Any, partial: bool) -> Any:
        """Reads the arrays of a step, or those that `abstract` has, onto its devices."""
        restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
        args = ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args, partial_restore=partial)
        return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]

    def open_parameters(self, step: int) -> dict[str, tensorstore.TensorStore]:
        """Opens the parameters of a step by dotted name without reading."""
        folder = self._folder / str(step) / "state"
        database = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
        opened: dict[str, tensorstore.TensorStore] = {}
        found = ocp.PyTreeCheckpointHandler().metadata(folder)
        for path, array in jax.tree_util.tree_leaves_with_path(found.tree["parameters"]):
            store = {**database, "path": f"{array.name}/"}
            spec = {"driver": "zarr3" if found.use_zarr3 else "zarr", "kvstore": store}
            opened[parameter_name(path)] = tensorstore.open(spec, read=True, open=True).result()
        return opened

    def quarantine(self, step: int) -> Path:
        """Renames a damaged step so that it is no longer found; returns its new path."""
        folder = self._folder / str(step)
        number, aside = 1, folder.with_name(f"damaged-{step}")
        while aside.exists():
            number += 1
            aside = aside.with_name(f"damaged-{step}-{number}")
        # Another process may have been first.
        with contextlib.suppress(FileNotFoundError):
            folder.rename(aside)
        return aside

    def look_again(self) -> None:
        """Notices steps that another process wrote or deleted."""
        self._manager.reload()

    def delete_after(self, step: int) -> None:
        """Deletes every later step."""
        for later in self.complete():
            if later > step:
                self._manager.delete(later)

    def close(self) -> None:
        self._manager.close()


def _save_args(path: tuple[Any, ...], array: Any) -> ocp.SaveArgs:
    """Bounds the chunks of an array; each layer of a stack has chunks of its own."""
    return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if is_stack(path) and array.ndim else ())


def is_stack(path: tuple[Any, ...]) -> bool:
    """Whether an array has the layers of a stack on its first axis."""
    return any(getattr(key, "key", None) == "blocks" for key in path)
