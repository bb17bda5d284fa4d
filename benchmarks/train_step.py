"""A training step: ours beside PyTorch's on `transformers` OPT, from the same weights and tokens, in one run.

    python benchmarks/train_step.py --model=10M                      # on a CPU: float32, 8 x 512
    python benchmarks/train_step.py --model=25M --batch=2 --length=2048
    python benchmarks/train_step.py --model=350M                     # on a GPU: bfloat16 products, float32 parameters
    python benchmarks/train_step.py --model=1.3B --batch=2 --remat=full

10M, 25M and 50M run on the CPU; 350M, 760M and 1.3B on one GPU. Both sides have the same architecture (norms first,
relu, tied head, learned positions, no biases), AdamW with weight decay, clipping by the global norm, and batch. The
peer is timed as it is ("eager") and under torch.compile, with SDPA and fused AdamW; the better one is what we compare
with. With --remat=full both keep only each layer's input; the other policies are ours alone.

Each side has a process of its own. On a CPU they take turns; on a GPU they follow one another, so that each has the
memory to itself. Losses of the first two steps are compared: the second sees the first one's gradients and update.
On a CPU ours keeps freed memory, as `cm3leon train` does; with --keep-memory the peer does too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY, CLIP_NORM = 1e-4, (0.9, 0.95), 1e-8, 0.1, 1.0
WEIGHT_STD = 0.02
NUM_CODES, NUM_MASKS = 8192, 8
OURS = "ours"
# Largest difference of losses, relative: products in bfloat16 round differently.
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}
KEEP_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}


@dataclass(frozen=True)
class Size:
    """A model to measure, and its batch if none is given."""

    num_layers: int
    model_dim: int
    num_heads: int
    num_text_tokens: int
    batch: int
    length: int
    device: str


# Names are parameters without embeddings, in round numbers; batches on a GPU are for 80 GB without remat.
SIZES = {
    "10M": Size(6, 384, 6, 8178, 8, 512, "cpu"),
    "25M": Size(8, 512, 8, 8178, 2, 2048, "cpu"),
    "50M": Size(12, 576, 9, 8178, 4, 1024, "cpu"),
    "350M": Size(24, 1024, 16, 56320, 8, 4096, "gpu"),
    "760M": Size(24, 1536, 16, 56320, 4, 4096, "gpu"),
    "1.3B": Size(24, 2048, 32, 56320, 4, 4096, "gpu"),
}


@dataclass(frozen=True)
class Task:
    """What every process is told."""

    size: Size
    batch: int
    length: int
    remat: str
    attention: str
    scan: bool
    dtype: str
    folder: Path


@dataclass(frozen=True)
class Turn:
    """What one turn of a side took: seconds a step, and the losses of its steps."""

    wall: float
    cpu: float
    losses: tuple[float, ...]


def tokens_of(task: Task, vocabulary_size: int) -> Any:
    """Random ids, [batch, length + 1]; none of them is padding."""
    import numpy as np

    return np.random.default_rng(0).integers(4, vocabulary_size, (task.batch, task.length + 1), dtype=np.int32)


def ours(task: Task, _: str) -> tuple[Callable[[int], list[float]], Callable[[], dict[str, Any]]]:
    """Our step; leaves its first weights and its config for the peer."""
    import jax
    import numpy as np

    from cm3leon_jax import accelerators
    from cm3leon_jax.config import Config
    from cm3leon_jax.data.batches.batch import Batch
    from cm3leon_jax.data.batches.config import BatchConfig
    from cm3leon_jax.models.config import MeshConfig, ModelConfig
    from cm3leon_jax.models.cpu import keep_freed_memory
    from cm3leon_jax.models.flops import flops_per_token
    from cm3leon_jax.models.sharding import make_mesh, on_mesh
    from cm3leon_jax.training.config import OptimizerConfig, TrainConfig
    from cm3leon_jax.training.step import TrainStep
    from cm3leon_jax.vocabulary import Vocabulary

    keep_freed_memory()
    size = task.size
    config = Config(
        model=ModelConfig(
            num_layers=size.num_layers,
            model_dim=size.model_dim,
            num_heads=size.num_heads,
            compute_dtype=task.dtype,
            remat=task.remat,
            attention=task.attention,
            scan_layers=task.scan,
            init_std=WEIGHT_STD,
            position_init_std=WEIGHT_STD,
        ),
        batch=BatchConfig(batch_size=task.batch, sequence_length=task.length, packing="concat_then_split"),
        optimizer=OptimizerConfig(
            peak_learning_rate=LEARNING_RATE,
            warmup_steps=0,
            final_learning_rate_fraction=1.0,
            beta1=BETAS[0],
            beta2=BETAS[1],
            epsilon=EPSILON,
            weight_decay=WEIGHT_DECAY,
            clip_norm=CLIP_NORM,
        ),
        train=TrainConfig(num_tokens=1e6 * task.batch * task.length),
    )
    vocabulary = Vocabulary.train(["text"], size.num_text_tokens, NUM_CODES, NUM_MASKS, progress=False)
    mesh = make_mesh(MeshConfig(replica=1, fsdp=1), jax.devices()[:1])
    compiled = TrainStep(config, vocabulary, mesh)
    state = compiled.init()
    state["parameters"] = without_zeros(state["parameters"])
    leave_weights(state["parameters"], config.model, vocabulary.size, task)
    ids = tokens_of(task, vocabulary.size)
    places = np.broadcast_to(np.arange(task.length, dtype=np.int32), (task.batch, task.length))
    zeros = np.zeros_like(places)
    batch = on_mesh(
        Batch(
            tokens=ids[:, :-1],
            targets=ids[:, 1:],
            weights=np.ones_like(places, np.float32),
            positions=np.array(places),
            document_start=zeros,
            image_positions=zeros,
        ),
        mesh,
    )

    def run(num_steps: int) -> list[float]:
        nonlocal state
        losses = []
        for _ in range(num_steps):
            state, metrics = compiled.step(state, batch)
            losses.append(metrics["loss"])
        return [float(loss) for loss in losses]

    def facts() -> dict[str, Any]:
        device = jax.devices()[0]
        chip = accelerators.by_device_kind(device.device_kind)
        memory = device.memory_stats() or {}
        return {
            "memory": memory.get("peak_bytes_in_use", _resident_bytes()),
            "device": device.device_kind,
            "peak_flops": chip.bfloat16_flops if chip else 0.0,
            "flops_per_token": flops_per_token(config.model, vocabulary.size, task.length),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(state["parameters"])),
            "vocabulary": vocabulary.size,
        }

    return run, facts


def without_zeros(parameters: Any) -> Any:
    """The parameters, random where they start at zero: a comparison of losses must see every layer."""
    import jax

    leaves, structure = jax.tree.flatten(parameters)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    filled = [
        leaf if leaf.any() else jax.device_put(WEIGHT_STD * jax.random.normal(key, leaf.shape), leaf.sharding)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, filled)


def leave_weights(parameters: Any, config: Any, vocabulary_size: int, task: Task) -> None:
    """Writes the weights under OPT's names, and the config of an OPT to hold them."""
    import jax
    import numpy as np

    from cm3leon_jax.huggingface.families.opt import FAMILY
    from cm3leon_jax.models.sharding import parameter_name

    weights = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(parameters)[0]:
        # The last of a path is the array in its variable.
        name, array = parameter_name(path).removesuffix(".value"), np.asarray(leaf)
        tensor = FAMILY.tensors[name]
        for key, part in zip(tensor.names(array.shape), array if tensor.is_stacked else [array], strict=True):
            weights[key] = tensor.from_ours(part)
    np.savez(task.folder / "weights.npz", **weights)
    assert FAMILY.write_config is not None
    described = FAMILY.write_config(config, vocabulary_size, task.length, "float32")
    (task.folder / "config.json").write_text(json.dumps(described))


def peer(task: Task, name: str) -> tuple[Callable[[int], list[float]], Callable[[], dict[str, Any]]]:
    """PyTorch's step on the weights that ours left."""
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    gpu = task.size.device == "gpu"
    device = torch.device("cuda" if gpu else "cpu")
    config = OPTConfig.from_json_file(task.folder / "config.json")
    config._attn_implementation, config.use_cache = "sdpa", False
    model = OPTForCausalLM(config)
    read_weights(model, task)
    model = model.to(device).train()
    if task.remat == "full":
        model.gradient_checkpointing_enable()
    # What stays float32 is float32 on both sides.
    torch.backends.cuda.matmul.allow_tf32 = False
    optimizer = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY, fused=True
    )
    ids = torch.from_numpy(tokens_of(task, config.vocab_size)).long().to(device)
    tokens, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def loss_of(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=task.dtype == "bfloat16"):
            logits = model(input_ids=tokens).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    loss_function = torch.compile(loss_of) if name == "compile" else loss_of

    def run(num_steps: int) -> list[float]:
        losses = []
        for _ in range(num_steps):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_function(tokens, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            losses.append(loss.detach())
        found = [loss.item() for loss in losses]
        if gpu:
            torch.cuda.synchronize()
        return found

    def facts() -> dict[str, Any]:
        return {"memory": torch.cuda.max_memory_allocated() if gpu else _resident_bytes()}

    return run, facts


def read_weights(model: Any, task: Task) -> None:
    """Puts the weights of the folder into OPT."""
    import numpy as np
    import torch

    with np.load(task.folder / "weights.npz") as weights, torch.no_grad():
        parameters = dict(model.named_parameters())
        if set(weights.files) != set(parameters):
            raise SystemExit(f"the sides differ in {sorted(set(weights.files) ^ set(parameters))}")
        for name in weights.files:
            parameters[name].copy_(torch.from_numpy(weights[name]))


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def serve(make: Callable[..., Any], task: Task, name: str, pipe: Any) -> None:
    """A process that runs as many steps as it is asked for and answers with a turn; at None, with its facts."""
    run, facts = make(task, name)
    while num_steps := pipe.recv():
        wall, cpu = time.perf_counter(), _cpu_seconds()
        losses = run(num_steps)
        pipe.send(
            Turn((time.perf_counter() - wall) / num_steps, (_cpu_seconds() - cpu) / num_steps, tuple(losses)),
        )
    pipe.send(facts())


class Side:
    """One side in a process of its own; its first turn compiles, and is kept apart."""

    def __init__(self, name: str, task: Task) -> None:
        self.name, self.turns, self.facts = name, list[Turn](), dict[str, Any]()
        self._pipe, there = multiprocessing.Pipe()
        arguments = (ours if name == OURS else peer, task, name, there)
        self._process = multiprocessing.get_context("spawn").Process(target=serve, args=arguments)
        self._process.start()
        # Here it must be closed, so that the end of the process is the end of the pipe.
        there.close()
        self.first_losses = self._ask(2).losses

    def turn(self, num_steps: int) -> None:
        """Runs some steps."""
        self.turns.append(self._ask(num_steps))
        print(f"  {self.name}: {self.turns[-1].wall:.3f} s a step, {self.turns[-1].cpu:.3f} CPU s", flush=True)

    def close(self) -> None:
        """Ends the process."""
        self.facts = self._ask(None)
        self._process.join()

    def _ask(self, num_steps: int | None) -> Any:
        try:
            self._pipe.send(num_steps)
            return self._pipe.recv()
        except (EOFError, ConnectionError):
            raise SystemExit(f"{self.name} failed; if its memory ran out: a smaller --batch, or --remat=full") from None

    def median(self, field: str) -> float:
        """Seconds of a turn in the middle: "wall" or "cpu"."""
        return statistics.median(getattr(turn, field) for turn in self.turns)


def measure(names: list[str], task: Task, num_steps: int, rounds: int) -> list[Side]:
    """All sides, ours first since the others take its weights: in turns on a CPU, one after the other on a GPU."""
    if task.size.device == "cpu":
        sides = [Side(name, task) for name in names]
        for _ in range(rounds):
            for side in sides:
                side.turn(num_steps)
        for side in sides:
            side.close()
        return sides
    sides = []
    for name in names:
        sides.append(Side(name, task))
        for _ in range(rounds):
            sides[-1].turn(num_steps)
        sides[-1].close()
    return sides


def report(sides: list[Side], task: Task, title: str) -> dict[str, Any]:
    """Prints the table, and returns what the JSON line holds."""
    mine, *others = sides
    best_wall, best_cpu = (min((side.median(field) for side in others), default=0.0) for field in ("wall", "cpu"))
    tokens = task.batch * task.length
    flops, peak = tokens * mine.facts["flops_per_token"], mine.facts["peak_flops"]
    print(f"\n{title}, {task.dtype}, remat {task.remat}, on {mine.facts['device']}")
    print(f"{mine.facts['parameters'] / 1e6:.1f}M parameters, of them {mine.facts['vocabulary']:,} rows of the table")
    header = ("loss 1", "loss 2", "ms/step", "CPU s/step", "tokens/s", "TFLOP/s", "MFU", "peak GB")
    print(f"{'':8}" + "".join(f"{name:>11}" for name in header))
    for side in sides:
        wall = side.median("wall")
        print(
            f"{side.name:8}{side.first_losses[0]:11.5f}{side.first_losses[1]:11.5f}{1e3 * wall:11.1f}"
            f"{side.median('cpu'):11.3f}{tokens / wall:11.0f}{flops / wall / 1e12:11.3f}"
            f"{f'{flops / wall / peak:.1%}' if peak else '-':>11}{side.facts['memory'] / 1e9:11.2f}"
        )
    record = {
        "sides": {
            side.name: {"turns": [asdict(turn) for turn in side.turns], "first_losses": side.first_losses, **side.facts}
            for side in sides
        }
    }
    if others:
        ratios = {"wall": best_wall / mine.median("wall"), "cpu": best_cpu / mine.median("cpu")}
        print(f"ratio, the better peer / ours: wall {ratios['wall']:.2f}, CPU time {ratios['cpu']:.2f}")
        record["ratio"] = ratios
    return record


def check_same_losses(sides: list[Side], dtype: str) -> None:
    """Ends the run if the sides do not compute the same."""
    for side in sides[1:]:
        for mine, theirs in zip(sides[0].first_losses, side.first_losses, strict=True):
            if abs(mine - theirs) > TOLERANCE[dtype] * theirs:
                raise SystemExit(f"the losses of ours and {side.name} differ: {mine}, {theirs}")


def main() -> None:
    """Measures and prints a table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(SIZES), default="10M")
    parser.add_argument("--batch", type=int, default=0, help="rows; 0: as the model has it")
    parser.add_argument("--length", type=int, default=0, help="tokens of a row; 0: as the model has it")
    parser.add_argument("--steps", type=int, default=0, help="steps of a turn; 0: 1 on a CPU, 10 on a GPU")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--remat", choices=("none", "full", "save_attention", "save_dots"), default="none")
    parser.add_argument("--attention", choices=("auto", "xla", "splash", "tokamax"), default="auto")
    parser.add_argument("--scan", action=argparse.BooleanOptionalAction, default=False, help="ours: scan over layers")
    parser.add_argument("--keep-memory", action="store_true")
    parser.add_argument("--sides", nargs="+", choices=(OURS, "eager", "compile"), default=[OURS, "eager", "compile"])
    arguments = parser.parse_args()
    size = SIZES[arguments.model]
    on_cpu = size.device == "cpu"
    # Threads that wait for work without a pause would take the other side's processor.
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    if on_cpu:
        os.environ |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    if arguments.keep_memory:
        os.environ |= KEEP_MEMORY
    batch, length = arguments.batch or size.batch, arguments.length or size.length
    with tempfile.TemporaryDirectory() as folder:
        dtype = "float32" if on_cpu else "bfloat16"
        task = Task(size, batch, length, arguments.remat, arguments.attention, arguments.scan, dtype, Path(folder))
        names = [OURS, *(name for name in arguments.sides if name != OURS)]
        sides = measure(names, task, arguments.steps or (1 if on_cpu else 10), arguments.rounds)
    record = report(sides, task, f"{arguments.model}, {batch} x {length} tokens")
    print(json.dumps({**vars(arguments), "batch": batch, "length": length, "cores": os.cpu_count(), **record}))
    check_same_losses(sides, dtype)


if __name__ == "__main__":
    main()
