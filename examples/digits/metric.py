"""Registers the metric "digits"."""

from cm3leon_jax.evaluation.registry import METRICS

METRICS.add("digits", "examples.digits.classifier:Digits")
