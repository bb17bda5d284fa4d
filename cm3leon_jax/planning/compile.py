"""Compiles the training step for devices that are not there, in a process of its own.

The child writes the compiler's dumps into a folder, and ends as soon as it has the optimized program and its buffer
assignment: generating machine code, which would follow, takes most of the time and changes neither. It is a process
because a compilation can neither be stopped nor be survived when it crashes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cm3leon_jax import config_file
from cm3leon_jax.config import Config
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import write_json
from cm3leon_jax.planning import hlo, memory
from cm3leon_jax.planning.topology import Topology, coordinates, devices, parse

_POLL_SECONDS = 0.2
_TIMEOUT_SECONDS = 900.0
_VERDICT_SECONDS = 20.0
_LONGEST_MESSAGE = 300
_CONFIG, _PLACEMENT, _RESULT, _STDERR = "config.json", "placement.json", "result.json", "stderr"
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # There is no TPU with metadata, and none to lock.
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "PYTHONWARNINGS": "ignore",
    # The user's flags are for the devices of this host.
    "XLA_FLAGS": "",
}
# Suffixes of the dumps that matter: the program, and the addresses of its arrays.
_DUMPS = ("after_optimizations.txt", "after_optimizations-buffer-assignment.txt")


@dataclass(frozen=True)
class Placement:
    """Layout of the step on the devices."""

    # Size of each mesh axis, in the order of the mesh.
    mesh: dict[str, int]
    # Coordinates of each device of the flattened mesh, as in `topology.coordinates`.
    coordinates: list[list[int]]
    # Elements of each parameter on a chip before sharding over fsdp: those of one layer, and those outside the layers.
    weights: dict[str, int]
    # Bytes of parameters and optimizer state on a chip.
    state_bytes: int
    # Bytes of a checkpoint's arrays: the same state, once.
    checkpoint_bytes: int
    num_parameters: int
    compiler_options: dict[str, Any]


@dataclass(frozen=True)
class Compiled:
    """Output of the compiler for one step."""

    placement: Placement
    memory: memory.StepMemory
    # The optimized program; empty where it does not fit, which the compiler notices before it is done.
    program: str
    lower_seconds: float
    compile_seconds: float


class CompileError(Exception):
    """The compiler failed for a reason other than memory; the message is its first line."""


def compile_step(config: Config, topology: Topology, say: Callable[[str], None] = lambda _: None) -> Compiled:
    """Lowers and compiles the training step of `config` on `topology`; nothing of the run has to exist.

    `say` is called periodically with what is being done. Raises a `UserError` if the config does not fit the topology,
    and a `CompileError` if the compiler failed, or took too long.
    """
    with tempfile.TemporaryDirectory(prefix="cm3leon-plan-") as name:
        folder = Path(name)
        config_file.save(config, folder / _CONFIG)
        with (folder / _STDERR).open("wb") as stderr:
            # A session of its own: Ctrl-C reaches only the parent, which then ends the child.
            child = subprocess.Popen(
                [sys.executable, "-m", __name__, name, topology.name, str(os.getpid())],
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
            )
        try:
            _wait(child, folder, say)
        finally:
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        return _read(folder, topology, child.returncode)


def _wait(child: subprocess.Popen[bytes], folder: Path, say: Callable[[str], None]) -> None:
    started = time.perf_counter()
    while child.poll() is None:
        seconds = time.perf_counter() - started
        if seconds > _TIMEOUT_SECONDS:
            raise CompileError(f"still compiling after {_TIMEOUT_SECONDS:.0f} s: given up")
        stage = "compiling" if (folder / _PLACEMENT).exists() else "tracing the training step"
        say(f"{stage}, {seconds:.0f} s")
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_POLL_SECONDS)


def _read(folder: Path, topology: Topology, exit_code: int) -> Compiled:
    file = folder / _RESULT
    if not file.exists():
        lines = (folder / _STDERR).read_text(errors="replace").strip().splitlines()
        last = lines[-1] if lines else "no message"
        raise CompileError(f"the compiler ended with exit code {exit_code}: {last}")
    result: dict[str, Any] = json.loads(file.read_text())
    if "user_error" in result:
        raise UserError(result["user_error"])
    if "error" in result:
        raise CompileError(result["error"])
    placement = Placement(**json.loads((folder / _PLACEMENT).read_text()))
    program, assignment = (_dumped(folder / "dump", kind) for kind in _DUMPS)
    needed: int | None
    if assignment:
        needed, largest = memory.total_bytes(assignment), memory.largest(assignment, hlo.parse(program))
    else:
        needed, largest = memory.bytes_of_message(result.get("out_of_memory", "")), ()
    limit = topology.accelerator.hbm_bytes
    # The GPU's compiler does not judge; the TPU's does, and knows best how much it can allocate.
    fits = "out_of_memory" not in result and (topology.accelerator.is_tpu or (needed or 0) <= limit)
    step_memory = memory.StepMemory(needed, fits, largest)
    return Compiled(placement, step_memory, program, result["lower_seconds"], result["compile_seconds"])


def _dumped(dump: Path, suffix: str) -> str:
    """Reads a dump of the step, the largest if there are several programs; empty if there is none."""
    found = list(dump.glob(f"*{suffix}"))
    return max(found, key=lambda path: path.stat().st_size).read_text() if found else ""


# All functions below run in the child.


def _child(folder: Path, topology: Topology, parent: int) -> None:
    threading.Thread(target=_end_with_parent, args=(folder, parent), daemon=True).start()
    try:
        result = _lower_and_compile(folder, config_file.load(str(folder / _CONFIG), str(folder)), topology)
    except UserError as error:
        result = {"user_error": str(error)}
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {_first_line(error)}"}
    write_json(folder / _RESULT, result)
    # Without waiting for the threads of the compiler, which may still be at work.
    os._exit(0)


def _end_with_parent(folder: Path, parent: int) -> None:
    """Ends this process and removes its folder when the parent was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _lower_and_compile(folder: Path, config: Config, topology: Topology) -> dict[str, Any]:
    from cm3leon_jax.models.sharding import check_batch_divides, make_mesh
    from cm3leon_jax.training.step import TrainStep
    from cm3leon_jax.vocabulary import Vocabulary

    started = time.perf_counter()
    text, masks = config.vocabulary.num_text_tokens, config.vocabulary.num_masks
    # The step depends on its sizes alone, which follow from the config.
    vocabulary = Vocabulary.train((), text, config.image_tokenizer.codebook_size, masks, progress=False)
    mesh = make_mesh(config.mesh, devices(topology))
    check_batch_divides(config.batch.batch_size, mesh, config.train.num_microbatches)
    step = TrainStep(config, vocabulary, mesh)
    lowered = step.lowered()
    lowered_at = time.perf_counter()
    write_json(folder / _PLACEMENT, _placement(step, mesh, topology))
    result = _compile(lowered, folder / "dump", topology.accelerator.hbm_bytes)
    return result | {"lower_seconds": lowered_at - started, "compile_seconds": time.perf_counter() - lowered_at}


def _compile(lowered: Any, dump: Path, limit: int) -> dict[str, Any]:
    """Compiles in a thread; returns when it ends, or when the dumps are complete and within the `limit` of bytes."""
    result: dict[str, Any] = {}

    def work() -> None:
        try:
            # These options are added to those of the step itself.
            lowered.compile(compiler_options={"xla_dump_to": str(dump), "xla_dump_hlo_as_text": True})
        except Exception as error:
            text = str(error)
            key, value = ("out_of_memory", text) if memory.is_out_of_memory(text) else ("error", _first_line(error))
            result[key] = value

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    sizes: dict[str, int] = {}
    while worker.is_alive():
        worker.join(_POLL_SECONDS)
        before, sizes = sizes, {path.name: path.stat().st_size for path in dump.glob("*.txt")}
        has_both = all(any(name.endswith(kind) for name in sizes) for kind in _DUMPS)
        if has_both and sizes == before:
            if memory.total_bytes(_dumped(dump, _DUMPS[1])) > limit:
                # The compiler decides, and does so at once.
                worker.join(_VERDICT_SECONDS)
            break
    return result


def _placement(step: Any, mesh: Any, topology: Topology) -> dict[str, Any]:
    import jax

    from cm3leon_jax.models.embedding import sent_width
    from cm3leon_jax.models.sharding import name_of_array
    from cm3leon_jax.training.platforms import compiler_options

    weights: dict[str, int] = {}
    leaves = jax.tree_util.tree_leaves_with_path(step.abstract_state["parameters"])
    for path, leaf in leaves:
        name = name_of_array(path)
        tensor = mesh.shape["tensor"] if "tensor" in leaf.sharding.spec else 1
        layers = leaf.shape[0] if name.startswith("blocks.") else 1
        size = leaf.size // layers // tensor
        if name.endswith("_embedding"):
            rows = leaf.shape[0] // tensor
            size = size // rows * sent_width(rows)
        weights[name.removeprefix("blocks.") if layers > 1 else name] = size
    state = jax.tree.leaves(step.abstract_state)
    return {
        "mesh": dict(mesh.shape),
        "coordinates": [list(coordinates(topology, device)) for device in mesh.devices.flatten()],
        "weights": weights,
        "state_bytes": sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in state),
        "checkpoint_bytes": sum(leaf.dtype.itemsize * leaf.size for leaf in state),
        "num_parameters": sum(leaf.size for _, leaf in leaves),
        "compiler_options": compiler_options(mesh.devices.flat[0].device_kind, mesh.size),
    }


def _first_line(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    # Some name every device.
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[:_LONGEST_MESSAGE]} ..."


if __name__ == "__main__":
    _child(Path(sys.argv[1]), parse(sys.argv[2]), int(sys.argv[3]))
