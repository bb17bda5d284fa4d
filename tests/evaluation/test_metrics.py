"""Metrics by name: options, mistakes in one line, and values."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation import metrics
from cm3leon_jax.evaluation.config import EvaluateConfig
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.estimates import Estimate
from cm3leon_jax.evaluation.loss import EvalLoss
from cm3leon_jax.evaluation.reconstruction import Reconstruction
from cm3leon_jax.evaluation.sets.configured import build_sets


@pytest.fixture
def tiny_evaluation() -> EvaluationContext:
    """An evaluation of step 7 that has nothing to sample."""
    evaluation = object.__new__(EvaluationContext)
    evaluation.__dict__["model"] = SimpleNamespace(step=7)
    return evaluation


def test_the_default_metrics():
    assert metrics.build_metrics(EvaluateConfig().metrics) == {"loss": EvalLoss(), "reconstruction": Reconstruction()}


def test_options_are_the_fields_of_the_metric():
    built = metrics.build_metrics({"mine": {"type": "loss", "num_sequences": 64.0}})
    assert built == {"mine": EvalLoss(num_sequences=64)}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": "los"}, "type in config.evaluate.metrics is 'los', which no module registers: did you mean 'loss'?"),
        ({"type": "loss", "num_seqs": 3}, "metrics.mine.num_seqs: no such field; did you mean num_sequences?"),
        ({"type": "loss", "batch_size": "3x"}, "metrics.mine.batch_size is '3x', a str: it must be a int"),
        ({"type": "loss", "batch_size": 0}, "metrics.mine.batch_size is 0: at least 1"),
    ],
)
def test_a_mistake_is_one_line(entry, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        metrics.build_metrics({"mine": entry})


def test_an_entry_without_a_type_is_refused():
    with pytest.raises(UserError, match=r"config.evaluate.metrics.mine names no metric: set its type"):
        EvaluateConfig(metrics={"mine": {"num_sequences": 3}})


@dataclass(frozen=True)
class Constant:
    name: str = "x"

    def __call__(self, evaluation: object) -> dict[str, float]:
        return {self.name: 1.0}


@dataclass(frozen=True)
class OfSet:
    threshold: int = 0
    set: str = ""
    headlines: ClassVar[dict[str, str]] = {"y": "of all"}

    def __call__(self, evaluation: object) -> dict[str, float | Estimate]:
        return {"y": Estimate(float(self.threshold), 0.0, 1.0, 9)}


def test_metrics_that_differ_in_their_names_keep_them(tiny_evaluation):
    found = metrics.measure({"a": Constant("x"), "b": Constant("y"), "c": Constant("z")}, tiny_evaluation)
    assert found == {"step": 7.0, "x": 1.0, "y": 1.0, "z": 1.0}


def test_metrics_of_one_type_and_set_have_their_own_names(tiny_evaluation):
    mine = {"low": OfSet(1, "coco"), "high": OfSet(2, "coco"), "other": OfSet(1, "geneval"), "free": OfSet()}
    expected = {"low_coco_y": 1, "high_coco_y": 2, "geneval_y": 1, "y": 0}
    for names in (list(mine), list(mine)[::-1]):
        found = metrics.measure({name: mine[name] for name in names}, tiny_evaluation)
        assert {name: found[name] for name in expected} == expected
        assert len(found) == 1 + 4 * len(expected)
    assert set(metrics.headlines(mine)) == set(expected)


def test_a_value_that_another_metric_has_gets_the_name_of_its_own(tiny_evaluation):
    found = metrics.measure({"a": Constant("coco_y"), "b": OfSet(3, "coco")}, tiny_evaluation)
    assert (found["coco_y"], found["b_coco_y"], found["b_coco_y_n"]) == (1, 3, 9)
    assert "coco_y_n" not in found
    again = {"a": Constant("coco_y"), "c": Constant("b_coco_y"), "b": OfSet(3, "coco")}
    assert metrics.measure(again, tiny_evaluation)["b_b_coco_y"] == 3


def test_sets_are_checked_before_anything_is_generated(tmp_path):
    (tmp_path / "set.jsonl").write_text('{"prompt": "an apple"}\n')
    sets = build_sets(EvaluateConfig(sets={"mine": {"type": "prompts", "file": str(tmp_path / "set.jsonl")}}))
    fitting = {"a": {"type": "clip_score", "encoder": "e", "set": "mine"}, "b": {"type": "captions"}}
    metrics.check_sets(metrics.build_metrics(fitting), sets)
    for set_name, message in (
        ("mine", r"sets\.mine asks for text_to_image, and a metric needs caption \(config\.evaluate\.metrics\.b\)"),
        ("other", r"a metric takes the evaluation set 'other': config\.evaluate\.sets has 'mine'"),
    ):
        with pytest.raises(UserError, match=message):
            metrics.check_sets(metrics.build_metrics(fitting | {"b": {"type": "captions", "set": set_name}}), sets)
