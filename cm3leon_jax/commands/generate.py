"""Generate images and texts with the newest checkpoint of a run: text-to-image, captions, answers, infills, edits.

Prompts are JSON lines, {"prompt": "a handwritten seven"} or with a "task" of text_to_image, caption, vqa, infill,
infill_text, edit, continue; README.md has a line of each, generation/requests.py all their fields. Prints the results,
and writes one PNG per image and generations.jsonl to --output, in place of those of an earlier run; another folder that
is not empty is refused. Records without a result do not stop the others: failed.jsonl says what is wrong with them.
Several processes share the work of each batch, and write what one would.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from cm3leon_jax.config import Config
from cm3leon_jax.distributed import is_coordinator
from cm3leon_jax.errors import UserError
from cm3leon_jax.generation.generate import generate, num_candidates, open_retriever, retrieve
from cm3leon_jax.generation.load import load_model
from cm3leon_jax.generation.outputs import FAILURES_FILE, RESULTS_FILE, OutputFolder, claimed, listing, write_results
from cm3leon_jax.generation.requests import Failure, Request, has_half_characters, read_requests
from cm3leon_jax.paths import input_path, output_folder
from cm3leon_jax.retrieval.retriever import Neighbor
from cm3leon_jax.terminal import counted, visible

log = logging.getLogger(__name__)

# All samples of a run are in memory until the best are chosen: bytes of one beside its tokens, bytes per token, and of
# all of them together, at most.
_SAMPLE_BYTES, _TOKEN_BYTES, _MOST_BYTES = 1 << 10, 40, 1 << 33


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", type=input_path("--prompts"), metavar="FILE", help="prompts as JSON lines")
    parser.add_argument("--prompt", metavar="TEXT", help="one text to generate an image for")
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="samples per prompt (default: 1)")
    parser.add_argument(
        "--retrieve",
        type=int,
        default=0,
        metavar="K",
        help="documents of the corpus put before each prompt, at most (default: 0)",
    )
    parser.add_argument(
        "--output",
        type=output_folder("--output"),
        metavar="DIR",
        help="folder of the results (default: WORKDIR/generations)",
    )


def run(config: Config, workdir: Path, arguments: argparse.Namespace) -> int:
    """Completes every request that can be completed; returns the exit code."""
    _check_arguments(arguments)
    requests, failures = [Request(prompt=arguments.prompt or "")], list[Failure]()
    if arguments.prompts is not None:
        requests, failures = read_requests(arguments.prompts)
    _check_fits_memory(len(requests), arguments.samples, config)
    output = arguments.output or workdir / "generations"
    with claimed(output) as folder:
        _check_own_images(requests, folder)
        model = load_model(config, workdir)
        neighbors: dict[int, list[Neighbor]] = {}
        if arguments.retrieve:
            retriever = open_retriever(config, model.vocabulary, arguments.retrieve)
            neighbors = retrieve(requests, retriever, arguments.retrieve, config)
        samples = min(arguments.samples, num_candidates(arguments.samples, config.sampling))
        if samples < arguments.samples:
            log.info("config.sampling.temperature is 0, so a prompt has no more samples than %d", samples)
        results, failed = generate(requests, model, config.sampling, samples, neighbors)
        if arguments.prompts is None and failed:
            raise UserError(f"--prompt: {failed[0].error}")
        failures = sorted([*failures, *failed], key=lambda failure: failure.line)
        lines, num_images = write_results(results, failures, folder, model, samples, config.sampling.batch_size)
    if not is_coordinator():
        return 2 if failures else 0
    for line in listing(requests, lines, is_of_a_file=arguments.prompts is not None):
        print(line)
    if lines:
        where = f"{counted(num_images, 'image')} and {RESULTS_FILE}" if num_images else RESULTS_FILE
        of = f"{counted(len(lines), 'sample')} of the checkpoint of step {model.step:,}"
        print(f"{of}: {where} in {visible(str(output))}")
    if not failures:
        return 0
    for failure in failures:
        print(visible(f"{arguments.prompts}, line {failure.line}: {failure.error}"), file=sys.stderr)
    num_failed = f"{len(failures)} of {len(results) + len(failures)} records"
    print(
        f"cm3leon generate: {num_failed} have no result; {visible(str(output / FAILURES_FILE))} lists them",
        file=sys.stderr,
    )
    return 2


def _check_arguments(arguments: argparse.Namespace) -> None:
    if arguments.prompt is not None and not arguments.prompt.strip():
        raise UserError(
            "--prompt is empty, as of a shell variable that is not set: give it a text; to generate without one, give "
            '--prompts a file with {"prompt": ""}'
        )
    if (arguments.prompts is None) == (arguments.prompt is None):
        raise UserError("give either --prompt=TEXT or --prompts=FILE")
    if arguments.prompt is not None and has_half_characters(arguments.prompt):
        raise UserError(
            "--prompt is not UTF-8 text: write it to a UTF-8 file of JSON lines, and give that to --prompts"
        )
    if arguments.samples < 1:
        raise UserError(f"--samples={arguments.samples}: at least 1")
    if arguments.retrieve < 0:
        raise UserError(f"--retrieve={arguments.retrieve}: at least 0")


def _check_fits_memory(num_requests: int, samples: int, config: Config) -> None:
    """Samples that would not fit into memory are refused before any is asked for."""
    candidates = max(samples, config.sampling.candidates)
    # Prompt and completion fit the model's positions.
    most = _MOST_BYTES // (_SAMPLE_BYTES + _TOKEN_BYTES * config.batch.sequence_length)
    if num_requests * candidates > most:
        what = f"--samples={samples}" if candidates == samples else f"config.sampling.candidates={candidates}"
        fit = most // num_requests
        raise UserError(
            f"{what} for {counted(num_requests, 'prompt')} are {num_requests * candidates:,} samples, which are kept "
            f"in memory until the best are chosen: {most:,} fit, so "
            + (f"give at most {fit:,}" if fit else "split the prompts file")
            + "; for more, run again with another config.sampling.seed and --output"
        )


def _check_own_images(requests: Sequence[Request], folder: OutputFolder) -> None:
    """Images of an earlier run can be in a request, but not of a run that takes their place."""
    for request in requests:
        for image in request.images:
            if folder.will_replace(image):
                raise UserError(
                    f"{image!s} would give way to the images of this run: give another folder with --output"
                )
