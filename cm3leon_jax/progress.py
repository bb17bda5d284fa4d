"""Shows the progress of long work as a bar or as lines, and logs training steps as JSON lines."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cm3leon_jax.files import atomic_write
from cm3leon_jax.storage import mirror

log = logging.getLogger(__name__)


class Progress:
    """Shows a tqdm bar on a terminal, and plain lines where the output goes to a file."""

    def __init__(self, what: str, total: int, first: int = 0, unit: str = "step", shown: bool = True) -> None:
        self._what, self._total, self._first, self._shown = what, total, first, shown
        self._is_watched = shown and sys.stderr.isatty()
        self._bar = tqdm(
            total=total, initial=first, desc=what, unit=unit, disable=not self._is_watched, dynamic_ncols=True
        )
        self._started = time.perf_counter()

    def advance(self, count: int = 1) -> None:
        """Counts so many more as done."""
        self._bar.update(count)

    def say(self, done: int, text: str) -> None:
        """Shows a text about the state after `done`."""
        if self._is_watched:
            self._bar.set_postfix_str(text)
        elif self._shown:
            seconds = (time.perf_counter() - self._started) / max(1, done - self._first) * (self._total - done)
            print(f"{self._what} {done:,}/{self._total:,}: {text}, {_duration(seconds)} left", flush=True)

    def close(self) -> None:
        self._bar.close()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class StepLog:
    """Writes a file of JSON lines, one per logged step; continuing at a step first drops the later lines.

    Damaged lines are moved to a second file, and a message says so; the half line of a crash is only dropped.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        lines, damaged = _parsed(path)
        kept = [line for line in lines if line["step"] <= first_step]
        if damaged:
            aside = path.with_name(f"{path.name}.damaged")
            with aside.open("ab") as file:
                file.writelines(line + b"\n" for line in damaged.values())
            mirror.publish(aside, aside)
            numbers = ", ".join(map(str, damaged))
            log.info(f"note: line {numbers} of {path} cannot be read, and is now in {aside.name}")
        with atomic_write(path) as temporary:
            temporary.write_text("".join(json.dumps(line, allow_nan=False) + "\n" for line in kept), encoding="utf-8")
        self._path, self._file = path, path.open("a", buffering=1, encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line; values that are not finite become null, since JSON has no words for them."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")

    def flush(self) -> None:
        """Returns once the lines are on the disk, and in the bucket that the file is in."""
        self._file.flush()
        os.fsync(self._file.fileno())
        mirror.publish(self._path, self._path)

    def close(self) -> None:
        self._file.close()
        mirror.publish(self._path, self._path)


def read_step_log(path: Path) -> list[dict[str, Any]]:
    """Reads the lines of a step log, except damaged ones."""
    return _parsed(path)[0]


def _parsed(path: Path) -> tuple[list[dict[str, Any]], dict[int, bytes]]:
    """The readable lines, and the damaged ones by number; the half line of a crash is neither."""
    content = path.read_bytes() if path.exists() else b""
    parts = content.split(b"\n")
    lines, damaged = [], {}
    for number, line in enumerate(parts, start=1):
        if (found := _logged_step(line)) is not None:
            lines.append(found)
        elif number < len(parts):
            damaged[number] = line
    return lines, damaged


def _logged_step(line: bytes) -> dict[str, Any] | None:
    """Parses a line with a step, and numbers by name; None for anything else."""
    try:
        found = json.loads(line)
    # A number of too many digits is a ValueError, too, as is text that is not UTF-8.
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or type(found.get("step")) is not int:
        return None
    values = found.values()
    is_number = all(value is None or (type(value) in (int, float) and math.isfinite(value)) for value in values)
    return found if is_number else None
