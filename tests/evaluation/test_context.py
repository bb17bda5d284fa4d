"""What metrics ask of an evaluation is checked before anything is generated, and generated once."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cm3leon_jax.config import Config
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation import set_results
from cm3leon_jax.evaluation.config import EvaluateConfig
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.gallery import gallery
from cm3leon_jax.evaluation.sets.base import Item
from cm3leon_jax.evaluation.sets.configured import CommonSetOptions, ConfiguredSet, OwnItems, build_sets
from cm3leon_jax.generation.config import SamplingConfig
from cm3leon_jax.generation.generate import Result
from cm3leon_jax.generation.load import TrainedModel
from cm3leon_jax.generation.rank import Candidate
from cm3leon_jax.generation.sampler import Completion
from cm3leon_jax.images import encode_png
from cm3leon_jax.squaring import Squaring
from tests.evaluation.contexts import evaluation_with


def evaluation_of(folder: Path, *lines: dict[str, Any]) -> EvaluationContext:
    """An evaluation with one set, and neither model nor corpus."""
    file = folder / "set.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    sets = build_sets(EvaluateConfig(sets={"mine": {"type": "prompts", "file": str(file)}}))
    return evaluation_with(sets=sets, completed={}, model=None, config=None)


CAPTION = {"task": "caption", "image": "1.png", "references": ["a dog"]}
EDIT = {"task": "edit", "prompt": "greener", "image": "1.png", "target": "2.png"}


@pytest.mark.parametrize(
    ("lines", "ask", "message"),
    [
        ([CAPTION], "sampled", r"sets\.mine asks for caption, and a metric needs images from prompts"),
        ([CAPTION], "answered", r"sets\.mine asks for caption, and a metric needs answers"),
        ([CAPTION, EDIT], "captioned", r"sets\.mine asks for edit, and a metric needs captions"),
        ([CAPTION], "edited", r"sets\.mine asks for caption, and a metric needs edits"),
        ([CAPTION, CAPTION | {"references": []}], "captioned", r"sets\.mine, item 2: no references to compare a text"),
        ([EDIT, EDIT | {"target": ""}], "edited", r"sets\.mine, item 2: no target to compare an edited image with"),
        ([CAPTION], "real_images", r"sets\.mine has no real images to compare with"),
    ],
)
def test_a_set_that_a_metric_cannot_use_is_refused(tmp_path, monkeypatch, lines, ask, message):
    monkeypatch.setattr(set_results, "complete", lambda *_: pytest.fail("it generates"))
    with pytest.raises(UserError, match=message):
        getattr(evaluation_of(tmp_path, *lines), ask)("mine")


def test_a_set_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a metric takes the evaluation set 'other': config.evaluate.sets has 'mine'"):
        evaluation_of(tmp_path, CAPTION).captioned("other")


def test_a_set_is_generated_for_once(tmp_path, monkeypatch):
    calls = []

    def complete(asked, model, config):
        calls.append(asked.name)
        return [
            Result(request, [Candidate(request, Completion([], 0.0, 0), text="a cat")], [0.0])
            for request in asked.requests
        ]

    monkeypatch.setattr(set_results, "complete", complete)
    evaluation = evaluation_of(tmp_path, CAPTION, CAPTION)
    for _ in range(2):
        texts = evaluation.captioned("mine")
    assert (texts.ids, texts.predictions, texts.references) == (["1", "2"], ["a cat"] * 2, [("a dog",)] * 2)
    assert calls == ["mine"] == list(evaluation.completed)


def test_a_metric_asks_for_items_of_its_own_and_the_page_has_them(monkeypatch):
    asked_sampling = []

    def complete(asked, model, config):
        asked_sampling.append(asked.options.sampling)
        return [
            Result(request, [Candidate(request, Completion([], 0.0, 0), text="five")], [0.0])
            for request in asked.requests
        ]

    monkeypatch.setattr(set_results, "complete", complete)
    image = encode_png(np.full((4, 4, 1), 7, np.uint8))
    two_fields = {"image": {"image": image}, "question": ["odd?"]}
    evaluation = evaluation_with(
        sets={},
        completed={},
        model=SimpleNamespace(squaring=Squaring()),
        held_out=SimpleNamespace(texts=[]),
        sampled_images=[],
        config=SimpleNamespace(evaluate=EvaluateConfig(), image_tokenizer=SimpleNamespace(resolution=4, in_channels=1)),
    )
    items = [
        Item("a", {"task": "vqa", "prompt": "which digit?", "image": image}, references=("five",)),
        Item("b", {"task": "instruction", "template": "questions", "fields": two_fields}),
    ]
    results = evaluation.complete("questions", items, temperature=0.5)
    assert [result.candidates[0].text for result in results] == ["five", "five"]
    assert asked_sampling == [{"temperature": 0.5}]
    shown = gallery(evaluation)
    assert [(entry.set, entry.id, entry.prompt, entry.text, entry.references) for entry in shown] == [
        ("questions", "a", "which digit?", "five", ("five",)),
        ("questions", "b", "odd?", "five", ()),
    ]
    assert all((entry.source == 7).all() and entry.target is None for entry in shown)


@pytest.mark.parametrize(
    ("request_fields", "temperature"),
    [
        ({"prompt": "a cat"}, 0.7),
        ({"task": "edit", "prompt": "greener", "image": b"png"}, 0.7),
        ({"task": "caption", "image": b"png"}, 0.0),
        ({"task": "vqa", "prompt": "what?", "image": b"png"}, 0.0),
        ({"task": "instruction", "template": "long_caption", "fields": {"image": {"image": b"png"}}}, 0.0),
        ({"task": "instruction", "template": "edges", "fields": {"structure": {"image": b"png"}, "caption": "x"}}, 0.7),
    ],
)
def test_texts_are_the_likeliest_and_images_are_sampled_as_the_config_says(monkeypatch, request_fields, temperature):
    used = []

    def generate(requests, model, sampling, samples, neighbors):
        used.append(sampling.temperature)
        return [], []

    monkeypatch.setattr(set_results, "generate", generate)
    config = Config(sampling=SamplingConfig(temperature=0.7), evaluate=EvaluateConfig())
    asked = ConfiguredSet("mine", OwnItems([Item("1", request_fields)]), CommonSetOptions(samples_per_prompt=1))
    set_results.complete(asked, object.__new__(TrainedModel), config)
    assert used == [temperature]
