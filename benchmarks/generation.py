"""Drawing images: our decoder beside `transformers` generate, on the same exported weights, in one run.

    python benchmarks/generation.py --model=25M --batch=1 --codes=256
    python benchmarks/generation.py --model=125M --batch=16 --codes=64
    python benchmarks/generation.py --model=350M --batch=8 --codes=1024      # on a GPU: bfloat16

Random weights are written as a checkpoint, exported with `cm3leon export`, and read back by both. Guidance is on: each
image takes two streams. The two take turns, each in a process of its own, and the best of the repeats counts. Ours is
timed twice: drawing codes as an image needs (scores for codes alone), and drawing from the whole vocabulary, which is
what the peer does.

The roofline is what must move in a step (weights, the rows of the output table in use, keys and values, on average)
over the bandwidth that this machine reaches in a matrix-vector product, measured in the same run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GUIDANCE = 3.0
SHUFFLE_BLOCK = 4
SPECULATIVE = f"{SHUFFLE_BLOCK} codes a pass"


@dataclasses.dataclass(frozen=True)
class Size:
    """A model to measure."""

    num_layers: int
    model_dim: int
    num_heads: int
    num_text_tokens: int


# Names are parameters without embeddings, in round numbers; all have 8,192 image codes.
SIZES = {
    "25M": Size(8, 512, 8, 8192),
    "125M": Size(12, 768, 12, 56320),
    "350M": Size(24, 1024, 16, 56320),
}
NUM_CODES = 8192


def make_folder(size: Size, num_codes: int, dtype: str, root: Path) -> Path:
    """A workdir with random weights, and its export."""
    import jax
    from flax import nnx

    from cm3leon_jax import config_file
    from cm3leon_jax.checkpoints import Checkpoints
    from cm3leon_jax.cli import main
    from cm3leon_jax.image_tokenizers.vqgan import model as vqgan
    from cm3leon_jax.image_tokenizers.vqgan.tokenizer import VQGANTokenizer
    from cm3leon_jax.models.transformer import Transformer
    from cm3leon_jax.vocabulary import Vocabulary

    side = round(num_codes**0.5)
    values = {
        "vocabulary": dict(num_text_tokens=size.num_text_tokens, num_masks=8),
        "image_tokenizer": dict(
            resolution=side,
            base_channels=8,
            channel_multipliers=(1,),
            num_res_blocks=0,
            mid_block=False,
            norm_groups=4,
            latent_channels=8,
            embedding_dim=4,
            codebook_size=NUM_CODES,
        ),
        "model": dict(
            num_layers=size.num_layers,
            model_dim=size.model_dim,
            num_heads=size.num_heads,
            compute_dtype=dtype,
            init_std=0.02,
            position_init_std=0.02,
        ),
        "batch": dict(sequence_length=num_codes + 256),
    }
    file = root / "measured.py"
    file.write_text(f"from ml_collections import ConfigDict\n\ndef get_config():\n    return ConfigDict({values!r})\n")
    config = config_file.load(str(file), str(root), {})
    vocabulary = Vocabulary.train(
        ["an image of something"] * 4, size.num_text_tokens, NUM_CODES, num_masks=8, progress=False
    )
    vocabulary.save(config.vocabulary.path)
    image = config.image_tokenizer
    tokenizer = VQGANTokenizer(image, vqgan.initial_parameters(vqgan.abstract_vqgan(image), 0))
    tokenizer.save(config.image_tokenizer.path)
    model = Transformer(
        config.model, vocabulary.size, config.batch.sequence_length, nnx.Rngs(0), config.image_tokenizer.image_length
    )
    for index, parameter in enumerate((model.blocks.attention.output, model.blocks.feed_forward.down)):
        shape = parameter.get_value().shape
        parameter.set_value(0.02 * jax.random.normal(jax.random.key(index), shape))
    meta = {
        "vocabulary": vocabulary.fingerprint,
        "corpus": {"image_tokenizer": tokenizer.fingerprint},
        "config": dataclasses.asdict(config),
    }
    with Checkpoints(root / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(1, {"parameters": nnx.state(model)}, meta)
    arguments = [f"--config={file}", f"--workdir={root}", f"--output={root / 'exported'}", f"--dtype={dtype}"]
    if main(["export", *arguments]):
        raise SystemExit("the export failed")
    return root / "exported"


def texts(number: int) -> list[str]:
    """Prompts of one length, all different."""
    return [f"an image of something, number {index:02d}" for index in range(number)]


def ours(root: Path, batch: int, num_codes: int) -> dict[str, Callable[[int], int]]:
    """What our process runs, by name; each takes a seed and returns the number of steps."""
    from cm3leon_jax import config_file
    from cm3leon_jax.generation import prompts
    from cm3leon_jax.generation.config import SamplingConfig
    from cm3leon_jax.generation.load import load_model

    model = load_model(config_file.load(str(root / "measured.py"), str(root), {}), root)
    asked = [prompts.text_to_image(text, num_codes, model.vocabulary) for text in texts(batch)]
    # A plan of both kinds of tokens needs the scores of all.
    plan = (prompts.TEXT_TOKEN,) * (num_codes - 1) + (prompts.IMAGE_CODE,)
    anything = [dataclasses.replace(prompt, plan=plan) for prompt in asked]
    sampling = SamplingConfig(guidance=GUIDANCE, batch_size=batch)

    def run(prompts: list[Any], seed: int, window: int = 0) -> int:
        changed = dataclasses.replace(sampling, seed=seed, speculative_window=window)
        return model.sampler(prompts, changed)[0].num_passes

    return {
        "images": lambda seed: run(asked, seed),
        "whole vocabulary": lambda seed: run(anything, seed),
        SPECULATIVE: lambda seed: run(asked, seed, SHUFFLE_BLOCK),
    }


def peers(root: Path, batch: int, num_codes: int) -> dict[str, Callable[[int], int]]:
    """What the peer's process runs."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = root / "exported"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device).eval()

    def ids(prompt: str) -> list[int]:
        return tokenizer.encode(prompt, add_special_tokens=False)

    conditional = torch.tensor([ids(f"</s>{text}<break>") for text in texts(batch)], device=device)
    unconditional = torch.tensor([ids("</s><mask:0><break>")] * batch, device=device)

    def generate(seed: int) -> int:
        torch.manual_seed(seed)
        with torch.inference_mode():
            found = model.generate(
                conditional,
                attention_mask=torch.ones_like(conditional),
                negative_prompt_ids=unconditional,
                negative_prompt_attention_mask=torch.ones_like(unconditional),
                guidance_scale=GUIDANCE,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                min_new_tokens=num_codes,
                max_new_tokens=num_codes,
            )
        assert found.shape == (batch, conditional.shape[1] + num_codes)
        return num_codes

    return {"transformers": generate}


def serve(make: Callable[..., dict[str, Callable[[int], int]]], arguments: tuple[Any, ...], pipe: Any) -> None:
    """A process that runs what it is asked for and answers with wall seconds, CPU seconds and steps."""
    tasks = make(*arguments)
    pipe.send(list(tasks))
    while (asked := pipe.recv()) is not None:
        name, seed = asked
        wall, cpu = time.perf_counter(), _cpu_seconds()
        steps = tasks[name](seed)
        pipe.send((time.perf_counter() - wall, _cpu_seconds() - cpu, steps))


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def bandwidth() -> float:
    """Bytes a second of a matrix-vector product over half a gigabyte, best of ten."""
    import jax
    import jax.numpy as jnp

    matrix, vector = jnp.ones((1 << 17, 1 << 10)), jnp.ones(1 << 10)
    product = jax.jit(jnp.dot)
    product(matrix, vector).block_until_ready()
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        product(matrix, vector).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return matrix.nbytes / best


def step_bytes(size: Size, batch: int, num_codes: int, width: int) -> float:
    """Bytes that a step of drawing images must read, on average over the steps."""
    D = size.model_dim
    weights = size.num_layers * 12 * D * D + NUM_CODES * D
    slots = 16 + num_codes / 2
    cache = 2 * size.num_layers * D * slots * 2 * batch
    return width * (weights + cache)


def _process(make: Any, *arguments: Any) -> tuple[Any, Any, list[str]]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(make, arguments, there))
    process.start()
    return process, here, here.recv()


def main() -> None:
    """Measures and prints a table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(SIZES), default="25M")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--codes", type=int, default=256, help="codes of an image, a square number")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    # Threads that wait for work without a pause would take the other side's processor.
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    import jax

    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    size, batch, codes = SIZES[arguments.model], arguments.batch, arguments.codes
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_folder(size, codes, dtype, root)
        reached = bandwidth()
        processes = [_process(make, root, batch, codes) for make in (peers, ours)]
        best: dict[str, tuple[float, float, int]] = {}
        # The first turn compiles, and does not count.
        for turn in range(arguments.repeats + 1):
            for _, pipe, names in processes:
                for name in names:
                    pipe.send((name, turn))
                    seconds = pipe.recv()
                    print(f"  turn {turn}, {name}: {seconds[0]:.2f} s, {seconds[1]:.2f} CPU s", flush=True)
                    if turn:
                        best[name] = min(best.get(name, seconds), seconds, key=lambda found: found[1])
        for process, pipe, _ in processes:
            pipe.send(None)
            process.join()
    limit = step_bytes(size, batch, codes, 4 if dtype == "float32" else 2) / reached
    peer = best["transformers"]
    print(f"\n{arguments.model}, {batch} images of {codes} codes, guidance {GUIDANCE}, {dtype}")
    print(
        f"{'':18} {'ms/step':>9} {'tokens/s':>9} {'images/s':>11} {'CPU s':>8} {'ratio, wall':>12} {'ratio, CPU':>11}"
    )
    speculative = best.pop(SPECULATIVE)
    for name, (wall, cpu, _) in best.items():
        print(
            f"{name:18} {1e3 * wall / codes:9.2f} {batch * codes / wall:9.1f} {batch / wall:11.3f} {cpu:8.2f} "
            f"{peer[0] / wall:12.2f} {peer[1] / cpu:11.2f}"
        )
    # How many codes hold in a pass is the model's, and random weights say nothing of it: see speculative.py.
    print(f"{SPECULATIVE:18} {1e3 * speculative[0] / speculative[2]:9.2f}   (speculative decoding: what a pass costs)")
    print(f"{'roofline':18} {1e3 * limit:9.2f}   at {reached / 1e9:.1f} GB/s")
    record = {
        "model": arguments.model,
        "batch": batch,
        "codes": codes,
        "dtype": dtype,
        "cores": os.cpu_count(),
        "bandwidth_gb_per_second": reached / 1e9,
        "roofline_ms": 1e3 * limit,
        "seconds": {name: {"wall": wall, "cpu": cpu} for name, (wall, cpu, _) in best.items()},
        "speculative_pass_ms": 1e3 * speculative[0] / speculative[2],
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
