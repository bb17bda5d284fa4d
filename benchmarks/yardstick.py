"""Records what a rebuild must not change, and compares two records bit by bit.

    python benchmarks/yardstick.py record --out=before.json        # and later, --out=after.json
    python benchmarks/yardstick.py compare before.json after.json --renamed=renamed.json

A record holds the demo's vocabulary, image tokenizer, prepared corpus and every value of its first 300 steps; answers
and scores of each generation task and evaluation.json of that checkpoint; a run on a mesh of eight virtual devices with
microbatches; an exported folder; and emoji with retrieval, cut short. The commands write no tokens: images (as pixels),
texts and scores stand for them.

The product is known through its commands alone, in yardstick_product.py. A stage whose rows are in the file already is
not run again, so an interrupted record goes on.

A row is {key: {position: value}}, and a value is the same where its `repr` is. `--renamed` names a JSON file:

    {"renamed": {"loss_image": "loss/image"}, "explained": {"demo evaluation": "a key was added", "ROW: KEY": "..."}}

`renamed` maps old names of rows, keys, and parts of keys (between / . and :) to new ones, "ROW: KEY" those of one row
(under its old name) alone; `explained` gives the reason why a row or one of its keys differs, by new names. Ends with 1
if anything differs without an explanation.

Losses depend on the machine (instruction sets, number of cores): compare records of one machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from yardstick_comparison import Explanations, Row, compared, num_values
from yardstick_product import IMAGES, PROMPTS, STAGES, Stage

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Records or compares; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="run the commands and write what they gave")
    recording.add_argument("--out", type=Path, required=True, metavar="FILE", help="goes on with it if it is there")
    recording.add_argument("--only", default="", metavar="A,B", help=f"of {', '.join(each.name for each in STAGES)}")
    recording.add_argument("--workdir", type=Path, metavar="DIR", help="for the runs (default: FILE.runs)")
    recording.add_argument(
        "--prefix", default="", metavar="COMMAND", help="in front of each command, such as 'nice -n 5'"
    )
    comparing = commands.add_parser("compare", help="compare two records")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    comparing.add_argument("--renamed", type=Path, metavar="FILE", help="new names and reasons, as above")
    arguments = parser.parse_args(argv)
    if arguments.command == "compare":
        return _compare(arguments)
    only = [name for name in arguments.only.split(",") if name]
    if unknown := set(only) - {stage.name for stage in STAGES}:
        parser.error(f"no stage {', '.join(sorted(unknown))}: {', '.join(each.name for each in STAGES)}")
    return _record(arguments, only)


def _record(arguments: argparse.Namespace, only: Sequence[str]) -> int:
    work = (arguments.workdir or arguments.out.with_suffix(".runs")).resolve()
    made_by = _made_by()
    record: dict[str, Any] = {"made_by": made_by, "seconds": {}, "rows": {}}
    if arguments.out.exists():
        record = json.loads(arguments.out.read_text(encoding="utf-8"))
        if record["made_by"] != made_by:
            print(f"{arguments.out} was made by {record['made_by']}, this is {made_by}: name another file with --out")
            return 2
    _write_prompts(work / "prompts")
    for stage in stages_to_run(STAGES, only, record["rows"], lambda name: _is_made(work, name, made_by)):
        print(f"{stage.name} ...", end=" ", flush=True)
        start = time.perf_counter()
        if not _run(stage, shlex.split(arguments.prefix), work):
            return 1
        record["rows"][stage.name] = stage.rows(work)
        if empty := [name for name, row in record["rows"][stage.name].items() if not row]:
            raise ValueError(f"nothing was found for {', '.join(empty)}")
        record["seconds"][stage.name] = round(time.perf_counter() - start, 1)
        _write(arguments.out, json.dumps(record, ensure_ascii=False, indent=1))
        _write(_marker(work, stage.name), json.dumps(made_by))
        print(f"{record['seconds'][stage.name]} s", flush=True)
    rows = _rows(record)
    print(f"{len(rows)} rows, {sum(map(num_values, rows.values())):,} values, {sum(record['seconds'].values()):.0f} s")
    return 0


def stages_to_run(
    stages: Sequence[Stage], only: Sequence[str], recorded: Mapping[str, Any], is_made: Callable[[str], bool]
) -> list[Stage]:
    """The stages whose rows are wanted and missing, and those whose files they need and do not find, in order."""
    by_name = {stage.name: stage for stage in stages}
    chosen: set[str] = set()

    def choose(name: str) -> None:
        chosen.add(name)
        for needed in by_name[name].needs:
            if not is_made(needed):
                choose(needed)

    for name in only or by_name:
        if name not in recorded:
            choose(name)
    return [stage for stage in stages if stage.name in chosen]


def _run(stage: Stage, prefix: Sequence[str], work: Path) -> bool:
    if stage.fresh:
        shutil.rmtree(work / stage.fresh, ignore_errors=True)
    # From ROOT, so that this checkout's package and configs are found.
    command = [*prefix, sys.executable, "-m", "cm3leon_jax"]
    command += [argument.replace("{work}", str(work)) for argument in stage.command]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "SLURM_"))}
    environment = kept | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={stage.num_devices}",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    log = work / "logs" / f"{stage.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT).returncode
    if code:
        said = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        print(f"ended with {code}:\n{shlex.join(command)}\n{said}")
    return code == 0


def _made_by() -> dict[str, Any]:
    """What decides the numbers beside the commands: commit, machine, versions."""
    code = ("--", "cm3leon_jax", "configs")
    last, changed = _git("log", "-1", "--format=%h", *code), _git("status", "--porcelain", *code)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "commit": (last or "unknown") + (", changed since" if changed else ""),
        "machine": f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")},
    }


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def _marker(work: Path, stage: str) -> Path:
    return work / "made" / stage


def _is_made(work: Path, stage: str, made_by: Mapping[str, Any]) -> bool:
    file = _marker(work, stage)
    return file.exists() and json.loads(file.read_text()) == made_by


def _write_prompts(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in IMAGES.items():
        draw().save(folder / name)
    for name, prompts in PROMPTS.items():
        _write(folder / name, "".join(json.dumps(prompt) + "\n" for prompt in prompts))


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)


def _rows(record: Mapping[str, Any]) -> dict[str, Row]:
    return {name: row for rows in record["rows"].values() for name, row in rows.items()}


def _compare(arguments: argparse.Namespace) -> int:
    old, new = (json.loads(file.read_text(encoding="utf-8")) for file in (arguments.old, arguments.new))
    given = json.loads(arguments.renamed.read_text(encoding="utf-8")) if arguments.renamed else {}
    explanations = Explanations(**given)
    for record in (old, new):
        print(f"{record['made_by']['commit']} on {record['made_by']['machine']}")
    if any(old["made_by"][name] != new["made_by"][name] for name in ("machine", "versions")):
        print("another machine or other versions: sums of floats may have another order")
    verdicts = compared(_rows(old), _rows(new), explanations)
    width = max((len(each.row) for each in verdicts), default=3)
    print(f"\n{'row':<{width}}  {'values':>7}  {'result':<9}  {'relative':>8}  first difference")
    for each in verdicts:
        relative = "" if each.largest_relative is None else f"{each.largest_relative:.1e}"
        line = f"{each.row:<{width}}  {each.num_values:>7,}  {each.result:<9}  {relative:>8}  {each.first}"
        print("\n".join([line.rstrip(), *(f"{'':<{width}}  because: {reason}" for reason in each.reasons)]))
    if explanations.unused:
        print(f"\nexplains nothing: {', '.join(explanations.unused)}")
    num_differ = sum(each.result == "differs" for each in verdicts)
    print(f"\n{num_differ} of {len(verdicts)} rows differ without an explanation")
    return 1 if num_differ else 0


if __name__ == "__main__":
    sys.exit(main())
