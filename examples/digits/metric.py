"""Registers the metrics "digits" and "digit_instructions"."""

from cm3leon_jax.evaluation.registry import METRICS

METRICS.add("digits", "examples.digits.classifier:Digits")
METRICS.add("digit_instructions", "examples.digits.followed:DigitInstructions")
