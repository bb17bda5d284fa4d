"""Shows what a run of examples/annotations does with held-out requests, beside what guessing and the judges give.

    python benchmarks/annotations.py runs/annotations

The run is one that `cm3leon evaluate --config=annotations` measured. Of questions the most frequent answer is shown,
and of requests for objects at boxes what the detector finds in the real images, before and after the image tokenizer.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import cm3leon_jax
from cm3leon_jax.evaluation.answers import normalize_answer
from cm3leon_jax.evaluation.object_scores import GOOD_IOU, AskedObjects, asked_boxes, box_ious
from cm3leon_jax.evaluation.sets.configured import build_sets
from cm3leon_jax.images import decode_image
from examples.annotations.areas import ColorAreas


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    arguments = parser.parse_args()
    model = cm3leon_jax.load(arguments.run)
    sets = build_sets(model.config.evaluate)
    values = json.loads((arguments.run / "evaluation.json").read_text())
    for name in [each for each in values if f"{each}_low" in values]:
        low, high, n = (values[f"{name}_{bound}"] for bound in ("low", "high", "n"))
        print(f"{name:44} {values[name]:.3f} [{low:.3f}, {high:.3f}] n={n}")
    for name, found in sets.items():
        answers = Counter(
            normalize_answer(item.references[0]) for item in found.items if item.request.get("task") == "vqa"
        )
        if answers:
            (answer, count), total = answers.most_common(1)[0], sum(answers.values())
            print(f"{name + ', most frequent answer':44} {count / total:.3f} ({answer})")
    files = [item.image for item in sets["objects"].items]
    real = [decode_image(file.read_bytes(), 32, 3) for file in files if isinstance(file, Path)]
    boxes = [item.request["objects"] for item in sets["objects"].items]
    tokenizer = model.trained.image_tokenizer
    decoded = tokenizer.reconstruct(np.stack(real))
    for name, images in (("real images", np.stack(real)), ("after the image tokenizer", decoded)):
        print(f"{'objects in their box, ' + name:44} {in_box(images, boxes):.3f}")
    # The boxes of another request: what a model that does not look at them gets.
    others = boxes[1:] + boxes[:1]
    print(f"{'objects in their box, another image':44} {in_box(np.stack(real), others):.3f}")
    return 0


def in_box(images: np.ndarray, boxes: Sequence[Sequence[dict[str, object]]]) -> float:
    """The fraction of requested regions that the detector finds in their boxes."""
    side = images.shape[1]
    found = [
        iou
        for objects, detections in zip(boxes, ColorAreas()(images), strict=True)
        for iou in box_ious(cast(AskedObjects, asked_boxes(objects, side)), detections, side)
    ]
    return float(np.mean(np.array(found) >= GOOD_IOU))


if __name__ == "__main__":
    sys.exit(main())
