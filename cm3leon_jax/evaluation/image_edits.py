"""How near edited images are to their targets, and how much an edit changed, inside and outside of its mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from cm3leon_jax.encoders.base import Encoder, load_encoder
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation import estimates
from cm3leon_jax.evaluation.batches import item_values
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.estimates import Estimate
from cm3leon_jax.evaluation.judge_files import OptionalJudgePath
from cm3leon_jax.ranges import PositiveInt

_COMPARISONS = ("l1", "l2", "clip_i", "clip_t")


@dataclass(frozen=True)
class ImageEdits:
    """MagicBrush's L1, L2, CLIP-I and CLIP-T (arXiv 2306.10012, section 4), and the fractions of codes that changed.

    An edited image all of whose codes are the source's is not edited at all.
    """

    tasks: ClassVar[tuple[str, ...]] = ("edit",)

    # The evaluation set with edits.
    set: str
    # The folder of an encoder such as CLIP; empty: no CLIP-I and no CLIP-T.
    encoder: OptionalJudgePath = ""
    batch_size: PositiveInt = 64

    def __call__(self, evaluation: EvaluationContext) -> dict[str, float | Estimate]:
        edits = evaluation.edited(self.set)
        if not edits.ids:
            raise UserError(f"an edits metric: the evaluation set {self.set!r} has no edits")
        encoder = load_encoder(self.encoder) if self.encoder else None

        def compared(batch: slice) -> list[dict[str, float]]:
            return comparisons(edits.edited[batch], edits.targets[batch], edits.target_captions[batch], encoder)

        found = item_values(compared, len(edits.ids), self.batch_size, f"comparing {len(edits.ids):,} edited images")
        measured = {name: [each[name] for each in found if name in each] for name in _COMPARISONS}
        values: dict[str, float | Estimate] = {}
        values |= {f"edits_{name}": estimates.mean(each) for name, each in measured.items() if each}
        return values | code_changes(edits.source_codes, edits.edited_codes, edits.masks)


def comparisons(
    edited: UInt8[np.ndarray, "n R R C"],
    targets: UInt8[np.ndarray, "n R R C"],
    captions: Sequence[str],
    encoder: Encoder | None = None,
) -> list[dict[str, float]]:
    """`l1` and `l2` of each edited image; with an encoder `clip_i`, and `clip_t` where its target has a caption."""
    l1, l2 = pixel_differences(edited, targets)
    found = [{"l1": float(a), "l2": float(b)} for a, b in zip(l1, l2, strict=True)]
    if encoder is None:
        return found
    vectors, of_targets = encoder.encode_images(edited), encoder.encode_images(targets)
    for each, similarity in zip(found, np.sum(vectors * of_targets, axis=1), strict=True):
        each["clip_i"] = float(similarity)
    with_caption = [index for index, caption in enumerate(captions) if caption.strip()]
    if with_caption and encoder.is_joint:
        of_captions = encoder.encode_texts([captions[index] for index in with_caption])
        similarities = np.sum(vectors[with_caption] * of_captions, axis=1)
        for index, similarity in zip(with_caption, similarities, strict=True):
            found[index]["clip_t"] = float(similarity)
    return found


def pixel_differences(
    images: UInt8[np.ndarray, "n R R C"], others: UInt8[np.ndarray, "n R R C"]
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """The mean absolute and the mean squared difference of each pair, of pixels from 0 to 1."""
    difference = (images.astype(np.float64) - others) / 255
    return np.abs(difference).mean(axis=(1, 2, 3)), np.square(difference).mean(axis=(1, 2, 3))


def code_changes(
    sources: Int[np.ndarray, "n codes"], edited: Int[np.ndarray, "n codes"], masks: Bool[np.ndarray, "n codes"]
) -> dict[str, Estimate]:
    """Fractions of codes that an edit changed, of all and, where edits have a mask, inside and outside of it.

    Returns:
      `edits_changed`, `edits_changed_inside`, `edits_changed_outside`, and `edits_unedited`, the fraction of edits that
      changed no code.
    """
    is_changed = sources != edited
    values = {
        "edits_changed": estimates.mean(is_changed.mean(axis=1)),
        "edits_unedited": estimates.mean((~is_changed.any(axis=1)).astype(np.float64)),
    }
    has_mask = masks.any(axis=1)
    for name, region in (("inside", masks), ("outside", ~masks)):
        kept = has_mask & region.any(axis=1)
        if kept.any():
            fractions = (is_changed & region)[kept].sum(axis=1) / region[kept].sum(axis=1)
            values[f"edits_changed_{name}"] = estimates.mean(fractions)
    return values
