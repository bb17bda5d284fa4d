"""Draw, caption, answer, fill in, edit and continue, with the latest checkpoint of a run.

Prompts are JSON lines, {"prompt": "a handwritten seven"} or with a "task" of text_to_image, caption, vqa, infill,
infill_text, edit, continue; README.md has a line of each, requests.py all that they may say. Prints the answers, and
writes one PNG per image and generations.jsonl to --output, in place of those of an earlier run; another folder that is
not empty is refused. Records that cannot be answered do not stop the others: failed.jsonl says what is wrong with them.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from cm3leon_jax.config import Config
from cm3leon_jax.errors import UserError
from cm3leon_jax.generation import prompts
from cm3leon_jax.generation.config import SamplingConfig
from cm3leon_jax.generation.decoder import Completion
from cm3leon_jax.generation.listing import listing
from cm3leon_jax.generation.outputs import ANSWERS_FILE, FAILURES_FILE, OutputFolder, claimed, write_lines
from cm3leon_jax.generation.ranking import SCORERS, Candidate, best, caption_prompt, is_captioned
from cm3leon_jax.generation.requests import (
    TASKS,
    Failure,
    Request,
    has_half_characters,
    prompt_of,
    read_images,
    read_requests,
    region_mask,
)
from cm3leon_jax.generation.restoring import TrainedModel, restore_model
from cm3leon_jax.generation.retrieving import open_retriever, retrieved_for
from cm3leon_jax.generation.sampling import is_contrastive
from cm3leon_jax.images import encode_png
from cm3leon_jax.paths import input_path, output_folder
from cm3leon_jax.progress import Progress
from cm3leon_jax.retrieval.retriever import Neighbor
from cm3leon_jax.terminal import visible
from cm3leon_jax.vocabulary import Vocabulary

# All answers of a run are in memory until the best are chosen: bytes of one beside its tokens, bytes a token, and of
# all of them together, at most.
_ANSWER_BYTES, _TOKEN_BYTES, _MOST_BYTES = 1 << 10, 40, 1 << 33


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `generate` takes beside the config."""
    parser.add_argument("--prompts", type=input_path("--prompts"), metavar="FILE", help="prompts as JSON lines")
    parser.add_argument("--prompt", metavar="TEXT", help="one text to draw")
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="answers a prompt (default: 1)")
    parser.add_argument(
        "--retrieve",
        type=int,
        default=0,
        metavar="K",
        help="documents of the corpus put in front, at most (default: 0)",
    )
    parser.add_argument(
        "--output",
        type=output_folder("--output"),
        metavar="DIR",
        help="folder of the answers (default: WORKDIR/generations)",
    )


@dataclass(frozen=True)
class PreparedRequest:
    """A request as the model is given it."""

    request: Request
    prompt: prompts.Prompt
    # Codes of the request's own image.
    codes: Int[np.ndarray, "codes"] | None
    # Documents that were found for it, and stand in front.
    neighbors: tuple[Neighbor, ...] = ()


@dataclass(frozen=True)
class Results:
    """What a run says of its requests."""

    # One a kept answer, the best first.
    lines: list[dict[str, Any]]
    # The images that the lines name, as codes.
    images: dict[str, Int[np.ndarray, "codes"]]
    # The records without an answer, in the order of the file.
    failures: list[Failure]


def run(config: Config, workdir: Path, arguments: argparse.Namespace) -> int:
    """Answers every request that can be answered; returns the exit code."""
    _refuse_arguments(arguments)
    requests: list[Request] = []
    failures: list[Failure] = []
    if arguments.prompts is not None:
        requests, failures = read_requests(arguments.prompts)
    else:
        requests = [Request(line=1, number=0, prompt=arguments.prompt)]
    _refuse_too_many(len(requests), arguments.samples, config)
    output = arguments.output or workdir / "generations"
    with claimed(output) as folder:
        _refuse_own_images(requests, folder)
        model = restore_model(config, workdir)
        neighbors: dict[int, list[Neighbor]] = {}
        if arguments.retrieve:
            retriever = open_retriever(config, model.vocabulary, arguments.retrieve)
            neighbors = retrieved_for(requests, retriever, arguments.retrieve, config)
        results = generate(requests, failures, model, config, arguments.samples, neighbors)
        if arguments.prompts is None and results.failures:
            raise UserError(f"--prompt: {results.failures[0].error}")
        _write(results, folder, model, config.sampling.batch_size)
    for line in listing(requests, results.lines, is_of_a_file=arguments.prompts is not None):
        print(line)
    if results.lines:
        answers, images = _counted(len(results.lines), "answer"), _counted(len(results.images), "image")
        where = f"{images} and {ANSWERS_FILE}" if results.images else ANSWERS_FILE
        print(f"{answers} of the checkpoint of step {model.step:,}: {where} in {visible(str(output))}")
    if not results.failures:
        return 0
    for failure in results.failures:
        print(visible(f"{arguments.prompts}, line {failure.line}: {failure.error}"), file=sys.stderr)
    num_failed = f"{len(results.failures)} of {len(requests) + len(failures)} records"
    print(
        f"cm3leon generate: {num_failed} have no answer; {visible(str(output / FAILURES_FILE))} lists them",
        file=sys.stderr,
    )
    return 2


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _refuse_arguments(arguments: argparse.Namespace) -> None:
    if arguments.prompt is not None and not arguments.prompt.strip():
        raise UserError(
            "--prompt is empty, as of a shell variable that is not set: give it a text; to draw without one, give "
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


def _refuse_too_many(num_requests: int, samples: int, config: Config) -> None:
    """Answers that would not fit into memory are refused before any is asked for."""
    candidates = max(samples, config.sampling.candidates)
    # Prompt and answer fit the model's positions.
    most = _MOST_BYTES // (_ANSWER_BYTES + _TOKEN_BYTES * config.batch.sequence_length)
    if num_requests * candidates > most:
        what = f"--samples={samples}" if candidates == samples else f"config.sampling.candidates={candidates}"
        fit = most // num_requests
        raise UserError(
            f"{what} for {_counted(num_requests, 'prompt')} are {num_requests * candidates:,} answers, which are kept "
            f"in memory until the best are chosen: {most:,} fit, so "
            + (f"give at most {fit:,}" if fit else "split the prompts file")
            + "; for more, run again with another config.sampling.seed and --output"
        )


def generate(
    requests: Sequence[Request],
    failures: Sequence[Failure],
    model: TrainedModel,
    config: Config,
    samples: int,
    neighbors: Mapping[int, Sequence[Neighbor]] | None = None,
) -> Results:
    """Answers requests.

    Args:
      requests: what to answer.
      failures: the records beside them that are no requests.
      model: what answers.
      config: says how; its `candidates` are drawn for a request, its `scorer` ranks them.
      samples: answers a request, the best first.
      neighbors: documents that stand in front, by the number of the request.
    """
    asked, refused = _ask(requests, model, config, neighbors or {})
    samples, num_candidates = _numbers(samples, config.sampling)
    answers = _answer(asked, model, config.sampling, num_candidates)
    results = _results(asked, answers, model, config.sampling, samples)
    everything = sorted([*failures, *refused, *results.failures], key=lambda failure: failure.line)
    return dataclasses.replace(results, failures=everything)


def _refuse_own_images(requests: Sequence[Request], folder: OutputFolder) -> None:
    """Images of an earlier run can be asked about, but not by a run that takes their place."""
    for request in requests:
        for path in request.images:
            if folder.will_replace(path):
                raise UserError(f"{path} would give way to the images of this run: give another folder with --output")


def _ask(
    requests: Sequence[Request], model: TrainedModel, config: Config, neighbors: Mapping[int, Sequence[Neighbor]]
) -> tuple[list[PreparedRequest], list[Failure]]:
    tokenizer, v = model.image_tokenizer.config, model.vocabulary
    images = read_images((path for request in requests for path in request.images), model.image_tokenizer)
    asked, refused = [], []
    for request in requests:
        found = tuple(neighbors.get(request.number, ()))
        try:
            prompt = prompt_of(
                request,
                images,
                tokenizer,
                v,
                config.sampling.max_text_tokens,
                config.batch.sequence_length,
                [neighbor.tokens.tolist() for neighbor in found],
            )
            model.decoder.check_fits_sequence([prompt])
            if config.sampling.scorer == "caption" and is_captioned(request):
                anything = np.zeros(tokenizer.image_length, np.int32)
                model.decoder.check_fits_sequence([caption_prompt(request.prompt, anything, v)])
        except UserError as error:
            refused.append(Failure.of(request.line, error))
            continue
        codes = images[request.image] if request.image else None
        asked.append(PreparedRequest(request, prompt, codes if isinstance(codes, np.ndarray) else None, found))
    return asked, refused


def _numbers(samples: int, sampling: SamplingConfig) -> tuple[int, int]:
    """How many answers are kept for a request, and of how many."""
    candidates = max(samples, sampling.candidates)
    if sampling.temperature == 0:
        # Without chance there is one answer, or one by either method.
        candidates = min(candidates, 2 if sampling.method == "mixed" else 1)
        if candidates < samples:
            print(f"config.sampling.temperature is 0, so a prompt has no more answers than {candidates}, not {samples}")
    return min(samples, candidates), candidates


def _answer(
    asked: Sequence[PreparedRequest], model: TrainedModel, sampling: SamplingConfig, num_candidates: int
) -> list[list[Completion]]:
    """The candidates for each request, which depend on the seed and on the request's place in the file alone."""
    answers: list[list[Completion]] = [[] for _ in asked]
    progress = Progress("generate", len(asked) * num_candidates, unit="answer")

    def task_of(index: int) -> int:
        return list(TASKS).index(asked[index].request.task)

    # One task at a time, and short prompts apart from long ones: answers of one length finish together.
    order = sorted(
        range(len(asked)),
        key=lambda i: (task_of(i), len(asked[i].prompt.plan), len(asked[i].prompt.variants[0].tokens)),
    )
    done = 0
    for _, indices in itertools.groupby(order, task_of):
        rows = [(index, candidate) for index in indices for candidate in range(num_candidates)]
        # A batch is filled up to its size: for few prompts a small one.
        batch_size = min(sampling.batch_size, len(rows))
        for start in range(0, len(rows), batch_size):
            chunk = rows[start : start + batch_size]
            found = model.decoder(
                [asked[index].prompt for index, _ in chunk],
                dataclasses.replace(sampling, batch_size=batch_size),
                [asked[index].request.number * num_candidates + candidate for index, candidate in chunk],
                [is_contrastive(candidate, sampling.method) for _, candidate in chunk],
            )
            for (index, _), answer in zip(chunk, found, strict=True):
                answers[index].append(answer)
                progress.advance()
            done += len(chunk)
            if len(rows) > batch_size:
                progress.say(done, asked[rows[0][0]].request.task)
    progress.close()
    return answers


def _results(
    asked: Sequence[PreparedRequest],
    answers: Sequence[Sequence[Completion]],
    model: TrainedModel,
    sampling: SamplingConfig,
    samples: int,
) -> Results:
    """The best answers to each request; a request whose answers all have no score fails."""
    candidates = [
        [Candidate(one.request, answer, _image(one, answer, model)) for answer in found]
        for one, found in zip(asked, answers, strict=True)
    ]
    scores = iter(SCORERS[sampling.scorer]([c for of_one in candidates for c in of_one], model))
    results = Results([], {}, [])
    for one, of_one in zip(asked, candidates, strict=True):
        scored = [(c, score) for c, score in zip(of_one, scores, strict=False) if _is_sound(c, score)]
        if not scored:
            results.failures.append(Failure(one.request.line, _no_sound_answer(sampling, model)))
        for sample, place in enumerate(best([score for _, score in scored], samples)):
            candidate, score = scored[place]
            index = one.request.number * samples + sample
            fields, drawn = _fields(one, candidate, f"{index:05d}", model)
            line = {"index": index, "prompt": one.request.prompt, "task": one.request.task, "sample": sample}
            if one.neighbors:
                line["retrieved"] = [_retrieved(neighbor, model.vocabulary) for neighbor in one.neighbors]
            results.lines.append(line | {"image": None, "text": None, "score": score} | fields)
            results.images.update(drawn)
    return results


def _is_sound(candidate: Candidate, score: float) -> bool:
    """Whether an answer was drawn from finite numbers; what is drawn from others means nothing."""
    return math.isfinite(candidate.answer.score) and math.isfinite(score)


def _no_sound_answer(sampling: SamplingConfig, model: TrainedModel) -> str:
    return (
        f"the scores of its answers are not finite: with temperature {sampling.temperature:g} and guidance "
        f"{sampling.guidance:g} (edits {sampling.edit_guidance:g} and {sampling.edit_image_guidance:g}) set "
        f"config.sampling nearer to 1, or, where it is, take another checkpoint than that of step {model.step:,}"
    )


def _retrieved(neighbor: Neighbor, vocabulary: Vocabulary) -> dict[str, Any]:
    text = vocabulary.decode_text(neighbor.tokens.tolist())
    return {"task": neighbor.task, "document": neighbor.document, "text": text, "score": neighbor.score}


def _image(asked: PreparedRequest, answer: Completion, model: TrainedModel) -> Int[np.ndarray, "codes"] | None:
    """The codes of the image that an answer is, if it is one."""
    request = asked.request
    if request.task in ("text_to_image", "edit"):
        return model.vocabulary.decode_image(np.array(answer.tokens))
    if request.task == "infill" and asked.codes is not None:
        mask = region_mask(request.region, model.image_tokenizer.config.grid)
        return prompts.merge_infill(asked.codes, mask, answer.tokens, model.vocabulary)
    return None


def _fields(
    asked: PreparedRequest, candidate: Candidate, name: str, model: TrainedModel
) -> tuple[dict[str, Any], dict[str, Int[np.ndarray, "codes"]]]:
    """What a line says of an answer, and the images it names, which begin with `name`."""
    v, tokens = model.vocabulary, candidate.answer.tokens
    if candidate.image is not None:
        return {"image": f"{name}.png"}, {f"{name}.png": candidate.image}
    if asked.request.task == "infill_text":
        given = asked.request.prompt.split(prompts.BLANK)
        # An answer that used up its tokens has left out the last texts.
        texts = [*prompts.infill_texts(tokens, v), *[""] * asked.prompt.num_spans][: asked.prompt.num_spans]
        text = "".join(part for pair in zip(given, [*texts, ""], strict=True) for part in pair)
        return {"text": text, "texts": texts}, {}
    if asked.request.task == "continue":
        segments = prompts.split_segments(tokens, v)
        drawn = {
            f"{name}_{place}.png": segment for place, segment in enumerate(segments) if not isinstance(segment, str)
        }
        files = iter(drawn)
        shown = [segment if isinstance(segment, str) else {"image": next(files)} for segment in segments]
        return {"segments": shown}, drawn
    return {"text": v.decode_text(tokens).strip()}, {}


def _write(results: Results, folder: OutputFolder, model: TrainedModel, batch_size: int) -> None:
    """Puts images and lists into the place of those of an earlier run."""
    with folder.stage() as stage:
        names = list(results.images)
        batch_size = min(batch_size, len(names))
        for start in range(0, len(names), batch_size or 1):
            chunk = names[start : start + batch_size]
            codes = np.stack([results.images[name] for name in chunk])
            for name, pixels in zip(chunk, model.image_tokenizer.decode(codes, batch_size), strict=True):
                (stage / name).write_bytes(encode_png(pixels))
        if results.lines:
            write_lines(stage / ANSWERS_FILE, results.lines)
        if results.failures:
            write_lines(stage / FAILURES_FILE, [dataclasses.asdict(failure) for failure in results.failures])
