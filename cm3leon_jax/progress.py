"""How far a long work is: a bar on a terminal, a line now and then elsewhere, and one JSON object a logged step."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cm3leon_jax.files import replacing


class Progress:
    """A tqdm bar where somebody watches; where the output goes to a file, plain lines of what is said."""

    def __init__(self, what: str, total: int, first: int = 0, unit: str = "step", shown: bool = True) -> None:
        self._what, self._total, self._first, self._shown = what, total, first, shown
        self._is_watched = shown and sys.stderr.isatty()
        self._bar = tqdm(
            total=total, initial=first, desc=what, unit=unit, disable=not self._is_watched, dynamic_ncols=True
        )
        self._started = time.perf_counter()

    def advance(self) -> None:
        """One more is done."""
        self._bar.update()

    def say(self, done: int, text: str) -> None:
        """Shows how things stand after `done`."""
        if self._is_watched:
            self._bar.set_postfix_str(text)
        elif self._shown:
            seconds = (time.perf_counter() - self._started) / max(1, done - self._first) * (self._total - done)
            print(f"{self._what} {done:,}/{self._total:,}: {text}, {_duration(seconds)} left", flush=True)

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class StepLog:
    """A file of JSON lines, one a logged step; continuing at a step first drops what lies past it."""

    def __init__(self, path: Path, first_step: int) -> None:
        kept = [line for line in read_step_log(path) if line["step"] <= first_step]
        with replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_step_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a step log; one that was cut off by a crash is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines
