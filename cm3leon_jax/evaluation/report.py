"""One self-contained page that shows what a checkpoint generates, its metrics and its training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from cm3leon_jax import pages
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.curves import Curve, logged, plot
from cm3leon_jax.evaluation.estimates import rows
from cm3leon_jax.evaluation.gallery import GalleryEntry

# Most held-out documents that the page shows.
_MOST_SHOWN = 24
# Curves of the losses: key, label, color.
_CURVES = (
    ("loss", "all tokens", "#444444"),
    ("loss_text", "text", "#1f77b4"),
    ("loss_image", "image codes", "#d95f02"),
)


def render_report(
    evaluation: EvaluationContext,
    title: str,
    values: Mapping[str, float],
    headlines: Mapping[str, str],
    log: Sequence[Mapping[str, Any]],
    entries: Sequence[GalleryEntry] = (),
) -> str:
    """Renders the page; samples what no metric has sampled, so all processes of a run call this.

    Args:
      values: metrics by name.
      headlines: those in large type, with what each is a fraction of.
      log: lines of metrics.jsonl.
      entries: of evaluation sets, to show.
    """
    shown = slice(0, _MOST_SHOWN)
    texts, images = evaluation.held_out.texts[shown], evaluation.held_out_images[shown]
    sampled = _urls(evaluation.sampled_images)
    per_prompt = len(sampled) // len(evaluation.prompts)
    held_out, hidden = _urls(images), _urls(masked_images(images, evaluation.mask))
    infilled = _urls(evaluation.infilled_images[shown])
    originals, reconstructions = _urls(evaluation.originals[shown]), _urls(evaluation.reconstructions[shown])
    captions, left_to_right = evaluation.captions[shown], evaluation.captions_left_to_right[shown]
    return pages.render(
        "evaluation",
        "report.html.jinja",
        title=title,
        step=evaluation.model.step,
        rows=[row for row in rows(values) if row[0] != "step"],
        image=pages.ImageStyle.of(images.shape[1]),
        headlines=[(value, estimate, headlines[name]) for name, value, estimate in rows(values) if name in headlines],
        sampled=[
            (prompt, sampled[index * per_prompt : (index + 1) * per_prompt])
            for index, prompt in enumerate(evaluation.prompts)
        ],
        reconstructions=list(zip(originals, reconstructions, strict=True)),
        infills=list(zip(held_out, hidden, infilled, texts, strict=True)),
        captions=list(zip(held_out, texts, captions, left_to_right, strict=True)),
        sets=_by_set(entries),
        curves=loss_curves(log),
    )


def _by_set(entries: Sequence[GalleryEntry]) -> list[tuple[str, list[dict[str, Any]]]]:
    """What the page shows of each evaluation set: its name and its requests."""
    shown: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        if entry.set:
            images = [("the image asked about", entry.source), *(("generated", image) for image in entry.images)]
            images.append(("what it should be", entry.target))
            labeled = [(label, pages.image_url(image)) for label, image in images if image is not None]
            texts = {"prompt": entry.prompt, "answer": entry.text, "references": entry.references[:5]}
            shown.setdefault(entry.set, []).append({"images": labeled, **texts})
    return list(shown.items())


def _urls(images: UInt8[np.ndarray, "n R R C"]) -> list[str]:
    return [pages.image_url(image) for image in images]


def masked_images(
    images: UInt8[np.ndarray, "n R R C"], mask: Bool[np.ndarray, "codes"]
) -> UInt8[np.ndarray, "n R R C"]:
    """Paints the region of the masked codes light gray."""
    grid = round(len(mask) ** 0.5)
    scale = images.shape[1] // grid
    hidden = mask.reshape(grid, grid).repeat(scale, axis=0).repeat(scale, axis=1)
    return np.where(hidden[None, :, :, None], np.uint8(170), images)


def loss_curves(log: Sequence[Mapping[str, Any]]) -> str:
    """Plots the training loss by modality as lines and the evaluation loss as points: an SVG, empty without lines."""
    found = []
    for name, label, color in _CURVES:
        found.append(Curve(label, color, logged(log, name)))
        found.append(Curve(f"{label}, held out", color, logged(log, f"eval_{name}"), is_line=False))
    return plot(found, "nats per token", columns=2)
