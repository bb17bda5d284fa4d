"""Speculative Jacobi decoding beside drawing code by code, on a trained run, in one process.

    python benchmarks/speculative.py --config=examples/digits/demo.py --workdir=runs/demo

For each number of images side by side and each window: passes through the model an image (code by code: as many as
an image has codes), the time an image takes, and the gain over code by code. Greedy answers are compared token by
token. The two take turns; the best of the repeats counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

from cm3leon_jax import config_file
from cm3leon_jax.generation import prompts
from cm3leon_jax.generation.load import load_model


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="examples/digits/demo.py")
    parser.add_argument("--workdir", default="runs/demo")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--windows", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    config = config_file.load(arguments.config, arguments.workdir, {})
    model = load_model(config, Path(arguments.workdir))
    length = config.image_tokenizer.image_length
    texts = config.evaluate.prompts or ("an image",)
    print(f"{'images':>8} {'temperature':>11} {'window':>6} {'passes':>7} {'ms/image':>10} {'gain':>6}")
    for batch in arguments.batches:
        asked = [prompts.text_to_image(texts[i % len(texts)], length, model.vocabulary) for i in range(batch)]
        for temperature in (config.sampling.temperature, 0.0):
            plain = dataclasses.replace(config.sampling, batch_size=batch, temperature=temperature)
            ways = {window: dataclasses.replace(plain, speculative_window=window) for window in (0, *arguments.windows)}
            seconds = dict.fromkeys(ways, float("inf"))
            passes = dict.fromkeys(ways, 0)
            answers = {window: model.sampler(asked, way) for window, way in ways.items()}
            if temperature == 0:
                expected = [answer.tokens for answer in answers[0]]
                assert all([answer.tokens for answer in found] == expected for found in answers.values())
            for seed in range(arguments.repeats):
                for window, way in ways.items():
                    started = time.perf_counter()
                    found = model.sampler(asked, dataclasses.replace(way, seed=seed))
                    seconds[window] = min(seconds[window], time.perf_counter() - started)
                    passes[window] += found[0].num_passes
            for window in ways:
                mean = passes[window] / arguments.repeats
                each, gain = 1e3 * seconds[window] / batch, seconds[0] / seconds[window]
                print(f"{batch:8} {temperature:11} {window:6} {mean:7.1f} {each:10.2f} {gain:6.2f}")


if __name__ == "__main__":
    main()
