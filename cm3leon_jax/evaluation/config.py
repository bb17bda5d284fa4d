"""The config of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cm3leon_jax.config_part import Part, require
from cm3leon_jax.ranges import NonNegativeInt, PositiveInt


def _default_metrics() -> dict[str, Mapping[str, Any]]:
    return {"loss": {"type": "loss"}, "reconstruction": {"type": "reconstruction"}}


@dataclass(frozen=True)
class EvaluateConfig(Part):
    """The metrics of `cm3leon evaluate`, and the held-out documents and prompts they are measured on."""

    # Metrics by a name of your choice: `type` is an entry of the registry in `evaluation/metrics.py`, the rest are
    # that metric's options, as in {"loss": {"type": "loss", "num_sequences": 64}}.
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=_default_metrics)
    # Evaluation sets by a name of your choice, which metrics take as their option `set`: `type` is an entry of the
    # registry in `evaluation/registry.py`, `samples_per_prompt` and `sampling` are as below and in `config.sampling`,
    # `ids` and `count` select items, the rest are the options of the type, as in
    # {"coco": {"type": "karpathy", "file": ..., "images": ...}}.
    sets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    # Held-out documents that are captioned, infilled and shown; 0 means all.
    num_documents: NonNegativeInt = 256
    # Prompts of text-to-image (empty: the first held-out texts), and images per prompt.
    prompts: tuple[str, ...] = ()
    samples_per_prompt: PositiveInt = 4
    # Most documents of the corpus retrieved for each prompt, by its text.
    num_retrieved: NonNegativeInt = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for part, what in (("metrics", "metric"), ("sets", "evaluation set")):
            for name, options in getattr(self, part).items():
                require(
                    isinstance(options.get("type"), str),
                    f"evaluate.{part}.{name} names no {what}: set its type, as in dict(type={name!r})",
                )
