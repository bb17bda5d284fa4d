"""All commands on buckets: what they write is what they write on a local disk."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from cm3leon_jax.cli import main
from cm3leon_jax.images import encode_png
from cm3leon_jax.progress import read_step_log
from cm3leon_jax.storage import objects
from examples.digits import images as digits
from tests.storage import servers
from tests.test_whole_path import CONFIG

pytestmark = pytest.mark.slow

PROMPTS = (
    '{"prompt": "the digit one"}\n{"task": "caption", "image": "asked.png"}\n'
    '{"task": "infill", "prompt": "the digit two", "image": "IMAGE", "region": [0, 0, 0.5, 0.5]}\n'
)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "images"
    folder.mkdir()
    pixels, labels = digits.load("train")
    for index in range(120):
        (folder / f"{index:03d}.png").write_bytes(encode_png(pixels[index]))
        (folder / f"{index:03d}.txt").write_text(digits.caption(int(labels[index]), index))
    return folder


def run_all(root: str, images: Path, put) -> None:
    """Every command on one root, a folder or an address."""
    put("configs/tiny.py", CONFIG.replace("{folder}", f"{root}/images").encode())
    for file in images.iterdir():
        put(f"images/{file.name}", file.read_bytes())
    put("asked.png", encode_png(digits.load("validation")[0][0]))
    put("prompts.jsonl", PROMPTS.replace("IMAGE", f"{root}/asked.png").encode())
    once = [f"--config={root}/configs/tiny.py", f"--workdir={root}/run", "--config.corpus.folder.compare_times=False"]
    for command, *arguments in (
        ("train-text-tokenizer",),
        ("train-image-tokenizer",),
        ("prepare",),
        ("train",),
        ("train",),
        ("evaluate",),
        ("generate", f"--prompts={root}/prompts.jsonl", "--samples=2"),
        ("generate", f"--prompts={root}/prompts.jsonl", "--samples=1", f"--output={root}/other"),
        # In the place of the images before.
        ("generate", f"--prompts={root}/prompts.jsonl", "--samples=1"),
        ("export", f"--output={root}/export"),
        ("import", f"--from={root}/export", f"--workdir={root}/imported"),
        ("inspect", f"--html={root}/run/inspect.html"),
    ):
        assert main([command, *once, *arguments]) == 0, command
    assert main(["compare", f"{root}/run", f"{root}/run", f"--output={root}/comparison.html"]) == 0


@pytest.fixture(scope="module")
def local(tmp_path_factory, images) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("whole")

    def put(name: str, content: bytes) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)

    run_all(str(root), images, put)
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def clockless(lines: list[dict]) -> list[dict]:
    return [
        {
            name: value
            for name, value in line.items()
            if not name.startswith(("seconds_", "goodput")) and "second" not in name
        }
        for line in lines
    ]


def without_source(content: bytes) -> dict:
    """A JSON object without where its images came from."""
    return json.loads(re.sub(rb'"folder:[^"]*"', b'"folder"', content))


def test_all_commands(images, local, root, cache, tmp_path, monkeypatch, capsys):
    run_all(root, images, lambda name, content: objects.write_object_bytes(f"{root}/{name}", content))
    said = capsys.readouterr()
    assert [line for line in (said.out + said.err).splitlines() if str(cache) in line] == []
    names = objects.list_objects(root)
    found = {name: objects.read_object_bytes(f"{root}/{name}") for name in names}

    def others(files: dict[str, bytes]) -> set[str]:
        """Names without those of checkpoints, which differ, and of event files, which name the time."""
        skipped = ("checkpoints/", "events.out", "compilation_cache/")
        return {name for name in files if not any(part in name for part in skipped)}

    assert others(found) == others(local)
    for name in sorted(others(found)):
        if name.endswith((".png", ".safetensors", ".npy", ".bin", "generations.jsonl", "tokenizer.json")):
            assert found[name] == local[name], name
    for name in ("run/evaluation.json", "run/image_tokenizer/config.json"):
        assert without_source(found[name]) == without_source(local[name])
    for name in ("run/metrics.jsonl", "run/image_tokenizer_metrics.jsonl"):
        (tmp_path / "found").write_bytes(found[name])
        (tmp_path / "local").write_bytes(local[name])
        assert clockless(read_step_log(tmp_path / "found")) == clockless(read_step_log(tmp_path / "local"))
    assert {name.split("/")[2] for name in names if name.startswith("run/checkpoints/")} == {
        name.split("/")[2] for name in local if name.startswith("run/checkpoints/")
    }
    assert not any(name.endswith((".lock", ".partial", ".claim", ".ready")) for name in names)

    # A model is loaded in Python by its address, on a host that has nothing.
    import cm3leon_jax

    monkeypatch.setenv("CM3LEON_CACHE", str(tmp_path / "elsewhere"))
    servers.forget_stores()
    model = cm3leon_jax.load(f"{root}/run")
    (image,) = model.text_to_image("the digit one")
    assert np.asarray(image).shape[:2] == (8, 8)
    (tmp_path / "weights").write_bytes(found["export/model.safetensors"])
    assert load_file(tmp_path / "weights")
