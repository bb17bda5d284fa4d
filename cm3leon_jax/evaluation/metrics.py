"""Measures a model with the metrics that a config names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from cm3leon_jax.config_values import build
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.context import EvaluationContext, stage
from cm3leon_jax.evaluation.estimates import Estimate, flatten
from cm3leon_jax.evaluation.registry import METRICS
from cm3leon_jax.evaluation.sets.configured import ConfiguredSet, set_named
from cm3leon_jax.generation.requests import TASKS
from cm3leon_jax.ranges import first_fault


@runtime_checkable
class Metric(Protocol):
    """Measures a model; a frozen dataclass whose fields are the options.

    A metric may have an attribute `headlines`, {name: what it is a fraction of}: they head the report in percent. One
    that has an option `set` measures that evaluation set of the config, and its values are named SET_NAME; its
    attribute `tasks` are those that the set may ask for, if not all. An option `name` is in the names of its values.
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


def check_sets(metrics: Mapping[str, Metric], sets: Mapping[str, ConfiguredSet]) -> None:
    """Reads the sets that metrics measure, before anything is generated.

    Raises:
      UserError: if a set is not there, cannot be read, or asks for a task that its metric does not measure.
    """
    for name, metric in metrics.items():
        if of_set := getattr(metric, "set", ""):
            tasks = getattr(metric, "tasks", tuple(TASKS))
            asked = set_named(sets, of_set)
            asked.check_asks(tasks, f"{' or '.join(tasks)} (config.evaluate.metrics.{name})")


def measure(metrics: Mapping[str, Metric], evaluation: EvaluationContext) -> dict[str, float]:
    """Returns the step, and the values of all metrics.

    A value has the name that its metric gives it, after the metric's prefix; where an earlier metric has that name, all
    values of the later one begin with its own name in the config.
    """
    values, beginnings = {"step": float(evaluation.model.step)}, prefixes(metrics)
    for name, metric in metrics.items():
        with stage(f"metric {name}"):
            found = flatten({beginnings[name] + key: value for key, value in metric(evaluation).items()})
        # Refused, a name would cost hours of generation: what a metric returns is known only afterwards.
        while values.keys() & found:
            found = {f"{name}_{key}": value for key, value in found.items()}
        values |= found
    return values


def prefixes(metrics: Mapping[str, Metric]) -> dict[str, str]:
    """What the names of each metric's values begin with: its set, if it has one.

    Metrics of one type that measure the same set, and differ in other options, have their own names before it.
    """
    named_by = {
        name: (type(metric), getattr(metric, "set", ""), getattr(metric, "name", ""))
        for name, metric in metrics.items()
    }
    counts = Counter(named_by.values())
    return {
        name: (f"{name}_" if counts[key] > 1 else "") + (f"{key[1]}_" if key[1] else "")
        for name, key in named_by.items()
    }


def headlines(metrics: Mapping[str, Metric]) -> dict[str, str]:
    """Returns the names of the values that head the report, and what each is a fraction of."""
    beginnings = prefixes(metrics)
    return {
        beginnings[name] + key: words
        for name, metric in metrics.items()
        for key, words in getattr(metric, "headlines", {}).items()
    }
