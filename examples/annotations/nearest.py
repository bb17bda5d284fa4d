"""How many edits are what was asked for: nearer to their target than to what any other edit, or none, would give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8

from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation import estimates
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.estimates import Estimate
from cm3leon_jax.evaluation.judge_files import JudgePath
from cm3leon_jax.evaluation.sets.base import field_of, read_json_lines
from cm3leon_jax.images import decode_image


@dataclass(frozen=True)
class NearestEdits:
    """The fraction of edits whose result is nearest to the target, of the images that `alternatives` names for each.

    A line is {"id", "group", "images": {NAME: file}, "before": NAME, "after": NAME}. Images are compared by the
    mean squared difference of their pixels at the model's resolution. No part of a model takes part in it.
    """

    tasks: ClassVar[tuple[str, ...]] = ("edit",)
    headlines: ClassVar[dict[str, str]] = {"edits_right": "of edits are nearer to what was asked for than to all else"}

    # The evaluation set with the edits.
    set: str
    alternatives: JudgePath

    def __call__(self, evaluation: EvaluationContext) -> dict[str, float | Estimate]:
        edits = evaluation.edited(self.set)
        shape = evaluation.model.image_tokenizer.config
        right, unedited, reconstructed = [], [], []
        groups = []
        for index, name in enumerate(edits.ids):
            if name not in self._lines:
                raise UserError(f"{self.alternatives} has no line of the edit {name}")
            line = self._lines[name]
            images = {
                each: decode_image(self._content(file), shape.resolution, shape.in_channels)
                for each, file in line["images"].items()
            }
            found = nearest(edits.edited[index : index + 1][0], images)
            right.append(float(found == line["after"]))
            unedited.append(float(found == line["before"]))
            # What the image tokenizer leaves of the target: no model can do better.
            decoded = self._decoded(evaluation, images[line["after"]])
            reconstructed.append(float(nearest(decoded, images) == line["after"]))
            groups.append(line["group"])
        return {
            "edits_right": estimates.mean(np.array(right), groups),
            "edits_as_before": estimates.mean(np.array(unedited), groups),
            "edits_right_of_targets": estimates.mean(np.array(reconstructed), groups),
        }

    def _decoded(self, evaluation: EvaluationContext, image: UInt8[np.ndarray, "R R C"]) -> UInt8[np.ndarray, "R R C"]:
        tokenizer = evaluation.model.image_tokenizer
        return tokenizer.decode(tokenizer.encode(image[None]))[0]

    @cached_property
    def _lines(self) -> dict[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        for number, line in read_json_lines(self.alternatives):
            where = f"{self.alternatives}, line {number}"
            images = field_of(line, "images", dict, where)
            for name in ("before", "after"):
                if field_of(line, name, str, where) not in images:
                    raise UserError(f"{where}: {name} is none of the images")
            field_of(line, "group", str, where)
            found[field_of(line, "id", str, where)] = line
        return found

    def _content(self, file: str) -> bytes:
        try:
            return (Path(self.alternatives).parent / file).read_bytes()
        except OSError as error:
            raise UserError(f"{file} of {self.alternatives} cannot be read ({error.strerror})") from None


def nearest(result: UInt8[np.ndarray, "R R C"], images: Mapping[str, UInt8[np.ndarray, "R R C"]]) -> str:
    """The name of the image that a result is nearest to."""
    errors = {name: float(np.mean((image.astype(np.float64) - result) ** 2)) for name, image in images.items()}
    return min(errors, key=lambda name: errors[name])
