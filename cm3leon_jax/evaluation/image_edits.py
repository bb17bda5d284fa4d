"""How near edited images are to their targets, and how much an edit changed, inside and outside of its mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8

from cm3leon_jax.encoders.base import Encoder, load_encoder
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation import estimates
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.estimates import Estimate
from cm3leon_jax.paths import OptionalPath
from cm3leon_jax.ranges import PositiveInt


@dataclass(frozen=True)
class ImageEdits:
    """MagicBrush's L1, L2, CLIP-I and CLIP-T (arXiv 2306.10012, section 4), and the fractions of codes that changed.

    An edited image all of whose codes are the source's is not edited at all.
    """

    # The evaluation set with edits.
    set: str
    # The folder of an encoder such as CLIP; empty: no CLIP-I and no CLIP-T.
    encoder: OptionalPath = ""
    batch_size: PositiveInt = 64

    def __call__(self, evaluation: EvaluationContext) -> dict[str, float | Estimate]:
        edits = evaluation.edited(self.set)
        if not edits.ids:
            raise UserError(f"an edits metric: the evaluation set {self.set!r} has no edits")
        encoder = load_encoder(self.encoder) if self.encoder else None
        l1, l2, similar_images, similar_texts = [], [], [], []
        for start in range(0, len(edits.ids), self.batch_size):
            chunk = slice(start, start + self.batch_size)
            edited, targets = edits.edited[chunk], edits.targets[chunk]
            differences = pixel_differences(edited, targets)
            l1.append(differences[0])
            l2.append(differences[1])
            if encoder is not None:
                vectors = encoder.encode_images(edited)
                similar_images.append(np.sum(vectors * encoder.encode_images(targets), axis=1))
                similar_texts.append(_similar_texts(vectors, edits.target_captions[chunk], encoder))
        values: dict[str, float | Estimate] = {
            "edits_l1": estimates.mean(np.concatenate(l1)),
            "edits_l2": estimates.mean(np.concatenate(l2)),
        }
        if encoder is not None:
            values["edits_clip_i"] = estimates.mean(np.concatenate(similar_images).astype(np.float64))
            texts = np.concatenate(similar_texts).astype(np.float64)
            if len(texts):
                values["edits_clip_t"] = estimates.mean(texts)
        return values | code_changes(edits.source_codes, edits.edited_codes, edits.masks)


def _similar_texts(
    vectors: Float32[np.ndarray, "n dim"], captions: list[str], encoder: Encoder
) -> Float32[np.ndarray, "k"]:
    """The cosine of each image and its caption, of those that have one."""
    with_caption = [index for index, caption in enumerate(captions) if caption.strip()]
    if not with_caption or not encoder.is_joint:
        return np.zeros(0, np.float32)
    texts = encoder.encode_texts([captions[index] for index in with_caption])
    return np.sum(vectors[with_caption] * texts, axis=1)


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
