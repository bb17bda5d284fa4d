"""Registers judges that no model here was trained with: metrics of an ImageNet classifier, and a COCO detector."""

from cm3leon_jax.evaluation.registry import DETECTORS, METRICS

METRICS.add("imagenet_classes", "examples.judges.classifier:ImageNetClasses")
METRICS.add("imagenet_distance", "examples.judges.classifier:ImageNetDistance")
DETECTORS.add("coco", "examples.judges.detector:CocoDetector")
