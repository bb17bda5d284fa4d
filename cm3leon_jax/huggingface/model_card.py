"""The README.md of an exported model: what it is, what it was trained on, how to prompt it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jinja2

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
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cm3leon_jax", "huggingface"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    evaluation = run.evaluation or {}
    return environment.get_template("model_card.md.jinja").render(
        model=model,
        stored=stored,
        vocabulary=vocabulary,
        image_length=image_length,
        imported=bool(run.meta.get("imported")),
        step=run.step,
        has_image_tokenizer=run.has_image_tokenizer,
        architecture=_architecture(model, stored, vocabulary, num_parameters),
        training=[] if run.meta.get("imported") else _training(run),
        corpus=_corpus(run),
        measured=[(name, f"{value:.4g}") for name, value in evaluation.items() if name != "step"],
        measured_step=evaluation.get("step", run.step),
        has_evaluation=bool(evaluation),
    )


def _architecture(
    model: ModelConfig, stored: Mapping[str, Any], v: Vocabulary, num_parameters: int
) -> list[tuple[object, ...]]:
    norms = "learned scales and shifts" if model.norm_scale_and_bias else "no learned parameters"
    return [
        ("parameters", f"{num_parameters:,}"),
        ("layers, width, heads", f"{model.num_layers}, {model.model_dim:,}, {model.num_heads}"),
        ("feed-forward width, activation", f"{model.hidden_dim:,}, {model.activation}"),
        ("biases", "yes" if model.biases else "none"),
        (f"{model.norm} norms", f"on the {model.norm_position} of each sublayer, {norms}"),
        ("positions", f"{stored['max_position_embeddings']:,}, {model.positions}"),
        ("rows of the embedding table", f"{v.size:,}, of width {model.token_dim:,}"),
        ("text tokens", f"ids 4 to {v.first_image_code - 1:,}, a byte-level BPE"),
        ("image codes", f"ids {v.first_image_code:,} to {v.break_ - 1:,}, `<image:0>` and on"),
        ("special tokens", f"`<break>` {v.break_:,}, `<eoss>` {v.eoss:,}, `<mask:0>` {v.first_mask:,} and on"),
    ]


def _training(run: Training) -> list[tuple[object, ...]]:
    config = run.meta["config"]
    batch, optimizer, objective = config["batch"], config["optimizer"], config["objective"]
    tokens = run.step * batch["batch_size"] * batch["sequence_length"]
    return [
        ("started from", run.meta["origin"]),
        ("steps", f"{run.step:,}"),
        ("tokens", f"{tokens:,} ({batch['batch_size']:,} sequences of {batch['sequence_length']:,} per step)"),
        ("packing", batch["packing"]),
        ("optimizer", f"AdamW, peak rate {optimizer['peak_learning_rate']:g}, {optimizer['warmup_steps']:,} steps up"),
        ("objective", f"CM3, spans: {objective['span_count']}, mean {objective['mean_spans']:g}"),
    ]


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
