"""The Python interface gives what the command writes."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import cm3leon_jax
from cm3leon_jax.cli import main
from cm3leon_jax.errors import UserError
from tests.generation.conftest import saved_run, tiny_config, trained

__all__ = ["saved_run", "tiny_config", "trained"]


@pytest.fixture(scope="module")
def model(saved_run):
    return cm3leon_jax.load(saved_run)


def written(saved_run, line: dict, samples: int = 1, **sampling) -> list:
    """What the command writes for one line: texts, images as pixels, or lists of both."""
    folder = saved_run.parent
    (folder / "prompts.jsonl").write_text(json.dumps(line) + "\n")
    arguments = [f"--config={saved_run}/config.json", f"--prompts={folder}/prompts.jsonl", f"--output={folder}/out"]
    arguments += [f"--samples={samples}", *(f"--config.sampling.{name}={value}" for name, value in sampling.items())]
    assert main(["generate", *arguments]) == 0

    def opened(name):
        return np.asarray(Image.open(folder / "out" / name))

    lines = [json.loads(line) for line in (folder / "out" / "generations.jsonl").read_text().splitlines()]
    if "segments" in lines[0]:
        return [part if isinstance(part, str) else opened(part["image"]) for part in lines[0]["segments"]]
    return [opened(line["image"]) if line["image"] else line["text"] for line in lines]


def same(found, expected) -> bool:
    assert len(found) == len(expected)
    pairs = zip(found, expected, strict=True)
    return all(a == b if isinstance(b, str) else np.array_equal(np.asarray(a), b) for a, b in pairs)


def test_every_task_gives_what_the_command_writes(model, saved_run):
    file = saved_run.parent / "a.png"
    image, pixels = Image.open(file), np.asarray(Image.open(file))
    found = model.text_to_image("a seven", samples=2, seed=3, temperature=0.9)
    assert isinstance(found[0], Image.Image) and found[0].size == (8, 8)
    assert same(found, written(saved_run, {"prompt": "a seven"}, 2, seed=3, temperature=0.9))
    caption = {"task": "caption", "image": "a.png"}
    assert [model.caption(image)] == [model.caption(pixels)] == [model.caption(file)] == written(saved_run, caption)
    assert [model.answer(str(file), "Which?", order="left_to_right")] == written(
        saved_run, {"task": "vqa", "prompt": "Which?", "image": "a.png", "order": "left_to_right"}
    )
    boxes = [("a seven", (0, 0, 4, 8))]
    located = {"prompt": "a digit", "objects": [{"name": "a seven", "box": [0, 0, 4, 8]}]}
    assert same(model.text_to_image("a digit", objects=boxes), written(saved_run, located))
    edges = {"structure": {"image": "a.png"}, "caption": "a seven"}
    line = {"task": "instruction", "template": "edges", "fields": edges}
    assert same(
        model.follow("edges", fields=edges | {"structure": {"image": image}}, seed=2), written(saved_run, line, seed=2)
    )
    asked = {
        "task": "instruction",
        "template": "question",
        "fields": {"question": "Which?", "image": {"image": "a.png"}},
    }
    found = model.follow("question", fields={"question": "Which?", "image": {"image": file}})
    assert found == written(saved_run, asked)
    region = (0, 0, 0.5, 0.5)
    assert same(
        model.infill(image, "zero", region),
        written(saved_run, {"task": "infill", "prompt": "zero", "image": "a.png", "region": region}),
    )
    assert [model.infill_text(image, "a <mask>.")] == written(
        saved_run, {"task": "infill_text", "prompt": "a <mask>.", "image": "a.png"}
    )
    assert same(model.edit(image, "wider"), written(saved_run, {"task": "edit", "prompt": "wider", "image": "a.png"}))
    segments = {"task": "continue", "segments": ["a photo", {"image": "a.png"}]}
    assert same(model.continue_document(["a photo", image]), written(saved_run, segments))
    retrieved = {"prompt": "a nine", "retrieved": [{"prompt": "zero", "image": "a.png"}]}
    assert same(model.text_to_image("a nine", retrieved=[("zero", image)]), written(saved_run, retrieved))


def test_several_requests_at_once(model):
    one, two = model.generate([{"prompt": "zero"}, {"task": "caption", "image": np.zeros((8, 8), np.uint8)}], samples=2)
    assert [candidate.image.shape for candidate in one.candidates] == [(16,)] * 2
    assert all(isinstance(candidate.text, str) for candidate in two.candidates)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.text_to_image("x", temprature=1.0), "no such option temprature: the fields of"),
        (lambda model: model.text_to_image("x", temperature=-1.0), "temperature"),
        (lambda model: model.text_to_image("x", samples=0), "samples=0: at least 1"),
        (lambda model: model.text_to_image("x", scorer="clip"), "load the model with"),
        (lambda model: model.caption("gone.png"), "no image gone.png"),
        (lambda model: model.caption(np.zeros((8, 8, 5))), "is no image"),
        (lambda model: model.generate([{"task": "caption", "image": 7}]), "image is 7: give"),
        (lambda model: model.infill(np.zeros((8, 8), np.uint8), "x", (0, 0, 2, 1)), "region is"),
        (lambda model: cm3leon_jax.load("nowhere"), "no run at nowhere"),
    ],
)
def test_a_mistake_is_one_line(model, call, message):
    with pytest.raises(UserError, match=message) as caught:
        call(model)
    assert "\n" not in str(caught.value)


def test_importing_the_package_imports_no_jax():
    code = "import sys, cm3leon_jax; assert 'jax' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cm3leon_jax.nothing  # noqa: B018
