"""One self-contained page that shows what a checkpoint generates, its metrics and its training curves."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from matplotlib import rc_context
from matplotlib.figure import Figure

from cm3leon_jax import pages
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.files import atomic_write

# Most held-out documents that the page shows.
_MOST_SHOWN = 24
# Curves of the losses: key, label, color.
_CURVES = (
    ("loss", "all tokens", "#444444"),
    ("loss_text", "text", "#1f77b4"),
    ("loss_image", "image codes", "#d95f02"),
)


@dataclass(frozen=True)
class Report:
    """Contents of the page. Images are pixels; those of a held-out document have the index of its text."""

    title: str
    # Metrics by name, and those in large type with what each is a fraction of.
    values: Mapping[str, float]
    headlines: Mapping[str, str]
    # Lines of metrics.jsonl.
    log: Sequence[Mapping[str, Any]]
    prompts: Sequence[str]
    sampled: UInt8[np.ndarray, "prompts samples R R C"]
    originals: UInt8[np.ndarray, "o R R C"]
    reconstructions: UInt8[np.ndarray, "o R R C"]
    held_out: UInt8[np.ndarray, "n R R C"]
    infilled: UInt8[np.ndarray, "n R R C"]
    texts: Sequence[str]
    captions: Sequence[str]
    captions_left_to_right: Sequence[str]
    # Which codes of an image an infill replaces.
    mask: Bool[np.ndarray, "codes"]

    @classmethod
    def of(
        cls,
        evaluation: EvaluationContext,
        title: str,
        values: Mapping[str, float],
        headlines: Mapping[str, str],
        log: Sequence[Mapping[str, Any]],
    ) -> Report:
        """Samples what no metric has sampled; all processes of a run call this."""
        shown, sampled = slice(0, _MOST_SHOWN), evaluation.sampled_images
        return cls(
            title=title,
            values=values,
            headlines=headlines,
            log=log,
            prompts=evaluation.prompts,
            sampled=sampled.reshape(len(evaluation.prompts), -1, *sampled.shape[1:]),
            originals=evaluation.originals[shown],
            reconstructions=evaluation.reconstructions[shown],
            held_out=evaluation.held_out_images[shown],
            infilled=evaluation.infilled_images[shown],
            texts=evaluation.held_out.texts[shown],
            captions=evaluation.captions[shown],
            captions_left_to_right=evaluation.captions_left_to_right[shown],
            mask=evaluation.mask,
        )


def write_report(report: Report, path: Path) -> None:
    """Renders the page."""
    held_out, hidden = _urls(report.held_out), _urls(masked_images(report.held_out, report.mask))
    page = pages.render(
        "evaluation",
        "report.html.jinja",
        report=report,
        image=pages.ImageStyle.of(report.held_out.shape[1]),
        headlines=[(report.values[name], words) for name, words in report.headlines.items() if name in report.values],
        sampled=[(prompt, _urls(images)) for prompt, images in zip(report.prompts, report.sampled, strict=True)],
        reconstructions=list(zip(_urls(report.originals), _urls(report.reconstructions), strict=True)),
        infills=list(zip(held_out, hidden, _urls(report.infilled), report.texts, strict=True)),
        captions=list(zip(held_out, report.texts, report.captions, report.captions_left_to_right, strict=True)),
        curves=loss_curves(report.log),
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


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
