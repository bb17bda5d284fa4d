"""Compiles the training step for devices that are not there, in a process of its own.

The parent asks with `compile_step`, which starts `python -m cm3leon_jax.planning.compile FOLDER`. That child writes the
compiler's own dumps into FOLDER and ends as soon as the two that matter are there, the optimized program and how its
memory is laid out: what would follow, making machine code, takes the most time and changes neither. A process of its
own, because a compilation can neither be stopped nor survived when it crashes.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
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

from cm3leon_jax.config import Config
from cm3leon_jax.errors import UserError
from cm3leon_jax.planning import hlo, memory
from cm3leon_jax.planning.topology import Topology, coordinates, devices

_POLL_SECONDS = 0.2
_VERDICT_SECONDS = 20.0
_LONGEST_MESSAGE = 300
# What the compiler leaves of a step: the program, and where in memory its arrays lie.
_DUMPS = ("after_optimizations.txt", "after_optimizations-buffer-assignment.txt")


@dataclass(frozen=True)
class Placement:
    """How the step lies on the devices."""

    # Ways of each mesh axis, in the order of the mesh.
    mesh: dict[str, int]
    # Where each device of the flattened mesh is: (slice or host, place along each side).
    coordinates: list[list[int]]
    # Parameters of one layer, and those outside of the layers: name -> elements on a chip if fsdp did not split them.
    weights: dict[str, int]
    # Bytes on a chip of parameters and optimizer, which stay there between steps.
    state_bytes: int
    num_parameters: int
    compiler_options: dict[str, Any]


@dataclass(frozen=True)
class Compiled:
    """What the compiler said of one step."""

    placement: Placement
    memory: memory.Memory
    # The optimized program; empty where it does not fit, which the compiler finds out before it is done.
    program: str
    lower_seconds: float
    compile_seconds: float


class CompileError(Exception):
    """The compiler refused for a reason other than memory; the message is its first line."""


def compile_step(
    config: Config, topology: Topology, say: Callable[[str], None] = lambda _: None, timeout: float = 900.0
) -> Compiled:
    """Lowers and compiles the training step of `config` on `topology`.

    Args:
      config: the run; nothing of it has to be on disk.
      topology: the devices.
      say: is told now and then what is being done.
      timeout: seconds after which the compilation is given up.

    Raises:
      UserError: the config does not fit the topology.
      CompileError: the compiler failed, or took too long.
    """
    with tempfile.TemporaryDirectory(prefix="cm3leon-plan-") as folder:
        return _compile_in(Path(folder), config, topology, say, timeout)


def _compile_in(
    folder: Path, config: Config, topology: Topology, say: Callable[[str], None], timeout: float
) -> Compiled:
    (folder / "request.pickle").write_bytes(pickle.dumps((config, topology, os.getpid())))
    started = time.perf_counter()
    with (folder / "stderr").open("wb") as stderr:
        # A session of its own, so that Ctrl-C reaches the parent alone, which then ends the child.
        child = subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder)],
            env={**os.environ, **_environment(topology)},
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            start_new_session=True,
        )
    try:
        while child.poll() is None:
            seconds = time.perf_counter() - started
            if seconds > timeout:
                raise CompileError(f"still compiling after {timeout:.0f} s: given up")
            stage = "compiling" if (folder / "placement.json").exists() else "tracing the training step"
            say(f"{stage}, {seconds:.0f} s")
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_POLL_SECONDS)
    finally:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return _read(folder, topology, child.returncode)


def _environment(topology: Topology) -> dict[str, str]:
    settings = {
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # There is no TPU whose metadata could be asked for, and nothing to lock where none is used.
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "PYTHONWARNINGS": "ignore",
    }
    # What the user set for the host's own devices is not for these.
    return settings | {"XLA_FLAGS": ""}


def _read(folder: Path, topology: Topology, exit_code: int) -> Compiled:
    file = folder / "result.json"
    if not file.exists():
        lines = (folder / "stderr").read_text(errors="replace").strip().splitlines()
        last = lines[-1] if lines else "no message"
        raise CompileError(f"the compiler ended with exit code {exit_code}: {last}")
    result: dict[str, Any] = json.loads(file.read_text())
    if "mistake" in result:
        raise UserError(result["mistake"])
    if "error" in result:
        raise CompileError(result["error"])
    placement = Placement(**json.loads((folder / "placement.json").read_text()))
    program, assignment = (_dumped(folder / "dump", kind) for kind in _DUMPS)
    needed: int | None
    if assignment:
        needed, largest = memory.total_bytes(assignment), memory.largest(assignment, hlo.parse(program))
    else:
        needed, largest = memory.bytes_of_message(result.get("out_of_memory", "")), ()
    limit = topology.accelerator.hbm_bytes
    # The GPU's compiler does not judge; the TPU's does, and knows best what it can give out.
    fits = "out_of_memory" not in result and (topology.accelerator.is_tpu or (needed or 0) <= limit)
    return Compiled(
        placement, memory.Memory(needed, fits, largest), program, result["lower_seconds"], result["compile_seconds"]
    )


def _dumped(dump: Path, suffix: str) -> str:
    """The dump of that kind of the step, the largest if there are several programs; empty if there is none."""
    found = list(dump.glob(f"*{suffix}"))
    return max(found, key=lambda path: path.stat().st_size).read_text() if found else ""


# From here on: the child.


def _child(folder: Path) -> None:
    config, topology, parent = pickle.loads((folder / "request.pickle").read_bytes())
    threading.Thread(target=_end_with_parent, args=(folder, parent), daemon=True).start()
    try:
        result = _lower_and_compile(folder, config, topology)
    except UserError as error:
        result = {"mistake": str(error)}
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {_first_line(error)}"}
    _write(folder / "result.json", result)
    # Past the threads of the compiler, which may still be at work.
    os._exit(0)


def _end_with_parent(folder: Path, parent: int) -> None:
    """Ends this process, and removes its folder, when the one that asked is gone without a word."""
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
    # Only its sizes are in the step, and those follow from the config.
    vocabulary = Vocabulary.train((), text, config.image_tokenizer.codebook_size, masks, progress=False)
    mesh = make_mesh(config.mesh, devices(topology))
    check_batch_divides(config.batch.batch_size, mesh, config.train.num_microbatches)
    step = TrainStep(config, vocabulary, mesh)
    lowered = step.lowered()
    lowered_at = time.perf_counter()
    _write(folder / "placement.json", _placement(step, mesh, topology))
    timing = {"lower_seconds": lowered_at - started}
    dump = folder / "dump"
    result = _compile(lowered, dump, topology.accelerator.hbm_bytes)
    return result | timing | {"compile_seconds": time.perf_counter() - lowered_at}


def _compile(lowered: Any, dump: Path, limit: int) -> dict[str, Any]:
    """Compiles in a thread; returns when it ends, or as soon as the dumps are whole and say that `limit` is kept."""
    result: dict[str, Any] = {}

    def work() -> None:
        try:
            # Beside those that the step has itself.
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
                # The last word is the compiler's, and it comes at once.
                worker.join(_VERDICT_SECONDS)
            break
    return result


def _placement(step: Any, mesh: Any, topology: Topology) -> dict[str, Any]:
    import jax

    from cm3leon_jax.models.embedding import sent_width
    from cm3leon_jax.models.sharding import parameter_name
    from cm3leon_jax.training.platforms import compiler_options

    weights: dict[str, int] = {}
    leaves = jax.tree_util.tree_leaves_with_path(step.abstract_state["parameters"])
    for path, leaf in leaves:
        name = parameter_name(path).removesuffix(".value")
        ways = mesh.shape["tensor"] if "tensor" in leaf.sharding.spec else 1
        layers = leaf.shape[0] if name.startswith("blocks.") else 1
        size = leaf.size // layers // ways
        if name.endswith("_embedding"):
            rows = leaf.shape[0] // ways
            size = size // rows * sent_width(rows)
        weights[name.removeprefix("blocks.") if layers > 1 else name] = size
    state_bytes = sum(
        leaf.dtype.itemsize * _product(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(step.abstract_state)
    )
    return {
        "mesh": dict(mesh.shape),
        "coordinates": [list(coordinates(topology, device)) for device in mesh.devices.flatten()],
        "weights": weights,
        "state_bytes": state_bytes,
        "num_parameters": sum(leaf.size for _, leaf in leaves),
        "compiler_options": compiler_options(mesh.devices.flat[0].device_kind, mesh.size),
    }


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


def _first_line(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    # Some name every device.
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[:_LONGEST_MESSAGE]} ..."


def _write(path: Path, value: Any) -> None:
    # Whole or absent: the parent looks at any moment.
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value))
    partial.replace(path)


if __name__ == "__main__":
    _child(Path(sys.argv[1]))
