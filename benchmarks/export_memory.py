"""How much memory `cm3leon export` and `cm3leon import` take, beside the size of the model.

A model of random numbers is written as a checkpoint, exported in small shards, and imported again, each in a process of
its own: a peak is the largest resident size of the process less what it had after all imports.

    .venv/bin/python benchmarks/export_memory.py [--layers=24] [--width=1024] [--shard-size=100MB] [--dtype=float32]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

NUM_TEXT_TOKENS, NUM_MASKS, SEQUENCE_LENGTH = 16_000, 8, 1024


def megabytes(field: str) -> float:
    """A line of this process's status: VmRSS (resident now) or VmHWM (the most so far)."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def write_run(root: Path, layers: int, width: int) -> dict[str, float]:
    """A checkpoint, a vocabulary and an image tokenizer."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from cm3leon_jax.checkpoints import Checkpoints
    from cm3leon_jax.image_tokenizers.vqgan import model as vqgan
    from cm3leon_jax.image_tokenizers.vqgan.tokenizer import VQGANTokenizer
    from cm3leon_jax.models.transformer import abstract_model
    from cm3leon_jax.vocabulary import Vocabulary

    config = run_config(root / "run", layers, width)
    codes = config.image_tokenizer.codebook_size
    vocabulary = Vocabulary.train(["a"], NUM_TEXT_TOKENS, codes, NUM_MASKS, progress=False)
    vocabulary.save(config.vocabulary.path)
    weights = vqgan.initial_parameters(vqgan.abstract_vqgan(config.image_tokenizer), 0)
    image_tokenizer = VQGANTokenizer(config.image_tokenizer, weights)
    image_tokenizer.save(config.image_tokenizer.path)
    rng = np.random.default_rng(0)
    _, abstract = abstract_model(config.model, vocabulary.size, SEQUENCE_LENGTH)
    parameters = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, np.float32)), abstract)
    meta = {
        "vocabulary": vocabulary.fingerprint,
        "corpus": {"tasks": {}, "image_tokenizer": image_tokenizer.fingerprint},
        "config": dataclasses.asdict(config),
        "origin": "random numbers",
    }
    started = time.perf_counter()
    with Checkpoints(root / "run" / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(1, {"parameters": parameters}, meta)
    leaves = jax.tree.leaves(parameters)
    return {
        "parameters_mb": sum(leaf.nbytes for leaf in leaves) / 1e6,
        "largest_array_mb": max(leaf.nbytes for leaf in leaves) / 1e6,
        "seconds": time.perf_counter() - started,
    }


def measured(command: str, root: Path, arguments: Namespace) -> dict[str, float]:
    """Runs one command in this process."""
    from cm3leon_jax.commands import export as export_command
    from cm3leon_jax.commands import import_ as import_command

    workdir = root / ("run" if command == "export" else "again")
    config = run_config(workdir, arguments.layers, arguments.width)
    before, started = megabytes("VmRSS"), time.perf_counter()
    folder = str(root / "folder")
    if command == "export":
        asked = Namespace(
            format="huggingface",
            output=folder,
            family=None,
            dtype=arguments.dtype,
            shard_size=arguments.shard_size,
            materialize_norms=False,
        )
        export_command.run(config, workdir, asked)
    else:
        import_command.run(config, workdir, Namespace(source=folder, image_tokenizer=None))
    seconds = time.perf_counter() - started
    return {"resident_before_mb": before, "peak_above_mb": megabytes("VmHWM") - before, "seconds": seconds}


def run_config(workdir: Path, layers: int, width: int):
    """The config of a run in `workdir`."""
    from cm3leon_jax.config import Config
    from cm3leon_jax.data.batches.config import BatchConfig
    from cm3leon_jax.data.corpus.config import CorpusConfig, VocabularyConfig
    from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig
    from cm3leon_jax.models.config import ModelConfig

    return Config(
        corpus=CorpusConfig(path=str(workdir / "corpus")),
        vocabulary=VocabularyConfig(str(workdir / "vocabulary"), NUM_TEXT_TOKENS, NUM_MASKS),
        image_tokenizer=VQGANConfig(
            path=str(workdir / "image_tokenizer"),
            resolution=8,
            in_channels=1,
            base_channels=4,
            channel_multipliers=(1, 2),
            num_res_blocks=1,
            norm_groups=4,
            latent_channels=4,
            embedding_dim=3,
            codebook_size=64,
        ),
        batch=BatchConfig(batch_size=1, sequence_length=SEQUENCE_LENGTH),
        model=ModelConfig(num_layers=layers, model_dim=width, num_heads=width // 64),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--shard-size", default="100MB")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--child", nargs=2, metavar=("COMMAND", "ROOT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        command, root = arguments.child[0], Path(arguments.child[1])
        write = command == "write"
        found = write_run(root, arguments.layers, arguments.width) if write else measured(command, root, arguments)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as root:
        for command in ("write", "export", "import"):
            child = [sys.executable, __file__, *sys.argv[1:], "--child", command, root]
            done = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(f"{command}: " + ", ".join(f"{name} {value:,.1f}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
