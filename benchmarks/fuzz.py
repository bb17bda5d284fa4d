"""Mutates valid inputs of every kind, and looks whether what reads them ends as it should.

    .venv/bin/python benchmarks/fuzz.py --seed=0 --count=10000 [--kinds=images,captions] [--seconds=600] [--jobs=2]
    .venv/bin/python benchmarks/fuzz.py --seed=0 --only=captions:17

A mutant is right where it is read, where what is wrong with it is skipped and counted, or where it is refused in one
line. It is wrong where anything else is raised, where it takes too long or too much memory, and where other data than
were written are taken for them. Wrong ones are kept, with the commands that make them again. A mutant follows from the
seed, its kind and its number alone.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

os.environ |= {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}

import numpy as np

RESULTS = ("read", "skipped", "refused", "wrong")
# Bounds for one mutant: seconds, and bytes above what its process had before.
SECONDS, MEMORY = 30.0, 1 << 30
# For what a process loads before its first mutant of a kind.
OPENING_SECONDS = 300.0
_OPENED = "opened"


class Kind(Protocol):
    """A kind of input."""

    # Of all mutants, in proportion to the other kinds'.
    share: int

    def make(self, base: Path) -> None:
        """Writes valid inputs into a folder, once."""

    def open(self, base: Path) -> None:
        """Loads what all mutants share, once in every process."""

    def mutate(self, base: Path, work: Path, rng: np.random.Generator) -> None:
        """Writes a mutant of the inputs into a folder."""

    def run(self, base: Path, work: Path) -> str:
        """Reads the mutant: says "read" or "skipped", raises a UserError where it is refused."""


def kinds() -> dict[str, Callable[[], Kind]]:
    """All kinds by name."""
    from fuzzing import raw_data, trained_runs

    return {
        "images": raw_data.Images,
        "captions": raw_data.Captions,
        "metadata": raw_data.Metadata,
        "prompts": raw_data.Prompts,
        "configs": raw_data.Configs,
        "corpus": trained_runs.Corpus,
        "checkpoints": trained_runs.SavedCheckpoints,
        "huggingface": trained_runs.HuggingFace,
    }


def attempt(kind: Kind, base: Path, work: Path, rng: np.random.Generator) -> tuple[str, str]:
    """The result of one mutant, and what was said or raised."""
    from cm3leon_jax.errors import UserError

    kind.mutate(base, work, rng)
    before = _reset_peak()
    try:
        result, said = kind.run(base, work), ""
    except UserError as error:
        said = str(error)
        result = "refused" if said.isprintable() else "wrong"
    except BaseException:
        result, said = "wrong", traceback.format_exc()
    if (taken := _peak() - before) > MEMORY:
        return "wrong", f"took {taken / 1e6:,.0f} MB ({said[-200:]})"
    return result, said


def work_off(pipe: Connection, names: list[str], seed: int, root: Path) -> None:
    """A worker: takes (kind, number), answers (kind, number, result, what was said)."""
    # Far more than any reader may take; a machine that swaps would tell nothing.
    resource.setrlimit(resource.RLIMIT_AS, (_virtual_size() + (24 << 30),) * 2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    opened: dict[str, Kind] = {}
    pipe.send(None)
    while (task := pipe.recv()) is not None:
        name, number = task
        if name not in opened:
            opened[name] = kinds()[name]()
            opened[name].open(root / "base" / name)
        pipe.send(_OPENED)
        work = root / "mutants" / f"{name}-{number}"
        work.mkdir(parents=True)
        rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
        result, said = attempt(opened[name], root / "base" / name, work, rng)
        if result != "wrong":
            shutil.rmtree(work, ignore_errors=True)
        pipe.send((name, number, result, said))


def fuzz(
    tasks: Iterator[tuple[str, int]], names: list[str], seed: int, jobs: int, root: Path, until: float
) -> Iterator[tuple[str, int, str, str]]:
    """Deals the tasks out to `jobs` processes; one that is silent for too long is ended, and another started."""
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, tuple[Any, tuple[str, int] | None, float]] = {}

    def start() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=work_off, args=(theirs, names, seed, root), daemon=True)
        process.start()
        theirs.close()
        workers[ours] = process, None, time.monotonic()

    for _ in range(jobs):
        start()
    while workers:
        for pipe in wait(list(workers), timeout=1.0):
            process, task, _ = workers.pop(pipe)
            try:
                answer = pipe.recv()
            except EOFError:
                process.join()
                if task is not None:
                    yield *task, "wrong", f"its process ended with {process.exitcode}"
                start()
                continue
            if answer == _OPENED:
                workers[pipe] = process, task, time.monotonic() + SECONDS
                continue
            if answer is not None:
                yield answer
            task = next(tasks, None) if time.monotonic() < until else None
            pipe.send(task)
            if task is not None:
                workers[pipe] = process, task, time.monotonic() + OPENING_SECONDS
            else:
                process.join()
        for pipe, (process, task, deadline) in list(workers.items()):
            if task is not None and time.monotonic() > deadline:
                process.kill()
                del workers[pipe]
                yield *task, "wrong", f"took more than {SECONDS:g} s"
                start()


def dealt(names: list[str], count: int) -> Iterator[tuple[str, int]]:
    """`count` mutants, each kind in proportion to its share, all kinds from the first on."""
    shares = {name: kinds()[name].share for name in names}  # type: ignore[attr-defined]
    whole = sum(shares.values())
    numbers = Counter[str]()
    for _ in range(count):
        name = min(names, key=lambda each: (numbers[each] + 1) / shares[each] * whole)
        yield name, numbers[name]
        numbers[name] += 1


def make_bases(names: list[str], base: Path) -> None:
    """Writes the valid inputs, which what is mutated starts from."""
    for name in names:
        (base / name).mkdir(parents=True)
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            kinds()[name]().make(base / name)


def table(results: dict[str, Counter[str]]) -> str:
    """Counts by kind, as Markdown."""
    rows = [("kind", "tried", *RESULTS), ("---",) * (2 + len(RESULTS))]
    rows += [(name, counts.total(), *(counts[result] for result in RESULTS)) for name, counts in results.items()]
    whole = sum(results.values(), Counter[str]())
    rows.append(("all", whole.total(), *(whole[result] for result in RESULTS)))
    return "\n".join(
        "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else cell for cell in row) + " |" for row in rows
    )


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))


def _virtual_size() -> int:
    return _status("VmSize")


def _peak() -> int:
    return _status("VmHWM")


def _reset_peak() -> int:
    """Lets the peak begin at what is resident now; returns that."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--kinds", default="", help="comma-separated; all of them by default")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no mutant is begun after so long")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--only", default="", metavar="KIND:NUMBER", help="one mutant, with its traceback")
    parser.add_argument("--output", type=Path, default=Path("fuzz-wrong"), help="where wrong mutants are kept")
    arguments = parser.parse_args()
    names = arguments.kinds.split(",") if arguments.kinds else list(kinds())
    if arguments.only:
        names = [arguments.only.partition(":")[0]]
    if unknown := [name for name in names if name not in kinds()]:
        parser.error(f"no kind {', '.join(unknown)}: they are {', '.join(kinds())}")
    started = time.monotonic()
    results: dict[str, Counter[str]] = {name: Counter() for name in names}
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        root = Path(folder)
        make_bases(names, root / "base")
        tasks = dealt(names, arguments.count)
        if arguments.only:
            tasks = iter([(names[0], int(arguments.only.partition(":")[2]))])
        until = started + arguments.seconds
        for name, number, result, said in fuzz(tasks, names, arguments.seed, arguments.jobs, root, until):
            results[name][result] += 1
            if result == "wrong" or arguments.only:
                print(f"{name}:{number}: {result}: {said.strip()[-3_000 if arguments.only else -300 :]}", flush=True)
            if result == "wrong":
                kept = arguments.output / f"{name}-{number}"
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(root / "mutants" / f"{name}-{number}", kept, symlinks=True, ignore=_no_pipes)
                command = f".venv/bin/python benchmarks/fuzz.py --seed={arguments.seed} --only={name}:{number}"
                (kept / "COMMAND.txt").write_text(f"{command}\n\n{said}\n")
    print(table(results))
    print(f"{time.monotonic() - started:,.0f} s with {arguments.jobs} processes, seed {arguments.seed}")
    return 1 if any(counts["wrong"] for counts in results.values()) else 0


def _no_pipes(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(folder) / name).is_fifo()]


if __name__ == "__main__":
    sys.exit(main())
