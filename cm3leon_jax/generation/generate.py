"""Draw, caption, answer, fill in, edit and continue, with the latest checkpoint of a run.

Prompts are JSON lines, {"prompt": "a handwritten seven"} or with a "task" of text_to_image, caption, vqa, infill,
infill_text, edit, continue; README.md has a line of each, requests.py all that they may say. Writes one PNG a picture
and generations.jsonl to --output, in place of those of an earlier run; records that cannot be answered do not stop the
others: failed.jsonl says what is wrong with them.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from cm3leon_jax.config import Config, SamplingConfig
from cm3leon_jax.documents import encode_png
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import replacing
from cm3leon_jax.generation import prompts
from cm3leon_jax.generation.decoder import Answer
from cm3leon_jax.generation.ranking import SCORERS, Candidate, best, caption_prompt, is_captioned
from cm3leon_jax.generation.requests import (
    TASKS,
    Failure,
    Request,
    prompt_of,
    read_pictures,
    read_requests,
    region_mask,
)
from cm3leon_jax.generation.restoring import TrainedModel, restore_model
from cm3leon_jax.generation.retrieving import open_retriever, retrieved_for
from cm3leon_jax.generation.sampling import is_contrastive
from cm3leon_jax.paths import input_path, output_folder
from cm3leon_jax.progress import Progress
from cm3leon_jax.retrieval.retriever import Neighbour
from cm3leon_jax.vocabulary import Vocabulary

ANSWERS_FILE, FAILURES_FILE = "generations.jsonl", "failed.jsonl"
_PICTURE_NAME = re.compile(r"\d{5}(_\d+)?\.png")


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
class Asked:
    """A request as the model is given it."""

    request: Request
    prompt: prompts.Prompt
    # Codes of the request's own picture.
    codes: Int[np.ndarray, "codes"] | None
    # Documents that were found for it, and stand in front.
    neighbours: tuple[Neighbour, ...] = ()


def run(config: Config, workdir: Path, arguments: argparse.Namespace) -> int:
    """Answers every request that can be answered; returns the exit code."""
    if bool(arguments.prompts) == bool(arguments.prompt):
        raise UserError("give either --prompt=TEXT or --prompts=FILE")
    if arguments.samples < 1:
        raise UserError(f"--samples={arguments.samples}: at least 1")
    if arguments.retrieve < 0:
        raise UserError(f"--retrieve={arguments.retrieve}: at least 0")
    output = Path(arguments.output or workdir / "generations")
    requests: list[Request] = []
    failures: list[Failure] = []
    if arguments.prompts:
        requests, failures = read_requests(Path(arguments.prompts))
    else:
        requests = [Request(line=1, number=0, prompt=arguments.prompt)]
    num_records = len(requests) + len(failures)
    _refuse_own_pictures(requests, output)
    model = restore_model(config, workdir)
    neighbours: dict[int, list[Neighbour]] = {}
    if arguments.retrieve:
        retriever = open_retriever(config, model.vocabulary, arguments.retrieve)
        neighbours = retrieved_for(requests, retriever, arguments.retrieve, config)
    failures = generate(requests, failures, model, config, arguments.samples, output, neighbours)
    if not failures:
        return 0
    if arguments.prompt:
        raise UserError(f"--prompt: {failures[0].error}")
    for failure in failures:
        print(f"{arguments.prompts}, line {failure.line}: {failure.error}", file=sys.stderr)
    num_failed = f"{len(failures)} of {num_records} records"
    print(f"cm3leon generate: {num_failed} have no answer; {output / FAILURES_FILE} lists them", file=sys.stderr)
    return 2


def generate(
    requests: Sequence[Request],
    failures: Sequence[Failure],
    model: TrainedModel,
    config: Config,
    samples: int,
    output: Path,
    neighbours: Mapping[int, Sequence[Neighbour]] | None = None,
) -> list[Failure]:
    """Writes the answers to `output`, in place of those of an earlier run.

    Args:
      requests: what to answer.
      failures: the records beside them that are no requests.
      model: what answers.
      config: says how; its `candidates` are drawn for a request, its `scorer` ranks them.
      samples: answers a request, the best first.
      output: folder; made if it is not there.
      neighbours: documents that stand in front, by the number of the request.

    Returns:
      every record that has no answer, in the order of the file.

    Raises:
      UserError: if `output` cannot be a folder; before any answer is drawn.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {output} cannot be made ({error.strerror}): name another with --output") from None
    neighbours = neighbours or {}
    asked, refused = _ask(requests, model, config, neighbours)
    failures = sorted([*failures, *refused], key=lambda failure: failure.line)
    samples, num_candidates = _numbers(samples, config.sampling)
    answers = _answer(asked, model, config.sampling, num_candidates)
    lines, pictures = _results(asked, answers, model, config.sampling, samples)

    # The lists go first and come last, so that what they name is there.
    for name in (ANSWERS_FILE, FAILURES_FILE):
        (output / name).unlink(missing_ok=True)
    for file in list(output.iterdir()):
        if _PICTURE_NAME.fullmatch(file.name) and file.is_file():
            file.unlink()
    _write_pictures(output, pictures, model, config.sampling.batch_size)
    if lines:
        _write_lines(output / ANSWERS_FILE, lines)
    if failures:
        _write_lines(output / FAILURES_FILE, [dataclasses.asdict(failure) for failure in failures])
    print(f"{len(lines)} answer(s) of the checkpoint of step {model.step} are in {output}")
    return failures


def _refuse_own_pictures(requests: Sequence[Request], output: Path) -> None:
    """Pictures of an earlier run can be asked about, but not by a run that takes their place."""
    for request in requests:
        for path in request.pictures:
            if _PICTURE_NAME.fullmatch(path.name) and path.resolve().parent == output.resolve():
                raise UserError(f"{path} would give way to the pictures of this run: give another folder with --output")


def _ask(
    requests: Sequence[Request], model: TrainedModel, config: Config, neighbours: Mapping[int, Sequence[Neighbour]]
) -> tuple[list[Asked], list[Failure]]:
    image, v = model.image_tokenizer.config, model.vocabulary
    pictures = read_pictures((path for request in requests for path in request.pictures), model.image_tokenizer)
    asked, refused = [], []
    for request in requests:
        found = tuple(neighbours.get(request.number, ()))
        try:
            prompt = prompt_of(
                request,
                pictures,
                image,
                v,
                config.sampling.max_text_tokens,
                config.batch.sequence_length,
                [neighbour.tokens.tolist() for neighbour in found],
            )
            model.decoder.refuse_too_long([prompt])
            if config.sampling.scorer == "caption" and is_captioned(request):
                anything = np.zeros(image.image_length, np.int32)
                model.decoder.refuse_too_long([caption_prompt(request.prompt, anything, v)])
        except UserError as error:
            refused.append(Failure.of(request.line, error))
            continue
        codes = pictures[request.image] if request.image else None
        asked.append(Asked(request, prompt, codes if isinstance(codes, np.ndarray) else None, found))
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
    asked: Sequence[Asked], model: TrainedModel, sampling: SamplingConfig, num_candidates: int
) -> list[list[Answer]]:
    """The candidates for each request, which depend on the seed and on the request's place in the file alone."""
    answers: list[list[Answer]] = [[] for _ in asked]
    progress = Progress("generate", len(asked) * num_candidates, unit="answer")

    def task_of(index: int) -> int:
        return list(TASKS).index(asked[index].request.task)

    # One task at a time, and short prompts apart from long ones: answers of one length finish together.
    order = sorted(
        range(len(asked)),
        key=lambda i: (task_of(i), len(asked[i].prompt.plan), len(asked[i].prompt.streams[0].tokens)),
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
    asked: Sequence[Asked],
    answers: Sequence[Sequence[Answer]],
    model: TrainedModel,
    sampling: SamplingConfig,
    samples: int,
) -> tuple[list[dict[str, Any]], dict[str, Int[np.ndarray, "codes"]]]:
    """The lines about the best answers to each request, and the pictures that they name, as codes."""
    candidates = [
        [Candidate(one.request, answer, _picture(one, answer, model)) for answer in found]
        for one, found in zip(asked, answers, strict=True)
    ]
    scores = iter(SCORERS[sampling.scorer]([c for of_one in candidates for c in of_one], model))
    lines: list[dict[str, Any]] = []
    pictures: dict[str, Int[np.ndarray, "codes"]] = {}
    for one, of_one in zip(asked, candidates, strict=True):
        own_scores = list(itertools.islice(scores, len(of_one)))
        for sample, place in enumerate(best(own_scores, samples)):
            index = one.request.number * samples + sample
            fields, drawn = _fields(one, of_one[place], f"{index:05d}", model)
            line = {"index": index, "prompt": one.request.prompt, "task": one.request.task, "sample": sample}
            if one.neighbours:
                line["retrieved"] = [_retrieved(neighbour, model.vocabulary) for neighbour in one.neighbours]
            lines.append(line | {"image": None, "text": None, "score": own_scores[place]} | fields)
            pictures |= drawn
    return lines, pictures


def _retrieved(neighbour: Neighbour, vocabulary: Vocabulary) -> dict[str, Any]:
    text = vocabulary.decode_text(neighbour.tokens.tolist())
    return {"task": neighbour.task, "document": neighbour.document, "text": text, "score": neighbour.score}


def _picture(asked: Asked, answer: Answer, model: TrainedModel) -> Int[np.ndarray, "codes"] | None:
    """The codes of the picture that an answer is, if it is one."""
    request = asked.request
    if request.task in ("text_to_image", "edit"):
        return model.vocabulary.decode_image(np.array(answer.tokens))
    if request.task == "infill" and asked.codes is not None:
        mask = region_mask(request.region, model.image_tokenizer.config.grid)
        return prompts.filled(asked.codes, mask, answer.tokens, model.vocabulary)
    return None


def _fields(
    asked: Asked, candidate: Candidate, name: str, model: TrainedModel
) -> tuple[dict[str, Any], dict[str, Int[np.ndarray, "codes"]]]:
    """What a line says of an answer, and the pictures it names, which begin with `name`."""
    v, tokens = model.vocabulary, candidate.answer.tokens
    if candidate.picture is not None:
        return {"image": f"{name}.png"}, {f"{name}.png": candidate.picture}
    if asked.request.task == "infill_text":
        given = asked.request.prompt.split(prompts.BLANK)
        # An answer that used up its tokens has left out the last texts.
        texts = [*prompts.filled_texts(tokens, v), *[""] * asked.prompt.num_spans][: asked.prompt.num_spans]
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


def _write_pictures(
    output: Path, pictures: Mapping[str, Int[np.ndarray, "codes"]], model: TrainedModel, batch_size: int
) -> None:
    names = list(pictures)
    batch_size = min(batch_size, len(names))
    for start in range(0, len(names), batch_size or 1):
        chunk = names[start : start + batch_size]
        decoded = model.image_tokenizer.decode(np.stack([pictures[name] for name in chunk]), batch_size)
        for name, pixels in zip(chunk, decoded, strict=True):
            with replacing(output / name) as temporary:
                temporary.write_bytes(encode_png(pixels))


def _write_lines(file: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    with replacing(file) as temporary:
        temporary.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
