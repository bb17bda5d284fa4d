"""Draw, caption and fill in from prompts, with the latest checkpoint of a run.

Prompts are JSON lines: {"prompt": "...", "task": "text_to_image | caption | infill", "image": "file.png",
"region": [left, top, right, bottom]}, the region in shares of the picture's sides, the middle half of its height by
default. Writes one PNG a picture and generations.jsonl to --output.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from cm3leon_jax.config import Config
from cm3leon_jax.documents import UnreadablePicture, encode_png, open_picture
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import replacing
from cm3leon_jax.generation import prompts
from cm3leon_jax.generation.decoder import Answer
from cm3leon_jax.generation.restoring import TrainedModel, restore_model
from cm3leon_jax.image_tokenizer.codec import ImageTokenizer

TASKS = ("text_to_image", "caption", "infill")
MIDDLE_HALF = (0.0, 0.25, 1.0, 0.75)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `generate` takes beside the config."""
    parser.add_argument("--prompts", metavar="FILE", help="prompts as JSON lines")
    parser.add_argument("--prompt", metavar="TEXT", help="one text to draw")
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="answers a prompt (default: 1)")
    parser.add_argument("--output", metavar="DIR", help="folder of the answers (default: WORKDIR/generations)")


@dataclass(frozen=True)
class Request:
    """One line of a prompts file."""

    text: str
    task: str = "text_to_image"
    codes: Int[np.ndarray, "codes"] | None = None
    region: tuple[float, float, float, float] = MIDDLE_HALF


def run(config: Config, workdir: Path, arguments: argparse.Namespace) -> None:
    """Answers every prompt."""
    if bool(arguments.prompts) == bool(arguments.prompt):
        raise UserError("give either --prompt=TEXT or --prompts=FILE")
    if arguments.samples < 1:
        raise UserError(f"--samples={arguments.samples}: at least 1")
    model = restore_model(config, workdir)
    requests = (
        [Request(arguments.prompt)]
        if arguments.prompt
        else read_requests(Path(arguments.prompts), model.image_tokenizer)
    )
    requests = [request for request in requests for _ in range(arguments.samples)]
    output = Path(arguments.output or workdir / "generations")
    output.mkdir(parents=True, exist_ok=True)

    by_index: dict[int, Answer] = {}
    # One task at a time: answers of one length finish together.
    for task in TASKS:
        indices = [index for index, request in enumerate(requests) if request.task == task]
        found = model.decoder([_prompt(requests[i], config, model) for i in indices], config.sampling, indices)
        by_index |= dict(zip(indices, found, strict=True))
    answers = [by_index[index] for index in range(len(requests))]
    lines = [
        {"index": index, "prompt": request.text, "task": request.task, "sample": index % arguments.samples}
        | {"image": None, "text": None, "score": answer.score}
        for index, (request, answer) in enumerate(zip(requests, answers, strict=True))
    ]
    drawn = [index for index, request in enumerate(requests) if request.task != "caption"]
    codes = [_picture_codes(requests[index], answers[index], model) for index in drawn]
    pictures = model.image_tokenizer.decode(np.stack(codes), config.sampling.batch_size) if drawn else ()
    for index, picture in zip(drawn, pictures, strict=True):
        lines[index]["image"] = f"{index:05d}.png"
        with replacing(output / f"{index:05d}.png") as temporary:
            temporary.write_bytes(encode_png(picture))
    for line, answer in zip(lines, answers, strict=True):
        if line["task"] == "caption":
            line["text"] = model.vocabulary.decode_text(answer.tokens).strip()
    with replacing(output / "generations.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    print(f"{len(lines)} answers of the checkpoint of step {model.step} are in {output}")


def region_mask(region: tuple[float, float, float, float], grid: int) -> Bool[np.ndarray, "codes"]:
    """The codes of a picture that a region (left, top, right, bottom, in shares of the sides) covers."""
    left, top, right, bottom = (round(share * grid) for share in region)
    mask = np.zeros((grid, grid), bool)
    mask[top:bottom, left:right] = True
    return mask.ravel()


def read_requests(file: Path, image_tokenizer: ImageTokenizer) -> list[Request]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"no prompts file {file}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the prompts file {file} cannot be read ({error}): give a text file of JSON lines") from None
    requests = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{file}, line {number} is not JSON ({error}): write one object a line") from None
            requests.append(_read_request(value, f"{file}, line {number}", file.parent, image_tokenizer))
    if not requests:
        raise UserError(f"the prompts file {file} is empty: write one JSON object a line")
    return requests


def _read_request(value: Any, where: str, folder: Path, image_tokenizer: ImageTokenizer) -> Request:
    if not isinstance(value, dict):
        raise UserError(f'{where}: write an object such as {{"prompt": "a handwritten seven"}}')
    unknown = value.keys() - {"prompt", "task", "image", "region"}
    if unknown:
        raise UserError(f"{where}: no such field {', '.join(sorted(unknown))}; there are prompt, task, image, region")
    task = value.get("task", "text_to_image")
    if task not in TASKS:
        raise UserError(f"{where}: task {task!r} is none of {', '.join(TASKS)}")
    if not isinstance(value.get("prompt", "" if task == "caption" else None), str):
        raise UserError(f"{where}: the task {task} needs a prompt, a text")
    request = Request(text=value.get("prompt", ""), task=task)
    if task == "text_to_image":
        return request
    if not isinstance(value.get("image"), str):
        raise UserError(f"{where}: the task {task} needs an image, the name of a file")
    path = folder / value["image"]
    config = image_tokenizer.config
    try:
        pixels = open_picture(path.read_bytes(), config.resolution, config.in_channels)
    except FileNotFoundError:
        raise UserError(f"{where}: no picture {path}") from None
    except (OSError, UnreadablePicture) as error:
        raise UserError(f"{where}: the picture {path} cannot be read ({error})") from None
    region = value.get("region", MIDDLE_HALF)
    is_region = isinstance(region, list | tuple) and len(region) == 4
    if not is_region or not all(isinstance(share, int | float) and 0 <= share <= 1 for share in region):
        raise UserError(f"{where}: region is [left, top, right, bottom] in shares of the picture's sides, 0 to 1")
    left, top, right, bottom = map(float, region)
    region = (left, top, right, bottom)
    if not region_mask(region, config.grid).any():
        raise UserError(f"{where}: the region {list(region)} covers no code of the {config.grid} x {config.grid} codes")
    codes = image_tokenizer.encode(pixels[None])[0]
    return dataclasses.replace(request, codes=codes, region=region)


def _prompt(request: Request, config: Config, model: TrainedModel) -> prompts.Prompt:
    vocabulary, image = model.vocabulary, model.image_tokenizer.config
    if request.codes is None:
        return prompts.text_to_image(request.text, image.image_length, vocabulary)
    if request.task == "caption":
        return prompts.text_infill(prompts.BLANK, request.codes, config.sampling.max_text_tokens, vocabulary)
    return prompts.infill(request.text, request.codes, region_mask(request.region, image.grid), vocabulary)


def _picture_codes(request: Request, answer: Answer, model: TrainedModel) -> Int[np.ndarray, "codes"]:
    if request.codes is None:
        return model.vocabulary.decode_image(np.array(answer.tokens))
    mask = region_mask(request.region, model.image_tokenizer.config.grid)
    return prompts.filled(request.codes, mask, answer.tokens, model.vocabulary)
