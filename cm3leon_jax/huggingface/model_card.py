"""The README.md of an exported model: what it is, what it was trained on, how to ask it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cm3leon_jax.models.config import ModelConfig
from cm3leon_jax.vocabulary import Vocabulary


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
    vocabulary: Vocabulary,
    sequence_length: int,
    num_parameters: int,
    image_length: int,
    run: Training,
) -> str:
    """The card as Markdown."""
    return (
        "\n\n".join(
            [
                "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- cm3leon\n- text-to-image\n"
                "- image-to-text\n---",
                "# A CM3Leon model",
                "One decoder-only transformer over text tokens and image codes, trained with a causally masked "
                "objective ([arXiv 2309.02591](https://arxiv.org/abs/2309.02591)): it draws an image from a text, "
                "captions an image, and fills in parts of either. Written by `cm3leon export`.",
                "## Architecture",
                _architecture(model, vocabulary, sequence_length, num_parameters),
                "## Training",
                _training(run),
                *(["## Evaluation", _evaluation(run)] if run.evaluation else []),
                "## Use",
                _use(vocabulary, image_length, run.has_image_tokenizer),
                "## Prompts",
                _prompts(vocabulary, image_length),
            ]
        )
        + "\n"
    )


def _table(head: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _architecture(model: ModelConfig, vocabulary: Vocabulary, sequence_length: int, num_parameters: int) -> str:
    v = vocabulary
    norms = "learned scales and shifts" if model.norm_scale_and_bias else "no learned parameters"
    return "`OPTForCausalLM`, with the output layer tied to the embedding table.\n\n" + _table(
        ("", ""),
        [
            ("parameters", f"{num_parameters:,}"),
            ("layers, width, heads", f"{model.num_layers}, {model.model_dim:,}, {model.num_heads}"),
            ("feed-forward width, activation", f"{model.hidden_dim:,}, {model.activation}"),
            ("biases", "yes" if model.biases else "none"),
            ("layer norms", f"on the {model.norm_position} of each sublayer, {norms}"),
            ("positions", f"{sequence_length:,}, learned"),
            ("rows of the embedding table", f"{v.size:,}, of width {model.token_dim:,}"),
            ("text tokens", f"ids 4 to {v.first_image_code - 1:,}, a byte-level BPE"),
            ("image codes", f"ids {v.first_image_code:,} to {v.break_ - 1:,}, `<image:0>` and on"),
            ("marks", f"`<break>` {v.break_:,}, `<eoss>` {v.eoss:,}, `<mask:0>` {v.first_mask:,} and on"),
        ],
    )


def _training(run: Training) -> str:
    config = run.meta["config"]
    if run.meta.get("imported"):
        return "The parameters were imported from another folder, and were not trained since."
    batch, optimizer, objective = config["batch"], config["optimizer"], config["objective"]
    tokens = run.step * batch["batch_size"] * batch["sequence_length"]
    rows = [
        ("started from", run.meta["origin"]),
        ("steps", f"{run.step:,}"),
        ("tokens", f"{tokens:,} ({batch['batch_size']:,} sequences of {batch['sequence_length']:,} a step)"),
        ("packing", batch["packing"]),
        ("optimizer", f"AdamW, peak rate {optimizer['peak_learning_rate']:g}, {optimizer['warmup_steps']:,} steps up"),
        ("objective", f"CM3, spans: {objective['span_count']}, mean {objective['mean_spans']:g}"),
    ]
    return _table(("", ""), rows) + "\n\nThe documents it was trained on:\n\n" + _corpus(run)


def _corpus(run: Training) -> str:
    split = run.meta["config"]["corpus"]["train_split"]
    tasks = run.meta["corpus"].get("tasks", {})
    if run.manifest is None:
        rows = [(name, f"{task['rate']:g}", f"{task.get(split, 0):,}") for name, task in tasks.items()]
        return _table(("task", "rate", "documents"), rows)
    counted = []
    for name, task in run.manifest["tasks"].items():
        found = task["splits"].get(split, {})
        numbers = (f"{found.get(f'num_{what}', 0):,}" for what in ("documents", "text_tokens", "image_tokens"))
        counted.append((name, f"{task['rate']:g}", *numbers))
    return _table(("task", "rate", "documents", "text tokens", "image codes"), counted)


def _evaluation(run: Training) -> str:
    assert run.evaluation is not None
    measured = {name: value for name, value in run.evaluation.items() if name != "step"}
    step = run.evaluation.get("step", run.step)
    note = "" if step == run.step else f"Measured at step {step:,.0f}; these weights are of step {run.step:,}.\n\n"
    return note + _table(("held-out documents", ""), [(name, f"{value:.4g}") for name, value in measured.items()])


def _use(vocabulary: Vocabulary, image_length: int, has_image_tokenizer: bool) -> str:
    first, stop = vocabulary.first_image_code, vocabulary.break_
    text = (
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "."\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "model = AutoModelForCausalLM.from_pretrained(folder)\n"
        'prompt = tokenizer("</s>a photo of a cat<break>", return_tensors="pt")\n'
        "codes = model.generate(\n"
        f"    **prompt, do_sample=True, min_new_tokens={image_length}, max_new_tokens={image_length},\n"
        f"    prefix_allowed_tokens_fn=lambda row, ids: list(range({first}, {stop})),\n"
        f")[:, -{image_length}:] - {first}\n"
        "```\n\n"
    )
    images = (
        "`image_tokenizer/` turns codes into images and back:\n\n"
        "```python\n"
        "from cm3leon_jax.image_tokenizers.base import load_image_tokenizer\n\n"
        'images = load_image_tokenizer(f"{folder}/image_tokenizer").decode(codes.numpy())\n'
        "```\n\n"
    )
    notes = (
        "The tokenizer reads the names of marks and codes in a text as what they name: take them out of texts that are "
        "not yours. Engines that serve OPT, such as vLLM, look for the same names and fields. "
        "`cm3leon import --from=FOLDER` turns this folder into a run that `cm3leon` trains and generates with."
    )
    return text + (images if has_image_tokenizer else "") + notes


def _prompts(vocabulary: Vocabulary, image_length: int) -> str:
    rows = [
        ("draw", "`</s>` text `<break>`", f"{image_length:,} codes"),
        ("draw, the side to guide away from", "`</s><mask:0><break>`", f"{image_length:,} codes"),
        ("caption, by infill", "`</s><mask:0><break>` image `</s><mask:0>`", "text, `<eoss>`"),
        ("caption, left to right", "`</s>` image `<break>`", "text, `</s>`"),
        ("fill in an image", "`</s>` text `<break>` codes `<mask:0>` codes `</s><mask:0>`", "codes, `<eoss>`"),
    ]
    return (
        f"An image is {image_length:,} codes in raster order.\n\n"
        + _table(("task", "prompt", "answer"), rows)
        + "\n\nGuidance (arXiv 2309.02591, equation 1) adds, to the scores of the second row, a multiple of what the "
        "first row's scores have more."
    )
