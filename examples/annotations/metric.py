"""Registers the metric "nearest_edits" and the detector "color_areas"."""

from cm3leon_jax.evaluation.registry import DETECTORS, METRICS

METRICS.add("nearest_edits", "examples.annotations.nearest:NearestEdits")
DETECTORS.add("color_areas", "examples.annotations.areas:ColorAreas")
