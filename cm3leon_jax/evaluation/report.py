"""One self-contained page that shows what a run can do: images, captions, infills, numbers and curves."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from matplotlib import rc_context
from matplotlib.figure import Figure

from cm3leon_jax import pages
from cm3leon_jax.files import atomic_write

# How `evaluation.json` names read on the page: (name, what it is).
HEADLINES = (
    ("text_to_image_accuracy", "of drawings are read as the digit asked for"),
    ("caption_accuracy", "of unseen images are captioned with the right digit"),
    ("infill_accuracy", "are still their digit after the middle half is drawn anew"),
)
_CURVES = (("loss", "all tokens"), ("loss_text", "text"), ("loss_image", "image codes"))
_COLORS = {"loss": "#444444", "loss_text": "#1f77b4", "loss_image": "#d95f02"}


@dataclass(frozen=True)
class Report:
    """What the page shows. Images are pixels; row i of each group belongs to text i."""

    title: str
    numbers: dict[str, float]
    metrics: list[dict[str, Any]]
    prompts: list[str]
    drawn: UInt8[np.ndarray, "prompts samples R R C"]
    originals: UInt8[np.ndarray, "o R R C"]
    reconstructions: UInt8[np.ndarray, "o R R C"]
    held_out: UInt8[np.ndarray, "n R R C"]
    filled: UInt8[np.ndarray, "n R R C"]
    texts: list[str]
    captions: list[str]
    captions_left_to_right: list[str]
    # Which codes of an image an infill replaces.
    mask: Bool[np.ndarray, "codes"]


def write_report(report: Report, path: Path) -> None:
    """Renders the page."""
    held_out = _urls(report.held_out)
    page = pages.render(
        "evaluation",
        "report.html.jinja",
        report=report,
        image=pages.ImageStyle.of(report.held_out.shape[1]),
        headlines=[(report.numbers[name], words) for name, words in HEADLINES if name in report.numbers],
        drawn=[(prompt, _urls(images)) for prompt, images in zip(report.prompts, report.drawn, strict=True)],
        reconstructions=list(zip(_urls(report.originals), _urls(report.reconstructions), strict=True)),
        infills=list(
            zip(
                held_out,
                _urls(masked_images(report.held_out, report.mask)),
                _urls(report.filled),
                report.texts,
                strict=True,
            )
        ),
        captions=list(zip(held_out, report.texts, report.captions, report.captions_left_to_right, strict=True)),
        curves=loss_curves(report.metrics),
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _urls(images: UInt8[np.ndarray, "n R R C"]) -> list[str]:
    return [pages.image_url(image) for image in images]


def masked_images(
    images: UInt8[np.ndarray, "n R R C"], mask: Bool[np.ndarray, "codes"]
) -> UInt8[np.ndarray, "n R R C"]:
    """The images with a light gray where their masked codes lie."""
    grid = round(len(mask) ** 0.5)
    scale = images.shape[1] // grid
    hidden = mask.reshape(grid, grid).repeat(scale, axis=0).repeat(scale, axis=1)
    return np.where(hidden[None, :, :, None], np.uint8(170), images)


def loss_curves(metrics: list[dict[str, Any]]) -> str:
    """Training loss by modality as lines and held-out loss as points, over steps: an SVG; empty without metrics."""
    if not metrics:
        return ""
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for name, label in _CURVES:
        for key, style in ((name, {"linewidth": 1.4}), (f"eval_{name}", {"marker": "o", "linestyle": "none"})):
            points = [(line["step"], line[key]) for line in metrics if line.get(key) is not None]
            if points:
                title = label if key == name else f"{label}, held out"
                axes.plot(*zip(*points, strict=True), color=_COLORS[name], label=title, markersize=4, **style)
    axes.set_xlabel("step")
    axes.set_ylabel("nats a token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    buffer = io.StringIO()
    # The names in it would be random.
    with rc_context({"svg.hashsalt": "loss"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
