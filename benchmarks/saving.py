"""How long a checkpoint holds up training, and how long it is written behind the steps.

    JAX_PLATFORMS=cpu python benchmarks/saving.py --model=10M
    JAX_PLATFORMS=cpu python benchmarks/saving.py --model=125M --saves=3

Trains a model of random tokens a step at a time and saves between the steps, as `cm3leon train` does: the state
(parameters and two moments, float32) is copied and summed while the steps wait, then written while they go on. Prints,
for every save, the seconds for which the steps waited, those until it was complete, and its size on disk; the peer is
the plain way: Orbax's synchronous save of the same state.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from cm3leon_jax.checkpoints import Checkpoints
from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.batch import Batch
from cm3leon_jax.data.batches.config import BatchConfig
from cm3leon_jax.models.config import MeshConfig, ModelConfig
from cm3leon_jax.models.cpu import keep_freed_memory
from cm3leon_jax.models.sharding import make_mesh, on_mesh
from cm3leon_jax.training.config import TrainConfig
from cm3leon_jax.training.step import TrainStep
from cm3leon_jax.vocabulary import Vocabulary

# Layers, width, heads.
SIZES = {"10M": (6, 384, 6), "50M": (12, 576, 9), "125M": (12, 768, 12), "350M": (24, 1024, 16)}
LENGTH, ROWS = 64, 2


def random_batch(vocabulary: Vocabulary) -> Batch:
    """Rows of text tokens, each a document."""
    batch = Batch.padding(ROWS, LENGTH, vocabulary.pad)
    rng = np.random.default_rng(0)
    batch.tokens[:], batch.targets[:] = rng.integers(300, 400, (2, ROWS, LENGTH))
    batch.weights[:], batch.positions[:], batch.document_start[:] = 1, np.arange(LENGTH), 0
    return batch


def main() -> None:
    """Prints a line a save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="10M")
    parser.add_argument("--saves", type=int, default=5)
    arguments = parser.parse_args()
    keep_freed_memory()
    layers, dim, heads = SIZES[arguments.model]
    vocabulary = Vocabulary.train(["a b"], num_text_tokens=300, num_image_codes=16000, num_masks=8, progress=False)
    config = Config(
        model=ModelConfig(num_layers=layers, model_dim=dim, num_heads=heads, compute_dtype="float32", remat="none"),
        batch=BatchConfig(ROWS, 1100),
        train=TrainConfig(num_tokens=1e6),
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    compiled = TrainStep(config, vocabulary, mesh)
    batch = on_mesh(random_batch(vocabulary), mesh)
    state, _ = compiled.step(compiled.init(), batch)
    gigabytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e9
    print(f"{arguments.model}: a state of {gigabytes:.2f} GB")

    folder = Path(tempfile.mkdtemp())
    try:
        with Checkpoints(folder / "ours", keep=2) as checkpoints:
            checkpoints.get_ready(state)
            for step in range(1, arguments.saves + 1):
                jax.block_until_ready(state)
                started = time.perf_counter()
                checkpoints.save(step, state, {})
                waited = time.perf_counter() - started
                state, _ = compiled.step(state, batch)
                jax.block_until_ready(state)
                checkpoints.wait()
                total = time.perf_counter() - started
                print(f"  save {step}: the steps waited {waited:.2f} s, complete after {total:.2f} s", flush=True)
        with ocp.StandardCheckpointer() as checkpointer:
            started = time.perf_counter()
            checkpointer.save(folder / "peer", jax.tree.leaves(state))
            checkpointer.wait_until_finished()
            print(f"  Orbax, synchronous: {time.perf_counter() - started:.2f} s")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
