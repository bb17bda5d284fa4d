"""An evaluation without a model, for tests of metrics."""

from __future__ import annotations

from typing import Any

from cm3leon_jax.evaluation.context import EvaluationContext


def evaluation_with(**members: Any) -> EvaluationContext:
    """An evaluation that has these members, nothing kept and no others, whatever they are of a true one."""
    evaluation = object.__new__(EvaluationContext)
    evaluation.__dict__.update({"kept": {}} | members)
    return evaluation
