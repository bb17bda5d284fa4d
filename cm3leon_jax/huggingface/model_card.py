"""The README.md of an exported model: what it is, what it was trained on, how to prompt it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cm3leon_jax import pages
from cm3leon_jax.models.config import ModelConfig
from cm3leon_jax.vocabulary import Vocabulary

# The head of a table and its rows.
Table = tuple[tuple[str, ...], list[tuple[object, ...]]]


@dataclass(frozen=True)
class Training:
    """What is known of how a checkpoint came to be."""

    # The checkpoint's own record: config, corpus, whether its parameters were imported.
    meta: Mapping[str, Any]
    step: int
    # The manifest of the corpus, where it is at hand.
    manifest: Mapping[str, Any] | None
    # evaluation.json of the run, where there is one.
    evaluation: Mapping[str, float] | None
    # Parameters that were imported before any image tokenizer was trained have none.
    has_image_tokenizer: bool


def model_card(
    model: ModelConfig,
    stored: Mapping[str, Any],
    vocabulary: Vocabulary,
    num_parameters: int,
    image_length: int,
    run: Training,
) -> str:
    """The card as Markdown; `stored` is the folder's config.json."""
    evaluation = run.evaluation or {}
    return pages.render(
        "huggingface",
        "model_card.md.jinja",
        model=model,
        stored=stored,
        vocabulary=vocabulary,
        num_parameters=num_parameters,
        image_length=image_length,
        meta={"imported": False, **run.meta},
        step=run.step,
        has_image_tokenizer=run.has_image_tokenizer,
        corpus=_corpus(run),
        measured=[(name, f"{value:.4g}") for name, value in evaluation.items() if name != "step"],
        measured_step=evaluation.get("step", run.step),
    )


def _corpus(run: Training) -> Table:
    split = run.meta["config"]["corpus"]["train_split"]
    if run.manifest is None:
        tasks = run.meta["corpus"].get("tasks", {})
        rows: list[tuple[object, ...]] = [
            (name, f"{task['rate']:g}", f"{task.get(split, 0):,}") for name, task in tasks.items()
        ]
        return ("task", "rate", "documents"), rows
    rows = []
    for name, task in run.manifest["tasks"].items():
        found = task["splits"].get(split, {})
        numbers = (f"{found.get(f'num_{what}', 0):,}" for what in ("documents", "text_tokens", "image_tokens"))
        rows.append((name, f"{task['rate']:g}", *numbers))
    return ("task", "rate", "documents", "text tokens", "image codes"), rows
