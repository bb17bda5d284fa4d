"""What a model generates for an evaluation set, beside what is true: made once, whichever metrics look at it."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image

from cm3leon_jax.config import Config
from cm3leon_jax.config_values import build
from cm3leon_jax.data.templates import TEMPLATES
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.image_arrays import CodedImages, ImageArray, ImageFiles
from cm3leon_jax.evaluation.sets.base import Item
from cm3leon_jax.evaluation.sets.configured import ConfiguredSet
from cm3leon_jax.generation.config import SamplingConfig
from cm3leon_jax.generation.generate import Result, generate, open_retriever, retrieve
from cm3leon_jax.generation.load import TrainedModel
from cm3leon_jax.generation.requests import ImageSource, Request, read_image
from cm3leon_jax.images import UnreadableImage, decode_image, encode_png
from cm3leon_jax.squaring import Squaring

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


def complete(asked: ConfiguredSet, model: TrainedModel, config: Config) -> list[Result]:
    """Generates for every item of a set; all processes of a run call this.

    Texts are the likeliest, by greedy decoding, unless the set's options say otherwise.

    Raises:
      UserError: names the first item that has no completion.
    """
    requests, where = asked.requests, f"config.evaluate.sets.{asked.name}.sampling"
    values = dataclasses.asdict(config.sampling) | ({"temperature": 0.0} if _asks_for_text(requests[0]) else {})
    sampling = build(SamplingConfig, {**values, **asked.options.sampling}, where)
    if sampling.scorer == "clip" and model.clip is None:
        raise UserError(f"{where}: set scorer in config.sampling, which loads the encoder")
    neighbors = None
    if count := config.evaluate.num_retrieved:
        retriever = open_retriever(config, model.vocabulary, count)
        neighbors = retrieve(requests, retriever, count, config)
    samples = asked.options.samples_per_prompt if requests[0].task == "text_to_image" else 1
    results, failures = generate(requests, model, sampling, samples, neighbors)
    if failures:
        first = failures[0]
        more = f" (and {len(failures) - 1:,} more items)" if len(failures) > 1 else ""
        raise asked.error(asked.items[first.line - 1], f"{first.error}{more}")
    return sorted(results, key=lambda result: result.request.number)


def _asks_for_text(request: Request) -> bool:
    if request.task != "instruction":
        return request.task in ("caption", "vqa")
    template = TEMPLATES.load(request.template)
    return template.targets[-1] not in template.images


def sampled(items: Sequence[Item], results: Sequence[Result], model: TrainedModel) -> SampledImages:
    """The images of a set, all samples of a prompt after each other."""
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


def texts(items: Sequence[Item], results: Sequence[Result]) -> ComparedTexts:
    """The best caption or answer of each item."""
    return ComparedTexts(
        [item.id for item in items],
        [result.candidates[0].text or "" for result in results],
        [item.references for item in items],
    )


def edits(items: Sequence[Item], results: Sequence[Result], model: TrainedModel) -> ComparedEdits:
    """The best edited image of each item; all have a target."""
    config = model.image_tokenizer.config
    sources = [result.request.image for result in results if result.request.image is not None]
    source_files = ImageFiles(sources, config.resolution, config.in_channels, model.squaring)
    targets = [item.image for item in items if item.image is not None]
    target_files = ImageFiles(targets, config.resolution, config.in_channels, model.squaring)
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
        masks=np.stack([mask_of_codes(item.mask, config.resolution, config.grid, model.squaring) for item in items]),
        target_captions=[item.references[0] if item.references else "" for item in items],
    )


def mask_of_codes(
    mask: ImageSource | None, resolution: int, grid: int, squaring: Squaring
) -> Bool[np.ndarray, "codes"]:
    """Which codes lie mostly in the transparent or, without transparency, white part of a mask; none without a mask."""
    if mask is None:
        return np.zeros(grid * grid, bool)
    try:
        with Image.open(io.BytesIO(read_image(mask))) as file:
            has_alpha = file.has_transparency_data
            values = np.asarray(file.convert("RGBA").getchannel("A") if has_alpha else file.convert("L"))
        inside = (values < 128) if has_alpha else (values >= 128)
        # The same square as that of the image it belongs to; the padding is in no mask.
        black = dataclasses.replace(squaring, background="black")
        pixels = decode_image(encode_png(np.uint8(255) * inside[..., None]), resolution, 1, black)
    except (OSError, ValueError, UnreadableImage) as error:
        name = "a mask" if isinstance(mask, bytes) else f"the mask {mask}"
        raise UserError(f"{name} of an evaluation set cannot be read ({error}): give a PNG or the like") from None
    side = resolution // grid
    return pixels.reshape(grid, side, grid, side).mean(axis=(1, 3)).reshape(-1) > 127


def _encoded(images: ImageArray, model: TrainedModel) -> Int[np.ndarray, "n codes"]:
    chunks = [images[start : start + _IMAGES] for start in range(0, len(images), _IMAGES)]
    return np.concatenate([model.image_tokenizer.encode(chunk, min(_IMAGES, len(images))) for chunk in chunks])
