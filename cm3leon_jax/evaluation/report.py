"""One self-contained page that shows what a checkpoint generates, its metrics and its training curves."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from matplotlib import rc_context
from matplotlib.figure import Figure

from cm3leon_jax import pages
from cm3leon_jax.evaluation.context import EvaluationContext
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
            urls = [pages.image_url(image) for image in (entry.source, *entry.images) if image is not None]
            texts = {"prompt": entry.prompt, "answer": entry.text, "references": entry.references[:5]}
            shown.setdefault(entry.set, []).append({"urls": urls, "has_source": entry.source is not None, **texts})
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
    if not log:
        return ""
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for name, label, color in _CURVES:
        training, held_out = _points(log, name), _points(log, f"eval_{name}")
        if training:
            axes.plot(*zip(*training, strict=True), color=color, label=label, linewidth=1.4)
        if held_out:
            title = f"{label}, held out"
            axes.plot(
                *zip(*held_out, strict=True), color=color, label=title, marker="o", linestyle="none", markersize=4
            )
    axes.set_xlabel("step")
    axes.set_ylabel("nats per token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    buffer = io.StringIO()
    # Its element ids would be random.
    with rc_context({"svg.hashsalt": "loss"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _points(log: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(line["step"], line[name]) for line in log if line.get(name) is not None]
