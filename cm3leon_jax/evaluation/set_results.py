"""What a model generates for an evaluation set, beside what is true: made once, whichever metrics look at it."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image

from cm3leon_jax.config import Config
from cm3leon_jax.config_part import field_types
from cm3leon_jax.config_values import build
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.config import EvaluateConfig
from cm3leon_jax.evaluation.image_arrays import CodedImages, ImageArray, ImageFiles
from cm3leon_jax.evaluation.registry import SETS
from cm3leon_jax.evaluation.sets.base import EvaluationSet, Item, sha256
from cm3leon_jax.generation.config import SamplingConfig
from cm3leon_jax.generation.generate import Result, generate, open_retriever, retrieve
from cm3leon_jax.generation.load import TrainedModel
from cm3leon_jax.generation.requests import ImageSource, Request, read_image, request_of
from cm3leon_jax.images import UnreadableImage, decode_image, encode_png
from cm3leon_jax.ranges import PositiveInt, first_fault

# Images encoded at a time.
_IMAGES = 64


@dataclass(frozen=True)
class SampledImages:
    """Images from prompts."""

    # The prompt of each image, and the id of that prompt: images of one prompt are not independent.
    prompts: list[str]
    ids: list[str]
    images: ImageArray
    # Place of each image among those of its prompt, from 0, the best first by `config.sampling.scorer`.
    ranks: Int[np.ndarray, "n"]
    # What each prompt asks for; empty where the prompts are no evaluation set's.
    items: list[Item] = field(default_factory=list)


@dataclass(frozen=True)
class ComparedTexts:
    """Captions or answers, beside what people wrote."""

    ids: list[str]
    predictions: list[str]
    references: list[tuple[str, ...]]


@dataclass(frozen=True)
class ComparedEdits:
    """Edited images."""

    ids: list[str]
    instructions: list[str]
    sources: ImageArray
    edited: ImageArray
    targets: ImageArray
    source_codes: Int[np.ndarray, "n codes"]
    edited_codes: Int[np.ndarray, "n codes"]
    target_codes: Int[np.ndarray, "n codes"]
    # Codes inside the part to change; none where the set has no masks.
    masks: Bool[np.ndarray, "n codes"]
    # Empty where the set has none.
    target_captions: list[str]


@dataclass(frozen=True)
class SetSampling:
    """How an evaluation set is sampled: options that all sets have."""

    # Images per prompt; texts and edits are one each.
    samples_per_prompt: PositiveInt
    # Fields of `config.sampling` that differ for this set.
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SetOptions:
    """An evaluation set of a config."""

    reader: EvaluationSet
    sampling: SetSampling


def build_sets(config: EvaluateConfig) -> dict[str, SetOptions]:
    """Makes the evaluation sets of `config.evaluate.sets`.

    Raises:
      UserError: names the set or option that does not exist, or a value that is out of range.
    """
    sets = {}
    for name, entry in config.sets.items():
        where = f"config.evaluate.sets.{name}"
        options = {"samples_per_prompt": config.samples_per_prompt, **entry}
        kind = SETS.load(options.pop("type"))
        common = {option: options.pop(option) for option in field_types(SetSampling) if option in options}
        sets[name] = SetOptions(build(kind, options, where), build(SetSampling, common, where))
        if fault := first_fault(sets[name].reader) or first_fault(sets[name].sampling):
            raise UserError(f"{where}.{fault}")
    return sets


def set_hashes(sets: Mapping[str, SetOptions]) -> dict[str, str]:
    """The SHA-256 of the files that say what each set asks and what is true, and of the ids, under SET_sha256."""
    return {
        f"{name}_sha256": sha256(options.reader.files, (item.id for item in options.reader()))
        for name, options in sets.items()
    }


def read(name: str, chosen: SetOptions) -> tuple[list[Item], list[Request]]:
    """The items of a set, and their requests.

    Raises:
      UserError: names the first item that is no request.
    """
    items = chosen.reader()
    requests = []
    for number, item in enumerate(items):
        try:
            requests.append(request_of(item.request, Path(), number + 1, number))
        except UserError as error:
            raise UserError(f"config.evaluate.sets.{name}, item {item.id}: {error}") from None
    return items, requests


def complete(name: str, chosen: SetOptions, model: TrainedModel, config: Config) -> tuple[list[Item], list[Result]]:
    """Generates for every item of a set; all processes of a run call this.

    Texts are the likeliest, by greedy decoding, unless the set's options say otherwise.

    Raises:
      UserError: names the first item that cannot be asked, or has no completion.
    """
    items, requests = read(name, chosen)
    is_image = requests[0].task == "text_to_image"
    values = dataclasses.asdict(config.sampling) | (
        {} if is_image or requests[0].task == "edit" else {"temperature": 0.0}
    )
    sampling = build(SamplingConfig, {**values, **chosen.sampling.sampling}, f"config.evaluate.sets.{name}.sampling")
    if sampling.scorer == "clip" and model.clip is None:
        raise UserError(f"config.evaluate.sets.{name}.sampling: set scorer in config.sampling, which loads the encoder")
    neighbors = None
    if count := config.evaluate.num_retrieved:
        image = config.image_tokenizer
        retriever = open_retriever(config, model.vocabulary, count)
        neighbors = retrieve(requests, retriever, count, image.resolution, image.in_channels)
    samples = chosen.sampling.samples_per_prompt if is_image else 1
    results, failures = generate(requests, model, sampling, samples, neighbors)
    if failures:
        first = failures[0]
        more = f" (and {len(failures) - 1:,} more items)" if len(failures) > 1 else ""
        raise UserError(f"config.evaluate.sets.{name}, item {items[first.line - 1].id}: {first.error}{more}")
    return items, sorted(results, key=lambda result: result.request.number)


def sampled(name: str, items: Sequence[Item], results: Sequence[Result], model: TrainedModel) -> SampledImages:
    """The images of a set, all samples of a prompt after each other."""
    _check_task(name, results, ("text_to_image",), "images from prompts")
    kept = [
        (item, result.request.prompt, rank, candidate.image)
        for item, result in zip(items, results, strict=True)
        for rank, candidate in enumerate(result.candidates)
    ]
    return SampledImages(
        prompts=[prompt for _, prompt, _, _ in kept],
        ids=[item.id for item, _, _, _ in kept],
        images=CodedImages(np.stack([image for *_, image in kept if image is not None]), model.image_tokenizer),
        ranks=np.array([rank for _, _, rank, _ in kept]),
        items=[item for item, _, _, _ in kept],
    )


def texts(name: str, items: Sequence[Item], results: Sequence[Result], tasks: tuple[str, ...]) -> ComparedTexts:
    """The best caption or answer of each item."""
    _check_task(name, results, tasks, " or ".join(tasks))
    for item in items:
        if not item.references:
            raise UserError(f"config.evaluate.sets.{name}, item {item.id}: no references to compare a text with")
    return ComparedTexts(
        [item.id for item in items],
        [result.candidates[0].text or "" for result in results],
        [item.references for item in items],
    )


def edits(name: str, items: Sequence[Item], results: Sequence[Result], model: TrainedModel) -> ComparedEdits:
    """The best edited image of each item."""
    _check_task(name, results, ("edit",), "edits")
    config = model.image_tokenizer.config
    sources, targets = [], []
    for item, result in zip(items, results, strict=True):
        assert result.request.image is not None
        if item.image is None:
            raise UserError(f"config.evaluate.sets.{name}, item {item.id}: no target to compare an edited image with")
        sources.append(result.request.image)
        targets.append(item.image)
    source_files = ImageFiles(sources, config.resolution, config.in_channels)
    target_files = ImageFiles(targets, config.resolution, config.in_channels)
    edited = np.stack([result.candidates[0].image for result in results if result.candidates[0].image is not None])
    return ComparedEdits(
        ids=[item.id for item in items],
        instructions=[result.request.prompt for result in results],
        sources=source_files,
        edited=CodedImages(edited, model.image_tokenizer),
        targets=target_files,
        source_codes=_encoded(source_files, model),
        edited_codes=edited,
        target_codes=_encoded(target_files, model),
        masks=np.stack([mask_of_codes(item.mask, config.resolution, config.grid) for item in items]),
        target_captions=[item.references[0] if item.references else "" for item in items],
    )


def mask_of_codes(mask: ImageSource | None, resolution: int, grid: int) -> Bool[np.ndarray, "codes"]:
    """Which codes lie mostly in the transparent or, without transparency, white part of a mask; none without a mask."""
    if mask is None:
        return np.zeros(grid * grid, bool)
    try:
        with Image.open(io.BytesIO(read_image(mask))) as file:
            has_alpha = file.has_transparency_data
            values = np.asarray(file.convert("RGBA").getchannel("A") if has_alpha else file.convert("L"))
        inside = (values < 128) if has_alpha else (values >= 128)
        # The same crop as that of the image it belongs to.
        pixels = decode_image(encode_png(np.uint8(255) * inside[..., None]), resolution, 1)
    except (OSError, ValueError, UnreadableImage) as error:
        name = "a mask" if isinstance(mask, bytes) else f"the mask {mask}"
        raise UserError(f"{name} of an evaluation set cannot be read ({error}): give a PNG or the like") from None
    side = resolution // grid
    return pixels.reshape(grid, side, grid, side).mean(axis=(1, 3)).reshape(-1) > 127


def _encoded(images: ImageArray, model: TrainedModel) -> Int[np.ndarray, "n codes"]:
    chunks = [images[start : start + _IMAGES] for start in range(0, len(images), _IMAGES)]
    return np.concatenate([model.image_tokenizer.encode(chunk, min(_IMAGES, len(images))) for chunk in chunks])


def _check_task(name: str, results: Sequence[Result], tasks: tuple[str, ...], what: str) -> None:
    for result in results:
        if result.request.task not in tasks:
            raise UserError(f"config.evaluate.sets.{name} asks for {result.request.task}, and a metric needs {what}")
