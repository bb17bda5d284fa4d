"""Evaluation of a tiny run by several processes: equal to that by one."""

import json
from pathlib import Path

import numpy as np
import pytest

from cm3leon_jax.cli import main
from cm3leon_jax.documents import Document, TextSegment
from cm3leon_jax.encoders.tfidf import fit_documents
from cm3leon_jax.evaluation.gallery import GALLERY, read_gallery
from cm3leon_jax.evaluation.sets.base import sha256
from cm3leon_jax.images import encode_png
from cm3leon_jax.progress import read_step_log
from examples.digits import images as digits
from tests import launched
from tests.test_whole_path import CONFIG


@pytest.mark.slow
def test_two_processes_sample_and_measure_what_one_does(tmp_path):
    images, workdir = tmp_path / "images", tmp_path / "run"
    images.mkdir()
    pixels, labels = digits.load("train")
    for index in range(60):
        (images / f"{index:03d}.png").write_bytes(encode_png(pixels[index]))
        (images / f"{index:03d}.txt").write_text(digits.caption(int(labels[index]), index))
    # Room for an edit: its instruction is some 50 tokens.
    config = CONFIG.replace("{folder}", str(images)).replace("sequence_length=64", "sequence_length=96")
    (tmp_path / "tiny.py").write_text(config)
    arguments = [f"--config={tmp_path}/tiny.py", f"--workdir={workdir}", "--config.train.num_tokens=3072"]
    for command in ("train-text-tokenizer", "train-image-tokenizer", "prepare"):
        assert main([command, *arguments]) == 0
    launched.run(["train", *arguments], processes=2, devices=4)
    assert [path.name for path in (workdir / "samples").iterdir()] == ["step_00000004.png"]
    assert [line["step"] for line in read_step_log(workdir / "metrics.jsonl") if "learning_rate" in line] == [
        1,
        2,
        3,
        4,
    ]

    # Sampled by contrast and by guidance in turn; and requests of an evaluation set of every task.
    arguments[0] = f"--config={with_sets(tmp_path, images)}"
    arguments.append("--config.sampling.method=mixed")
    said = launched.run(["evaluate", *arguments], processes=2, devices=4, seconds=480)
    numbers, page = evaluated(workdir)
    assert "report.html are written" in said[0]
    assert "sampling 4 images" in said[0] and "sampling" not in said[1]
    assert main(["evaluate", *arguments]) == 0
    alone, page_alone = evaluated(workdir)
    assert numbers.keys() == alone.keys()
    for name, value in alone.items():
        assert numbers[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-5)), name
    assert alone["asked_caption_length_n"] == 2
    # Its images and captions are the same; so are the rounded numbers.
    assert page == page_alone
    assert np.isfinite(alone["eval_loss"])
    assert alone["likelihood_loss_image_n"] == 1
    assert {"encoder_frechet", "encoder_cmmd", "near_copies", "captions_cider"} <= alone.keys()
    assert alone["chosen_choices_chance"] == pytest.approx(1 / 3)
    # Three images, two at a time: each process has other ones.
    assert alone["boxes_objects_dark_n"] == 3 and alone["boxes_objects_iou_n"] == 3
    assert alone["changed_edits_l1_n"] == alone["changed_edits_clip_i_n"] == 3
    shown = [entry for entry, _ in read_gallery(workdir / GALLERY)]
    assert [entry["set"] for entry in shown] == ["", "", *["boxes"] * 3, *["changed"] * 3, *["asked"] * 2]
    assert alone["asked_sha256"] == numbers["asked_sha256"] != ""
    assert alone["near_encoder_sha256"] == sha256([str(tmp_path / "encoder" / "model.safetensors")])


def with_sets(folder: Path, images: Path) -> Path:
    """The config with an evaluation set and a metric that takes it, of a module of its own."""
    (folder / "asked.jsonl").write_text(
        f'{{"task": "caption", "image": "{images}/000.png", "references": ["the digit zero"]}}\n'
        f'{{"task": "caption", "image": "{images}/001.png", "references": ["the digit one", "one"]}}\n'
    )
    (folder / "chosen.jsonl").write_text(
        f'{{"task": "vqa", "prompt": "Digit?", "image": "{images}/000.png", "references": ["zero"], '
        '"choices": ["zero", "one", "two"]}\n'
    )
    asked = {"tag": "dark", "include": [{"class": "dark", "count": 1, "color": "gray", "box": [0.0, 0.0, 0.5, 0.5]}]}
    boxes = [{"prompt": f"the digit {digit}", "objects": asked} for digit in ("one", "two", "three")]
    edits = [
        {"task": "edit", "prompt": "thicker", "image": f"{images}/00{index}.png", "target": f"{images}/01{index}.png"}
        for index in range(3)
    ]
    for name, lines in (("boxes", boxes), ("changed", edits)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "length_of_captions.py").write_text(LENGTH)
    config = (folder / "tiny.py").read_text()
    sets = (
        f'sets=dict(asked=dict(type="prompts", file="{folder}/asked.jsonl"), '
        f'chosen=dict(type="prompts", file="{folder}/chosen.jsonl"), '
        f'boxes=dict(type="prompts", file="{folder}/boxes.jsonl", samples_per_prompt=1), '
        f'changed=dict(type="prompts", file="{folder}/changed.jsonl")), metrics=dict('
    )
    likelihood = (
        'likelihood=dict(type="likelihood", batch_size=4, num_documents=9), captions=dict(type="captions"), '
        f'near=dict(type="encoder_distance", encoder="{folder}/encoder", reference="{images}", batch_size=2), '
        'chosen=dict(type="multiple_choice", set="chosen", batch_size=4), '
        f'copies=dict(type="copies", encoder="{folder}/encoder", batch_size=3), '
        'dark=dict(type="objects", set="boxes", detector="dark", colors="gray", batch_size=2), '
        f'edits=dict(type="edits", set="changed", encoder="{folder}/encoder", batch_size=2), '
    )
    fit_documents([Document((TextSegment("the digit one"),))], 256, 8, 8).save(folder / "encoder")
    config = config.replace("metrics=dict(", f'{sets}{likelihood}lengths=dict(type="lengths", set="asked"), ')
    file = folder / "with_sets.py"
    file.write_text(config.replace('"examples.digits.metric",', '"examples.digits.metric", "length_of_captions",'))
    return file


LENGTH = '''
from dataclasses import dataclass

from cm3leon_jax.evaluation import estimates
from cm3leon_jax.evaluation.detections import Detection
from cm3leon_jax.evaluation.registry import COLOR_JUDGES, DETECTORS, METRICS

METRICS.add("lengths", "length_of_captions:Lengths")
DETECTORS.add("dark", "length_of_captions:Dark")
COLOR_JUDGES.add("gray", "length_of_captions:Gray")


@dataclass(frozen=True)
class Lengths:
    set: str = ""

    def __call__(self, evaluation):
        texts = evaluation.captioned(self.set)
        assert texts.references[1] == ("the digit one", "one")
        return {"caption_length": estimates.mean([float(len(text)) for text in texts.predictions])}


@dataclass(frozen=True)
class Dark:
    """An object as large as the image is dark."""

    def __call__(self, images):
        sides = [float(images.shape[1] * (1 - image.mean() / 255)) for image in images]
        return [[Detection("dark", (0.0, 0.0, side, side), 0.99)] for side in sides]


@dataclass(frozen=True)
class Gray:
    def __call__(self, image, objects):
        return ["gray" if image.mean() < 128 else "white"] * len(objects)
'''


def evaluated(workdir: Path) -> tuple[dict[str, float], str]:
    return json.loads((workdir / "evaluation.json").read_text()), (workdir / "report.html").read_text()
