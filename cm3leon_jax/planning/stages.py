"""Device-hours of the stages before training, from FLOPs by formula at published peaks: bounds alone.

The constants of `expected.py` are fitted on training steps of transformers in bfloat16; none is known for these stages,
whose arrays are float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cm3leon_jax.accelerators import Accelerator
from cm3leon_jax.config import Config
from cm3leon_jax.encoders.config import EncoderConfig
from cm3leon_jax.image_tokenizers.config import ImageTokenizerConfig
from cm3leon_jax.planning.topology import Topology
from cm3leon_jax.planning.units import amount
from cm3leon_jax.registry import load_attribute

# Tensor cores take float32 at half the rate of bfloat16 (as TF32); TPUs round it to bfloat16 by themselves.
_GPU_FLOAT32 = 0.5
# Every document is encoded once as it is and once as a query, with parts left out.
_ENCODINGS_PER_DOCUMENT = 2


@dataclass(frozen=True)
class Stage:
    """One command before `train`, and what it computes at least."""

    command: str
    flops: float
    # Of all devices together, at their peak.
    device_hours: float
    # On all devices of the pod that can take part.
    hours: float
    # What is computed, for people.
    what: str


def find_stages(config: Config, pod: Topology, num_images: int | None) -> list[Stage]:
    """Computes the stages of a config whose families are known, `prepare` only for a number of images.

    A document is taken to be one image with its text.
    """
    tokenizer, encoder = config.image_tokenizer, config.encoder
    stages = []
    of_tokenizer = _flops(tokenizer, "image tokenizer")
    of_encoder = _flops(encoder, "encoder") if config.retrieval.enabled else None
    if of_tokenizer is not None:
        stages.append(_training("train-image-tokenizer", of_tokenizer[1], tokenizer.training, "images", pod))
    if of_encoder is not None:
        stages.append(_training("train-encoder", of_encoder[1], encoder.training, "pairs", pod))
    if num_images is not None and of_tokenizer is not None:
        stages.append(_prepare(of_tokenizer[0], of_encoder[0] if of_encoder else 0.0, num_images, pod))
    return stages


def _flops(part: ImageTokenizerConfig | EncoderConfig, what: str) -> tuple[float, float] | None:
    """FLOPs of encoding one image or pair, and of the training; None where the family does not say."""
    if not part.flops:
        return None
    found: Callable[[Any], tuple[float, float]] = load_attribute(part.flops, f"the FLOPs of the {what}")
    return found(part)


def _training(command: str, flops: float, training: Any, unit: str, pod: Topology) -> Stage:
    what = f"{training.num_steps:,} steps of {training.batch_size:,} {unit}"
    return _stage(command, flops, what, min(pod.num_devices, training.batch_size), pod)


def _prepare(of_image: float, of_pair: float, num_images: int, pod: Topology) -> Stage:
    of_document = of_image + _ENCODINGS_PER_DOCUMENT * of_pair
    what = f"{amount(num_images)} images: {of_image:.3g} FLOPs each for codes"
    if of_pair:
        what += f", {_ENCODINGS_PER_DOCUMENT * of_pair:.3g} for vectors; without the search for neighbors"
    return _stage("prepare", num_images * of_document, what, pod.num_devices, pod)


def _stage(command: str, flops: float, what: str, num_devices: int, pod: Topology) -> Stage:
    device_hours = flops / _float32_flops(pod.accelerator) / 3600
    return Stage(command, flops, device_hours, device_hours / num_devices, what)


def _float32_flops(chip: Accelerator) -> float:
    """The peak of matmuls of float32 arrays at JAX's default precision."""
    return chip.bfloat16_flops * (1.0 if chip.is_tpu else _GPU_FLOAT32)


def lines(stages: list[Stage]) -> list[str]:
    """Formats the stages as text."""
    if not stages:
        return []
    text = [
        "\nother stages, at published peaks without any stall: bounds, nothing of the kind has been calibrated",
        f"  {'':<22} {'device-hours':>12} {'hours':>8}",
    ]
    for stage in stages:
        text.append(
            f"  {stage.command:<22} {amount(stage.device_hours):>12} {stage.hours:>8.3g}   {stage.flops:.3g} FLOPs"
        )
        text.append(f"    {stage.what}")
    return text


def as_json(stages: list[Stage]) -> list[dict[str, Any]]:
    """Collects the stages for programs."""
    return [dataclasses.asdict(stage) for stage in stages]
