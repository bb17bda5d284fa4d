"""Measures a model with the metrics that a config names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from cm3leon_jax.config_values import build
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.context import EvaluationContext, stage
from cm3leon_jax.evaluation.estimates import Estimate, flatten
from cm3leon_jax.evaluation.registry import METRICS
from cm3leon_jax.ranges import first_fault


@runtime_checkable
class Metric(Protocol):
    """Measures a model; a frozen dataclass whose fields are the options.

    A metric may have an attribute `headlines`, {name: what it is a fraction of}: they head the report in percent. One
    that has an option `set` measures that evaluation set of the config, and its values are named SET_NAME.
    """

    def __call__(self, evaluation: EvaluationContext) -> Mapping[str, float | Estimate]:
        """Returns values by the name that they have in evaluation.json; all processes of a run call it.

        Whatever was measured on a sample of items is an `Estimate`, and has an interval there.
        """
        ...


def build_metrics(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Metric]:
    """Makes the metrics of `config.evaluate.metrics`.

    Raises:
      UserError: names the metric or option that does not exist, or a value that is out of range.
    """
    metrics: dict[str, Metric] = {}
    for name, entry in config.items():
        where = f"config.evaluate.metrics.{name}"
        options = {option: value for option, value in entry.items() if option != "type"}
        metrics[name] = build(METRICS.load(entry["type"]), options, where)
        if fault := first_fault(metrics[name]):
            raise UserError(f"{where}.{fault}")
    return metrics


def measure(metrics: Mapping[str, Metric], evaluation: EvaluationContext) -> dict[str, float]:
    """Returns the step, and the values of all metrics.

    Raises:
      UserError: if two metrics return a value of the same name.
    """
    values = {"step": float(evaluation.model.step)}
    for name, metric in metrics.items():
        with stage(f"metric {name}"):
            found = flatten(metric(evaluation))
        # The same metric may measure several evaluation sets.
        if of_set := getattr(metric, "set", ""):
            found = {f"{of_set}_{key}": value for key, value in found.items()}
        if repeated := sorted(values.keys() & found):
            raise UserError(f"config.evaluate.metrics.{name} returns {repeated[0]}, as another metric does: remove one")
        values |= found
    return values


def headlines(metrics: Mapping[str, Metric]) -> dict[str, str]:
    """Returns the names of the values that head the report, and what each is a fraction of."""
    return {name: words for metric in metrics.values() for name, words in getattr(metric, "headlines", {}).items()}
