"""Metrics by name: options, mistakes in one line, and values."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation import metrics
from cm3leon_jax.evaluation.config import EvaluateConfig
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.loss import EvalLoss
from cm3leon_jax.evaluation.reconstruction import Reconstruction


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


def test_values_of_one_name_are_refused(tiny_evaluation):
    found = metrics.measure({"a": Constant("x"), "b": Constant("y")}, tiny_evaluation)
    assert found == {"step": 7.0, "x": 1.0, "y": 1.0}
    with pytest.raises(UserError, match=r"config.evaluate.metrics.b returns x, as another metric does"):
        metrics.measure({"a": Constant(), "b": Constant()}, tiny_evaluation)
