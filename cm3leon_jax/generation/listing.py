"""Answers as a person reads them on a terminal: what was asked, and below it the texts and the names of the images."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cm3leon_jax.generation.requests import Request
from cm3leon_jax.terminal import visible

# Requests whose answers are printed, and images that are named one by one for each.
_MOST_REQUESTS, _MOST_NAMES = 100, 6
_INDENT = "    "


def listing(requests: Sequence[Request], answers: Sequence[Mapping[str, Any]], is_of_a_file: bool) -> Iterator[str]:
    """Lines to print; texts are in full, their escape sequences spelled out.

    Args:
      requests: what was asked.
      answers: the lines of generations.jsonl, those of a request side by side and in the order of the requests.
      is_of_a_file: whether a request is one of many, with a line to be named by.
    """
    if not answers:
        return
    # An answer's number tells its request, as many numbers each.
    width = 1 + max(answer["sample"] for answer in answers)
    by_number = {request.number: request for request in requests}
    groups = itertools.groupby(answers, lambda answer: (answer["index"] - answer["sample"]) // width)
    for place, (number, found) in enumerate(groups):
        if place == _MOST_REQUESTS:
            yield f"(the answers to the first {_MOST_REQUESTS} requests; all of them are in generations.jsonl)"
            return
        request = by_number[number]
        line = f"line {request.line}, " if is_of_a_file else ""
        yield f"{line}{_asked(request)}"
        yield from _answered(list(found))


def _asked(request: Request) -> str:
    task = request.task.replace("_", " ")
    of = f" of {visible(request.image.name)}" if request.image else ""
    # An image and a continuation can do without a text; where it is all there is, its absence is said.
    text = visible(request.prompt) or ("(no text)" if request.task == "text_to_image" else "")
    return f"{task}{of}{': ' * bool(text)}{text}"


def _answered(answers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    images = [answer["image"] for answer in answers if answer["image"]]
    if len(images) > _MOST_NAMES:
        yield f"{_INDENT}{images[0]} to {images[-1]}, {len(images)} images"
    elif images:
        yield f"{_INDENT}{'  '.join(images)}"
    texts = [answer["text"] for answer in answers if answer["text"] is not None]
    continuations = [answer["segments"] for answer in answers if "segments" in answer]
    for text in texts:
        yield _shown(text or "(no text)")
    for place, segments in enumerate(continuations):
        if place:
            yield f"{_INDENT}--"
        for segment in segments or ["(nothing)"]:
            yield _shown(segment if isinstance(segment, str) else segment["image"])


def _shown(text: str) -> str:
    """A text behind an indent, with its own line breaks."""
    return textwrap.indent(visible(text, keep="\n"), _INDENT, lambda line: True)
