"""Records what a rebuild must not change, and compares two records bit by bit.

    python benchmarks/yardstick.py record --out=before.json        # and later, --out=after.json
    python benchmarks/yardstick.py compare before.json after.json --renamed=renamed.json

A record holds the demo's vocabulary, image tokenizer, prepared corpus and every value of its first 300 steps; answers
and scores of each generation task and evaluation.json of that checkpoint; a run on a mesh of eight virtual devices with
microbatches; an exported folder; and emoji with retrieval, cut short. The commands write no tokens: images (as pixels),
texts and scores stand for them.

The product is known through its commands alone: STAGES has their arguments, and the adapters below it read what they
wrote. After a change of names, both are edited and nothing else. A stage whose rows are in the file already is not run
again, so an interrupted record goes on.

A row is {key: {position: value}}, and a value is the same where its `repr` is. `--renamed` names a JSON file:

    {"renamed": {"loss_image": "loss/image"}, "explained": {"demo evaluation": "a key was added", "ROW: KEY": "..."}}

`renamed` maps old names of rows, keys, and parts of keys (between / . and :) to new ones; `explained` gives the reason
why a row or one of its keys differs. Ends with 1 if anything differs without an explanation.

Losses depend on the machine (instruction sets, number of cores): compare records of one machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]

Row = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Stage:
    """One command, and what is read from what it wrote."""

    name: str
    # Stages whose files it reads.
    needs: tuple[str, ...]
    # Arguments of `cm3leon`; {work} is the folder of all stages.
    command: tuple[str, ...]
    # Rows by name, from {work}.
    rows: Callable[[Path], Mapping[str, Row]]
    # Folder below {work} that the command must not find.
    fresh: str = ""
    num_devices: int = 1


# The adapters: what the commands left, as rows.


# Values of a metrics file that say how fast it went.
_TIMING = re.compile("second|goodput|mfu")


def metrics(file: Path) -> Row:
    """Every value of a file of metrics, by key and step."""
    row: Row = {}
    for line in _json_lines(file):
        step = str(line.pop("step"))
        for key, value in line.items():
            if not _TIMING.search(key):
                row.setdefault(key, {})[step] = value
    return row


def vocabulary(folder: Path) -> Row:
    """The tokens by id, and what BPE merges."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = {index: token for token, index in tokenizer["model"]["vocab"].items()}
    tokens |= {added["id"]: added["content"] for added in tokenizer["added_tokens"]}
    return {
        "tokens": {str(index): tokens[index] for index in sorted(tokens)},
        "merges": _by_number(tokenizer["model"]["merges"]),
        "tokenizer.json": {"bytes": _sum((folder / "tokenizer.json").read_bytes())},
    }


def tensors(file: Path) -> Row:
    """Sums of the bits of each tensor of a safetensors file."""
    from safetensors.numpy import load_file

    found = load_file(file)
    return {
        name: {"bits": f"{array.dtype}{list(array.shape)} {_sum(np.ascontiguousarray(array).tobytes())}"}
        for name, array in sorted(found.items())
    }


def file_sums(folder: Path) -> Row:
    """Sums of the bytes of each file."""
    return {name: {"bytes": _sum(file.read_bytes())} for name, file in _files(folder) if file.suffix != ".png"} | {
        f"{name}/*.png": {"pixels": _sum(*(_pixels(file) for file in sorted(each.glob("*.png"))))}
        for name, each in _files(folder, folders=True)
        if any(each.glob("*.png"))
    }


def contents(folder: Path) -> Row:
    """Every value of the JSON files, and every tensor, so that a change of names can be told from one of values."""
    row: Row = {}
    for name, file in _files(folder):
        if file.suffix == ".json":
            row |= {f"{name}:{key}": value for key, value in json_values(file).items()}
        elif file.suffix == ".safetensors":
            row |= {f"{name}:{key}": value for key, value in tensors(file).items()}
    return row


def json_values(file: Path) -> Row:
    """Every value of a JSON file, by its path; of a list by number."""
    return dict(_leaves(json.loads(file.read_text(encoding="utf-8")), ""))


def answers(folder: Path, prefix: str) -> dict[str, Row]:
    """A row a task: text, image or segments of each answer, and its score."""
    rows: dict[str, Row] = {}
    for line in _json_lines(folder / "generations.jsonl"):
        row = rows.setdefault(f"{prefix}: {line['task']}", {})
        position = f"{line['index']}"
        row.setdefault("score", {})[position] = line["score"]
        for document in line.get("retrieved", ()):
            found = row.setdefault("retrieved", {})
            found[f"{position}.{len(found)}"] = f"{document['document']} {document['score']!r} {document['text']}"
        segments = line.get("segments")
        if segments is None:
            segments = [line["text"] if line["image"] is None else {"image": line["image"]}]
        # A continuation may be empty.
        row.setdefault("segments", {})[position] = len(segments)
        for number, segment in enumerate(segments):
            is_text = isinstance(segment, str)
            value = segment if is_text else _sum(_pixels(folder / segment["image"]))
            row.setdefault("text" if is_text else "image", {})[f"{position}.{number}"] = value
    return rows


def images(folder: Path) -> Row:
    """The pixels of each PNG."""
    return {file.name: {"pixels": _sum(_pixels(file))} for file in sorted(folder.glob("*.png"))}


def _leaves(value: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from _leaves(each, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value and not any(isinstance(each, dict | list) for each in value):
        yield path, _by_number(value)
    elif isinstance(value, list) and value:
        for number, each in enumerate(value):
            yield from _leaves(each, f"{path}.{number}")
    else:
        yield path, {"value": value}


def _by_number(values: Sequence[Any]) -> dict[str, Any]:
    return {str(number): value for number, value in enumerate(values)}


def _json_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def _files(folder: Path, folders: bool = False) -> list[tuple[str, Path]]:
    found = [path for path in folder.rglob("*") if path.is_dir() is folders]
    if not found and not folders:
        raise FileNotFoundError(f"no files in {folder}")
    return sorted((str(path.relative_to(folder)), path) for path in found)


def _pixels(file: Path) -> bytes:
    with Image.open(file) as image:
        return f"{image.mode} {image.size} ".encode() + image.tobytes()


def _sum(*parts: bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:32]


# The stages: every command, with what makes it short.


def _digit(number: int) -> Image.Image:
    """One of the demo's digits, drawn without the product."""
    from sklearn.datasets import load_digits

    return Image.fromarray((load_digits().images[number] * 255 / 16).round().astype(np.uint8))


def _face() -> Image.Image:
    """Something like an emoji."""
    image = Image.new("RGB", (32, 32), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((2, 2, 29, 29), fill="gold", outline="orange")
    draw.ellipse((9, 10, 12, 14), fill="black")
    draw.ellipse((19, 10, 22, 14), fill="black")
    return image


# What is asked, and the images that it names. A line of every task, and of every field that a task takes.
IMAGES: dict[str, Callable[[], Image.Image]] = {
    "seven.png": lambda: _digit(7),
    "four.png": lambda: _digit(4),
    "nine.png": lambda: _digit(9),
    "face.png": _face,
}
DEMO_PROMPTS: list[dict[str, Any]] = [
    {"prompt": "a handwritten seven"},
    {"prompt": "a handwritten two", "retrieved": [{"prompt": "a handwritten nine", "image": "nine.png"}]},
    {"task": "caption", "image": "seven.png"},
    {"task": "caption", "image": "four.png", "prompt": "a handwritten", "order": "left_to_right"},
    {"task": "vqa", "prompt": "Which digit is this?", "image": "four.png"},
    {"task": "vqa", "prompt": "Which digit is this?", "image": "nine.png", "order": "left_to_right"},
    {"task": "infill", "prompt": "a handwritten nine", "image": "nine.png"},
    {"task": "infill", "prompt": "a handwritten four", "image": "four.png", "region": [0, 0, 0.5, 1]},
    {"task": "infill_text", "prompt": "a <mask> seven", "image": "seven.png"},
    {"task": "infill_text", "prompt": "the <mask> written <mask>", "image": "nine.png"},
    {"task": "edit", "prompt": "make it bolder", "image": "four.png"},
    {"task": "continue", "segments": ["the digit", {"image": "seven.png"}]},
    {"task": "continue", "segments": ["a handwritten three"]},
]
EMOJI_PROMPTS: list[dict[str, Any]] = [
    {"prompt": "smiling face with red hair"},
    {"task": "caption", "image": "face.png"},
    {"task": "infill", "prompt": "smiling face", "image": "face.png"},
]
PROMPTS = {"demo.jsonl": DEMO_PROMPTS, "emoji.jsonl": EMOJI_PROMPTS}

DEMO = ("--config=configs/demo.py", "--workdir={work}/demo")
EMOJI = ("--config=configs/emoji.py", "--workdir={work}/emoji")
# What other runs take over from the demo.
OF_THE_DEMO = (
    "--config.corpus.path={work}/demo/corpus",
    "--config.vocabulary.path={work}/demo/vocabulary",
    "--config.image_tokenizer.path={work}/demo/image_tokenizer",
)
DEMO_TOKENS, EMOJI_TOKENS = 16 * 128, 8 * 384
# The demo's learning rate after 300 of its 1,700 steps, 50 of them warm-up, as a share of the peak.
SHARE_AT_300 = 1 - 0.9 * (300 - 50) / (1700 - 50)


def _training(num_steps: int, tokens_a_step: int, eval_every: int = 0, sample_every: int = 0) -> tuple[str, ...]:
    return (
        f"--config.train.num_tokens={num_steps * tokens_a_step}",
        "--config.train.log_every=1",
        f"--config.train.save_every={num_steps}",
        f"--config.train.eval_every={eval_every}",
        f"--config.train.sample_every={sample_every}",
    )


def _generation(name: str, prompts: str, *arguments: str) -> tuple[str, ...]:
    output = f"--output={{work}}/answers/{name}"
    return "generate", *arguments, f"--prompts={{work}}/prompts/{prompts}", "--samples=2", output


def _prepared(name: str) -> Callable[[Path], Mapping[str, Row]]:
    def rows(work: Path) -> Mapping[str, Row]:
        sums, folder = file_sums(work / name / "corpus"), work / name / "corpus"
        return {
            f"{name} prepared bytes": {key: value for key, value in sums.items() if not key.endswith(".json")},
            f"{name} prepared lists": contents(folder),
        }

    return rows


STAGES = (
    Stage(
        "demo-vocabulary",
        (),
        ("train-text-tokenizer", *DEMO),
        lambda work: {"demo vocabulary": vocabulary(work / "demo/vocabulary")},
    ),
    Stage(
        "demo-image-tokenizer",
        (),
        ("train-image-tokenizer", *DEMO, "--config.image_tokenizer_training.log_every=10"),
        lambda work: {
            "demo image tokenizer": tensors(work / "demo/image_tokenizer/model.safetensors"),
            "demo image tokenizer metrics": metrics(work / "demo/image_tokenizer_metrics.jsonl"),
        },
    ),
    Stage("demo-corpus", ("demo-vocabulary", "demo-image-tokenizer"), ("prepare", *DEMO), _prepared("demo")),
    Stage(
        "demo-train",
        ("demo-corpus",),
        (
            *("train", *DEMO, *_training(300, DEMO_TOKENS, eval_every=100, sample_every=150)),
            f"--config.optimizer.final_learning_rate_share={SHARE_AT_300!r}",
        ),
        lambda work: {
            "demo metrics": metrics(work / "demo/metrics.jsonl"),
            "demo samples": images(work / "demo/samples"),
        },
    ),
    Stage(
        "demo-generate",
        ("demo-train",),
        _generation("demo", "demo.jsonl", *DEMO, "--config.sampling.guidance=3"),
        lambda work: answers(work / "answers/demo", "demo generate"),
    ),
    Stage(
        "demo-generate-mixed",
        ("demo-train",),
        (
            *_generation("demo-mixed", "demo.jsonl", *DEMO),
            *("--config.sampling.method=mixed", "--config.sampling.candidates=4", "--config.sampling.scorer=caption"),
            "--config.sampling.top_p=0.9",
        ),
        lambda work: answers(work / "answers/demo-mixed", "demo generate, mixed, 4 candidates"),
    ),
    Stage(
        "demo-generate-speculative",
        ("demo-train",),
        (
            *_generation("demo-speculative", "demo.jsonl", *DEMO),
            *("--config.sampling.speculative_window=4", "--config.sampling.cache_dtype=int8"),
        ),
        lambda work: answers(work / "answers/demo-speculative", "demo generate, speculative, int8 cache"),
    ),
    Stage(
        "demo-evaluate",
        ("demo-train",),
        (
            *("evaluate", *DEMO, "--config.evaluate.num_documents=96", "--config.evaluate.num_loss_sequences=64"),
            "--config.evaluate.samples_per_prompt=6",
        ),
        lambda work: {"demo evaluation": json_values(work / "demo/evaluation.json")},
    ),
    Stage(
        "mesh-train",
        ("demo-corpus",),
        (
            *("train", "--config=configs/demo.py", "--workdir={work}/mesh", *OF_THE_DEMO),
            *("--config.mesh.fsdp=4", "--config.mesh.tensor=2", "--config.train.num_microbatches=2"),
            *_training(30, DEMO_TOKENS, eval_every=15),
        ),
        lambda work: {"mesh metrics": metrics(work / "mesh/metrics.jsonl")},
        num_devices=8,
    ),
    Stage(
        "opt-train",
        ("demo-corpus",),
        (
            *("train", "--config=configs/demo_opt.py", "--workdir={work}/demo_opt", *OF_THE_DEMO),
            *_training(50, DEMO_TOKENS, eval_every=50),
        ),
        lambda work: {"demo_opt metrics": metrics(work / "demo_opt/metrics.jsonl")},
    ),
    Stage(
        "opt-export",
        ("opt-train",),
        (
            *("export", "--config=configs/demo_opt.py", "--workdir={work}/demo_opt", *OF_THE_DEMO),
            "--output={work}/exported",
        ),
        lambda work: {
            "exported bytes": file_sums(work / "exported"),
            "exported values": contents(work / "exported"),
        },
        fresh="exported",
    ),
    Stage(
        "emoji-vocabulary",
        (),
        ("train-text-tokenizer", *EMOJI),
        lambda work: {"emoji vocabulary": vocabulary(work / "emoji/vocabulary")},
    ),
    Stage(
        "emoji-image-tokenizer",
        (),
        (
            *("train-image-tokenizer", *EMOJI, "--config.image_tokenizer_training.num_steps=300"),
            "--config.image_tokenizer_training.log_every=10",
        ),
        lambda work: {
            "emoji image tokenizer": tensors(work / "emoji/image_tokenizer/model.safetensors"),
            "emoji image tokenizer metrics": metrics(work / "emoji/image_tokenizer_metrics.jsonl"),
        },
    ),
    Stage(
        "emoji-encoder",
        ("emoji-vocabulary",),
        ("train-bi-encoder", *EMOJI),
        lambda work: {"emoji encoder": file_sums(work / "emoji/bi_encoder") | contents(work / "emoji/bi_encoder")},
    ),
    Stage(
        "emoji-corpus",
        ("emoji-vocabulary", "emoji-image-tokenizer", "emoji-encoder"),
        ("prepare", *EMOJI),
        _prepared("emoji"),
    ),
    Stage(
        "emoji-train",
        ("emoji-corpus",),
        ("train", *EMOJI, *_training(50, EMOJI_TOKENS, eval_every=50), "--config.train.eval_batches=2"),
        lambda work: {"emoji metrics": metrics(work / "emoji/metrics.jsonl")},
    ),
    Stage(
        "emoji-generate",
        ("emoji-train",),
        _generation("emoji", "emoji.jsonl", *EMOJI, "--retrieve=2"),
        lambda work: answers(work / "answers/emoji", "emoji generate, 2 retrieved"),
    ),
)


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
        record["seconds"][stage.name] = round(time.perf_counter() - start, 1)
        _write(arguments.out, json.dumps(record, ensure_ascii=False, indent=1))
        _write(_marker(work, stage.name), json.dumps(made_by))
        print(f"{record['seconds'][stage.name]} s", flush=True)
    rows = _rows(record)
    print(f"{len(rows)} rows, {sum(map(_num_values, rows.values())):,} values, {sum(record['seconds'].values()):.0f} s")
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


# The comparison.


@dataclass
class Explanations:
    """New names of what was renamed, and reasons for what differs."""

    renamed: dict[str, str] = field(default_factory=dict)
    explained: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def name(self, old: str) -> str:
        """The new name of a row or a key: that of the whole, or of its parts."""
        if old in self.renamed:
            return self._look_up(old)
        return re.sub(r"[^/.:]+", lambda part: self._look_up(part[0]), old)

    def _look_up(self, old: str) -> str:
        if old in self.renamed:
            self.used.add(old)
        return self.renamed.get(old, old)

    def reason(self, row: str, key: str) -> str | None:
        """Why a key of a row may differ, if it may."""
        for name in (f"{row}: {key}", row):
            if name in self.explained:
                self.used.add(name)
                return self.explained[name]
        return None

    @property
    def unused(self) -> list[str]:
        """What explained nothing."""
        return sorted((self.renamed.keys() | self.explained.keys()) - self.used)


@dataclass(frozen=True)
class Verdict:
    """What is to be said of one row."""

    row: str
    num_values: int
    # "equal", "renamed" (equal under new names), "explained" or "differs".
    result: str
    first: str = ""
    # Of the numbers that differ.
    largest_relative: float | None = None
    reasons: tuple[str, ...] = ()


def compared(old: Mapping[str, Row], new: Mapping[str, Row], explanations: Explanations) -> list[Verdict]:
    """A verdict on every row of two records, in the order of the old one, rows that only the new one has behind."""
    verdicts = []
    names = {row: explanations.name(row) for row in old}
    for row, columns in old.items():
        verdicts.append(_verdict(row, names[row], columns, new.get(names[row], {}), explanations))
    for row in new:
        if row not in names.values():
            verdicts.append(_verdict(row, row, {}, new[row], explanations))
    return verdicts


def _verdict(row: str, new_row: str, old: Row, new: Row, explanations: Explanations) -> Verdict:
    named = {key: explanations.name(key) for key in old}
    if len(set(named.values())) < len(named):
        raise ValueError(f"{row}: two keys have one new name")
    expected = {named[key]: column for key, column in old.items()}
    # In the order of positions: what differs first is where the difference began.
    order = {position: None for columns in (expected, new) for column in columns.values() for position in column}
    rank = {position: number for number, position in enumerate(order)}
    differences = sorted(
        (rank[position], key, position)
        for key in expected.keys() | new.keys()
        for position in expected.get(key, {}).keys() | new.get(key, {}).keys()
        if _at(expected, key, position) != _at(new, key, position)
    )
    is_renamed = row != new_row or any(key != name for key, name in named.items())
    size = max(_num_values(old), _num_values(new))
    if not differences:
        return Verdict(row, size, "renamed" if is_renamed else "equal")
    reasons = {key: explanations.reason(row, key) for _, key, _ in differences}
    unexplained = [each for each in differences if reasons[each[1]] is None]
    _, key, position = (unexplained or differences)[0]
    shown = (f"{_at(columns, key, position) or 'nothing':.40}" for columns in (expected, new))
    in_both = [(k, p) for _, k, p in differences if _at(expected, k, p) and _at(new, k, p)]
    relative = [_relative(expected[k][p], new[k][p]) for k, p in in_both]
    numbers = [each for each in relative if each is not None]
    return Verdict(
        row,
        size,
        "differs" if unexplained else "explained",
        f"{key} at {position}: {' -> '.join(shown)} ({len(differences)} differ)",
        max(numbers, default=None),
        tuple(dict.fromkeys(reason for reason in reasons.values() if reason)),
    )


def _at(row: Row, key: str, position: str) -> str | None:
    # What `repr` says of a float is all of its bits.
    return repr(row[key][position]) if position in row.get(key, {}) else None


def _relative(old: Any, new: Any) -> float | None:
    if not (isinstance(old, int | float) and isinstance(new, int | float)):
        return None
    return abs(new - old) / abs(old) if old else math.inf


def _num_values(row: Row) -> int:
    return sum(map(len, row.values()))


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
