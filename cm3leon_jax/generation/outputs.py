"""Writes results: one PNG per image, generations.jsonl, failed.jsonl for records without a result, and a listing.

A run takes the place of the one before it in its folder, which is what the lists there name; a folder that holds other
things is refused before anything is computed. New files are made in a hidden folder inside and moved into place at the
end, lists last. A run that was killed leaves its lists in that hidden folder: the next one clears up after it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import json
import os
import re
import stat
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from cm3leon_jax.distributed import all_processes, is_coordinator
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import atomic_write, is_full_disk, move, remove, remove_folder
from cm3leon_jax.generation.generate import Result
from cm3leon_jax.generation.load import TrainedModel
from cm3leon_jax.generation.rank import Candidate
from cm3leon_jax.generation.requests import Failure, ImageSource, Request
from cm3leon_jax.images import encode_png
from cm3leon_jax.lock import lock
from cm3leon_jax.storage import mirror
from cm3leon_jax.storage.address import address_of
from cm3leon_jax.terminal import visible

RESULTS_FILE, FAILURES_FILE = "generations.jsonl", "failed.jsonl"
_LISTS = (RESULTS_FILE, FAILURES_FILE)
_IMAGE = re.compile(r"(\d{5,})(_\d+)?\.png")
_STAGE = re.compile(r"\.generate\.\d+\.partial")
# The lists of the run before, while its files are replaced.
_EARLIER = "earlier."
# What desktops put into every folder that they show.
_OF_DESKTOPS = ("thumbs.db", "desktop.ini")
# Far above any line that is written here.
_LONGEST_LINE = 1 << 26

# Requests whose results are printed, and images that are named one by one for each.
_MOST_REQUESTS, _MOST_NAMES = 100, 6
_INDENT = "    "


def write_results(
    results: Sequence[Result],
    failures: Sequence[Failure],
    folder: OutputFolder,
    model: TrainedModel,
    samples: int,
    batch_size: int,
) -> tuple[list[dict[str, Any]], int]:
    """Puts results in the place of an earlier run's, on process 0; returns the lines and the number of images."""
    lines: list[dict[str, Any]] = []
    images: dict[str, Int[np.ndarray, "codes"]] = {}
    for result in results:
        for sample, (candidate, score) in enumerate(zip(result.candidates, result.scores, strict=True)):
            index = result.request.number * samples + sample
            fields, named = _fields(candidate, f"{index:05d}")
            images |= named
            request = {"prompt": result.request.prompt, "task": result.request.task}
            line = {"index": index, **request, "sample": sample, **_retrieved(result, model)}
            lines.append(line | {"image": None, "text": None, "score": score} | fields)
    if not is_coordinator():
        return lines, len(images)
    with folder.stage() as stage:
        names = list(images)
        batch_size = max(1, min(batch_size, len(names)))
        for start in range(0, len(names), batch_size):
            chunk = names[start : start + batch_size]
            pixels = model.image_tokenizer.decode(np.stack([images[name] for name in chunk]), batch_size)
            for name, image in zip(chunk, pixels, strict=True):
                (stage / name).write_bytes(encode_png(image))
        if lines:
            write_lines(stage / RESULTS_FILE, lines)
        if failures:
            write_lines(stage / FAILURES_FILE, [dataclasses.asdict(failure) for failure in failures])
    return lines, len(images)


def _retrieved(result: Result, model: TrainedModel) -> dict[str, Any]:
    v = model.vocabulary
    found = [
        {"task": n.task, "document": n.document, "text": v.decode_text(n.tokens.tolist()), "score": n.score}
        for n in result.neighbors
    ]
    return {"retrieved": found} if found else {}


def _fields(candidate: Candidate, name: str) -> tuple[dict[str, Any], dict[str, Int[np.ndarray, "codes"]]]:
    """What a line says of a candidate, and the images that it names, which begin with `name`."""
    if candidate.image is not None:
        return {"image": f"{name}.png"}, {f"{name}.png": candidate.image}
    fields: dict[str, Any] = {"text": candidate.text}
    if candidate.texts is not None:
        fields["texts"] = list(candidate.texts)
    images = {}
    if candidate.segments is not None:
        fields["segments"] = []
        for number, segment in enumerate(candidate.segments):
            if not isinstance(segment, str):
                images[f"{name}_{number}.png"] = segment
            fields["segments"].append(segment if isinstance(segment, str) else {"image": f"{name}_{number}.png"})
    return fields, images


def listing(requests: Sequence[Request], lines: Sequence[Mapping[str, Any]], is_of_a_file: bool) -> Iterator[str]:
    """The lines of generations.jsonl as lines for a terminal: texts in full, their escape sequences spelled out."""
    if not lines:
        return
    # A sample's index tells its request, as many indices each.
    width = 1 + max(line["sample"] for line in lines)
    by_number = {request.number: request for request in requests}
    groups = itertools.groupby(lines, lambda line: (line["index"] - line["sample"]) // width)
    for count, (number, found) in enumerate(groups):
        if count == _MOST_REQUESTS:
            yield f"(the results of the first {_MOST_REQUESTS} requests; all of them are in {RESULTS_FILE})"
            return
        request = by_number[number]
        task = request.task.replace("_", " ")
        of = f" of {visible(request.image.name)}" if isinstance(request.image, Path) else ""
        # An image and a continuation can do without a text; where it is all there is, its absence is shown.
        text = visible(request.prompt) or ("(no text)" if request.task == "text_to_image" else "")
        yield f"{f'line {request.line}, ' if is_of_a_file else ''}{task}{of}{': ' * bool(text)}{text}"
        yield from _listed(list(found))


def _listed(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    images = [line["image"] for line in lines if line["image"]]
    if len(images) > _MOST_NAMES:
        yield f"{_INDENT}{images[0]} to {images[-1]}, {len(images)} images"
    elif images:
        yield f"{_INDENT}{'  '.join(images)}"
    for line in lines:
        if line["text"] is not None:
            yield _indented(line["text"] or "(no text)")
    for number, segments in enumerate(line["segments"] for line in lines if "segments" in line):
        if number:
            yield f"{_INDENT}--"
        for segment in segments or ["(nothing)"]:
            yield _indented(segment if isinstance(segment, str) else segment["image"])


def _indented(text: str) -> str:
    """A text with its own line breaks."""
    return textwrap.indent(visible(text, keep="\n"), _INDENT, lambda line: True)


@dataclass(frozen=True)
class OutputFolder:
    """A folder that one run alone fills."""

    path: Path
    # The files that the run before left there.
    earlier: frozenset[Path]

    def will_replace(self, path: ImageSource) -> bool:
        """Whether a file is one of the run before, which this run removes."""
        try:
            return isinstance(path, Path) and path.resolve() in self.earlier
        # Of a path with a NUL character, and of links in a circle.
        except (OSError, ValueError, RuntimeError):
            return False

    @contextlib.contextmanager
    def stage(self) -> Iterator[Path]:
        """Yields a hidden folder; what the body leaves there takes the place of the run before, and of nothing else."""
        stage = self.path / f".generate.{os.getpid()}.partial"
        stage.mkdir()
        try:
            yield stage
            # Again: a user may have put something there meanwhile.
            _replace(self.path, stage, _earlier(self.path, besides=stage.name))
        finally:
            remove_folder(stage)


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[OutputFolder]:
    """Makes sure that results can be put into a folder, and locks it; all processes of a run call this.

    Raises:
      UserError: if it cannot be a folder, another run writes there, or it holds what is not a run's.
    """
    if address_of(path):
        mirror.refresh(path)
        path.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        refusal = ""
        if is_coordinator():
            try:
                if not path.exists():
                    path.mkdir(parents=True)
                    held.callback(_remove_if_empty, path)
                # Before the lock, too: a folder that is refused is not written to at all.
                _earlier(path)
                if not os.access(path, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            except UserError as error:
                refusal = str(error)
            except (OSError, ValueError) as error:
                if is_full_disk(error):
                    raise
                why = getattr(error, "strerror", None) or error
                if isinstance(error, FileExistsError | NotADirectoryError):
                    why = "a file is there"
                refusal = f"the folder {path} cannot be made or used ({why}): name another with --output"
        if not all_processes(not refusal):
            raise UserError(refusal or f"{path} was refused to process 0 of this run: see what it says")
        held.enter_context(lock(path, "generate"))
        yield OutputFolder(path, frozenset(path.resolve() / name for name in _earlier(path)))


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def write_lines(file: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Writes JSON lines; a number that JSON has no word for is an internal error."""
    with atomic_write(file) as temporary, temporary.open("w", encoding="utf-8") as out:
        for line in lines:
            out.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def _earlier(folder: Path, besides: str = "") -> set[str]:
    """Paths, relative to the folder, that earlier runs left in it; a `UserError` if other files are in the way."""
    entries = {entry.name: entry for entry in os.scandir(folder) if entry.name != besides}
    stages = {name for name, entry in entries.items() if _STAGE.fullmatch(name) and entry.is_dir(follow_symlinks=False)}
    named = {name for name in _LISTS if name in entries}
    lists = [folder / name for name in named]
    for stage in stages:
        lists += [file for file in (folder / stage).iterdir() if file.name.removeprefix(_EARLIER) in _LISTS]
    for file in sorted(lists):
        named.update(_named_in(file))
    ours = {name for name in named if name in entries and entries[name].is_file(follow_symlinks=False)}
    others = [
        name
        for name in sorted(entries.keys() - ours - stages)
        if not name.startswith(".") and name.lower() not in _OF_DESKTOPS
    ]
    if others and not lists and not stages:
        raise UserError(
            f"{folder} is not empty ({others[0]} is there), and no generations.jsonl says that `generate` filled it: "
            "name an empty or a new folder with --output"
        )
    for name in others:
        # Some file systems take upper and lower case for the same.
        if _IMAGE.fullmatch(name.lower()) or name.lower() in _LISTS:
            raise UserError(
                f"{folder / name} has a name that a result may take, and was not written by `generate`: move it "
                "away, or name another folder with --output"
            )
    return ours | stages


def _named_in(file: Path) -> Iterator[str]:
    """The images that a list of an earlier run names; a `UserError` if the file is no such list."""
    try:
        if not stat.S_ISREG(file.lstat().st_mode):
            raise ValueError("no ordinary file")
        with file.open(encoding="utf-8") as lines:
            while line := lines.readline(_LONGEST_LINE):
                value = json.loads(line)
                if file.name.removeprefix(_EARLIER) == RESULTS_FILE:
                    yield from _images_of(value)
                elif not isinstance(value, dict) or value.keys() != {"line", "error"}:
                    raise ValueError("no failure")
    except (OSError, ValueError, RecursionError):
        raise UserError(
            f"{file} is damaged or was not written by `generate`, so what it names stays: move it away, or name "
            "another folder with --output"
        ) from None


def _images_of(line: Any) -> Iterator[str]:
    """The images that one line names: plain names that begin with the line's own number."""
    if not isinstance(line, dict) or not isinstance(line.get("index"), int) or "task" not in line:
        raise ValueError("no result")
    segments = line.get("segments") or []
    named = [line.get("image"), *(segment.get("image") for segment in segments if isinstance(segment, dict))]
    for name in named:
        if name is None:
            continue
        match = _IMAGE.fullmatch(name) if isinstance(name, str) else None
        if match is None or int(match[1]) != line["index"]:
            raise ValueError("no name of a result")
        yield name


def _replace(folder: Path, stage: Path, earlier: set[str]) -> None:
    """Puts what is staged in the place of what earlier runs left; wherever it stops, some list names all of it."""
    new = sorted((file.name for file in stage.iterdir()), key=lambda name: name in _LISTS)
    for name in _LISTS:
        if name in earlier:
            move(folder / name, stage / f"{_EARLIER}{name}")
    # Hidden folders last: their lists name what killed runs left beside them.
    for name in sorted(earlier - set(_LISTS), key=lambda name: bool(_STAGE.fullmatch(name))):
        if _STAGE.fullmatch(name):
            remove_folder(folder / name)
        else:
            remove(folder / name)
    for name in new:
        move(stage / name, folder / name)
