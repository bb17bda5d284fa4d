"""What yardstick.py knows of the product: the commands it runs, and where and how they leave what is recorded.

After a change of names this file is edited, and nothing else: STAGES has every command with its arguments, the
functions above it read what the commands wrote.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from yardstick_comparison import Row


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


# What the commands left, as rows.


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


# Every command, with what makes it short.


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

DEMO = ("--config=examples/digits/demo.py", "--workdir={work}/demo")
EMOJI = ("--config=examples/emoji/emoji.py", "--workdir={work}/emoji")
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
        ("train-image-tokenizer", *DEMO, "--config.image_tokenizer.training.log_every=10"),
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
            f"--config.optimizer.final_learning_rate_fraction={SHARE_AT_300!r}",
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
            *(
                "evaluate",
                *DEMO,
                "--config.evaluate.num_documents=96",
                "--config.evaluate.metrics.loss.num_sequences=64",
            ),
            "--config.evaluate.samples_per_prompt=6",
        ),
        lambda work: {"demo evaluation": json_values(work / "demo/evaluation.json")},
    ),
    Stage(
        "mesh-train",
        ("demo-corpus",),
        (
            *("train", "--config=examples/digits/demo.py", "--workdir={work}/mesh", *OF_THE_DEMO),
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
            *("train", "--config=examples/digits/demo_opt.py", "--workdir={work}/demo_opt", *OF_THE_DEMO),
            *_training(50, DEMO_TOKENS, eval_every=50),
        ),
        lambda work: {"demo_opt metrics": metrics(work / "demo_opt/metrics.jsonl")},
    ),
    Stage(
        "opt-export",
        ("opt-train",),
        (
            *("export", "--config=examples/digits/demo_opt.py", "--workdir={work}/demo_opt", *OF_THE_DEMO),
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
            *("train-image-tokenizer", *EMOJI, "--config.image_tokenizer.training.num_steps=300"),
            "--config.image_tokenizer.training.log_every=10",
        ),
        lambda work: {
            "emoji image tokenizer": tensors(work / "emoji/image_tokenizer/model.safetensors"),
            "emoji image tokenizer metrics": metrics(work / "emoji/image_tokenizer_metrics.jsonl"),
        },
    ),
    Stage(
        "emoji-encoder",
        ("emoji-vocabulary",),
        ("train-encoder", *EMOJI),
        lambda work: {"emoji encoder": file_sums(work / "emoji/encoder") | contents(work / "emoji/encoder")},
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
