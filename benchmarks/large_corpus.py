"""Prepares the 200,000 icons of examples/icons with neighbors, killed on the way: seconds, memory and bytes.

    python benchmarks/large_corpus.py --data=runs/icons/data --folder=runs/large_corpus \
      --config=encoder.embedding_dim=512

`--data` is what `python -m examples.icons.convert` writes. Every command is a process of its own, whose CPU seconds and
peak of memory are taken together with those of its children. First comes one tar of 10,000 icons alone, to compare the
memory; then all, with `prepare` killed (SIGKILL) three times, twice among the tokens and once among the neighbors, and
started again. At the end all of the corpus is read against its checksums. A benchmark that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

_POLL_SECONDS = 0.2
# `prepare` is killed once so many of these files of 13 are there.
_KILLS = (
    ("a third of the tokens", "*/train/shard-*.json", 4),
    ("two thirds of the tokens", "*/train/shard-*.json", 9),
    ("half of the neighbors", "retrieval/*/train/lists-*.json", 6),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--config", action="append", default=[], help="a further field=value of all commands")
    arguments = parser.parse_args()
    folder, data = arguments.folder.resolve(), arguments.data.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    done = Done(folder / "done.json")
    everything = f"--config.corpus.mixture=webdataset:{data}/icons"
    shared = [
        "--config=icons",
        *(f"--config.{value}" for value in arguments.config),
        *(f"--config.{name}.path={folder / name}" for name in ("vocabulary", "image_tokenizer", "encoder")),
    ]
    for command in ("train-text-tokenizer", "train-image-tokenizer", "train-encoder"):
        done.run(command, [command, f"--workdir={folder}/all", everything, *shared])
    ten_thousand = f"--config.corpus.mixture=webdataset:{data}/icons/train/00000.tar"
    done.run("prepare 10,000", ["prepare", f"--workdir={folder}/part", ten_thousand, *shared])
    corpus = folder / "all" / "corpus"
    prepare = ["prepare", f"--workdir={folder}/all", everything, *shared]
    for name, pattern, count in _KILLS:
        done.run(f"prepare, {name}", prepare, lambda: len(list(corpus.glob(pattern))) >= count)  # noqa: B023
    done.run("prepare, the rest", prepare)
    done.run("inspect --check", ["inspect", "--check", f"--workdir={folder}/all", everything, *shared])
    manifest = json.loads((corpus / "manifest.json").read_text())
    for name, task in manifest["tasks"].items():
        for split, entry in task["splits"].items():
            print(f"{name} {split}: {entry['num_documents']:,} documents, {entry['num_tokens']:,} tokens")
    for name in ("all", "part"):
        sizes = {"tokens": 0, "retrieval": 0}
        for file in (folder / name / "corpus").rglob("*"):
            sizes["retrieval" if "retrieval" in file.parts else "tokens"] += file.stat().st_size
        print(f"{name}: {sizes['tokens']:,} bytes of tokens, {sizes['retrieval']:,} of retrieval")
    return 0


class Done:
    """What was run, with its CPU seconds, seconds, and peak of memory, in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known = json.loads(file.read_text()) if file.exists() else {}
        for name, entry in self._known.items():
            self._show(name, entry)

    def run(self, name: str, command: list[str], is_enough: Callable[[], bool] | None = None) -> None:
        """Runs a command to its end, or kills it once that is enough."""
        if name in self._known:
            return
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
        process = subprocess.Popen([sys.executable, "-m", "cm3leon_jax", *command], cwd=REPOSITORY)
        peak, is_killed = 0.0, False
        while process.poll() is None:
            time.sleep(_POLL_SECONDS)
            peak = max(peak, _peak(process.pid))
            if is_enough is not None and is_enough():
                process.send_signal(signal.SIGKILL)
                is_killed = True
        code = process.wait()
        if code != (-signal.SIGKILL if is_killed else 0):
            raise SystemExit(f"{name} ended with {code}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self._known[name] = entry = {"cpu": seconds, "wall": time.time() - started, "megabytes": peak}
        self._file.write_text(json.dumps(self._known, indent=2) + "\n")
        self._show(name, entry)

    @staticmethod
    def _show(name: str, entry: dict[str, float]) -> None:
        print(f"{name:32} {entry['cpu']:8.0f} CPU s {entry['wall']:8.0f} s {entry['megabytes']:8.0f} MB", flush=True)


def _peak(process: int) -> float:
    """The most memory that a process had, in MB; what it only maps from files counts as far as it was read."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


if __name__ == "__main__":
    sys.exit(main())
