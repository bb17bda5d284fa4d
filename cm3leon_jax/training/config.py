"""The optimizer, the length of a run, what it leaves behind, and what it does about steps that would harm it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from cm3leon_jax.config_part import AFTER_IMPORT, AT_RESUME, Part, require
from cm3leon_jax.paths import OptionalPath
from cm3leon_jax.ranges import (
    Decay,
    Fraction,
    NonNegative,
    NonNegativeInt,
    OneOf,
    Positive,
    PositiveInt,
    Range,
    Seed,
)

# Values of the training of an image tokenizer or encoder that may change at a resume.
FREE_VALUES = tuple(f"values.{name}" for name in ("num_steps", "log_every", "save_every"))


@dataclass(frozen=True)
class OptimizerConfig(Part):
    """AdamW with warm-up and linear decay (the paper names rate and warm-up; the rest is OPT's, arXiv 2205.01068)."""

    # "muon" (K. Jordan et al., 2024; arXiv 2502.16982) makes the updates of the layers' matrices orthogonal, as large
    # as AdamW's at the same rate; embeddings, biases and norms keep AdamW.
    algorithm: Annotated[str, OneOf("adamw", "muon")] = "adamw"
    muon_momentum: Decay = 0.95
    peak_learning_rate: NonNegative = 6e-4
    warmup_steps: NonNegativeInt = 1500
    # The last step's rate, as a fraction of the peak.
    final_learning_rate_fraction: Fraction = 0.1
    # The last part of the steps, over which the rate falls; before, it stays at its peak (warmup-stable-decay, arXiv
    # 2404.06395, section 4), so that a checkpoint of that time can go on to any later end. 1: from the warm-up on.
    decay_fraction: Fraction = 1.0
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    epsilon: Positive = 1e-8
    weight_decay: NonNegative = 0.1
    # A gradient of a larger norm is scaled down to this one; 0 leaves all gradients as they are.
    clip_norm: NonNegative = 1.0
    # "PATTERN=FACTOR", such as "blocks.*=0.1", multiplies the learning rate of the parameters whose names match; the
    # first that matches holds, and 1 where none does. 0 freezes. Rows of token_embedding and output_embedding have
    # names by what their tokens are: "token_embedding.text", ".image" and ".special".
    learning_rate_factors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rate_patterns  # noqa: B018

    @property
    def rate_patterns(self) -> tuple[tuple[str, float], ...]:
        """The patterns of names and their factors."""
        return tuple(map(_rate_pattern, self.learning_rate_factors))


def _rate_pattern(text: str) -> tuple[str, float]:
    pattern, _, number = text.rpartition("=")
    try:
        factor = float(number)
    except ValueError:
        factor = math.nan
    require(
        bool(pattern) and 0 <= factor < math.inf,
        f"optimizer.learning_rate_factors has {text!r}: write PATTERN=FACTOR, such as blocks.*=0.1, with a factor of "
        "at least 0",
    )
    return pattern, factor


@dataclass(frozen=True)
class TrainConfig(Part):
    """How long to train, and what to leave behind."""

    # The run ends at the step that takes it to this many tokens (batch_size * sequence_length per step). At a resume,
    # finished or not, it may change to anything that is not passed yet: from there on the learning rate is that of a
    # run which always had this length, so it jumps up for a later end and down for a nearer one.
    num_tokens: Annotated[float, Range(at_least=1), AT_RESUME] = 1.4e12
    # Folder of another run (its --workdir) whose newest parameters a new run starts from, with a fresh optimizer and
    # schedule, at the beginning of the data. Only the model's shape must be the same: tokens that both vocabularies
    # have keep their rows, other tokens and further positions start fresh. A run's own checkpoints have precedence
    # over this, and this over an import.
    init_from: Annotated[OptionalPath, AT_RESUME] = ""
    # Parts of a batch that are computed one after the other, with their gradients summed: less memory, the same step.
    num_microbatches: Annotated[PositiveInt, AT_RESUME] = 1
    # Parts of a microbatch whose logits are in memory one after the other; 0: as few as fit into an eighth of a
    # device's memory.
    loss_chunks: Annotated[NonNegativeInt, AT_RESUME] = 0
    # Weight of the squared log of the softmax's denominator, which keeps logits from drifting (PaLM, arXiv 2204.02311,
    # section 5, has 1e-4).
    z_loss: Annotated[NonNegative, AFTER_IMPORT] = 0.0
    # Where compiled programs are kept, so that a restart need not compile again; "" keeps none.
    compilation_cache: Annotated[OptionalPath, AT_RESUME] = "{workdir}/compilation_cache"
    log_every: Annotated[PositiveInt, AT_RESUME] = 10
    save_every: Annotated[PositiveInt, AT_RESUME] = 1000
    keep_checkpoints: Annotated[PositiveInt, AT_RESUME] = 3
    # Steps between evaluations of the held-out loss, and between sample images for the first prompts of `evaluate` (or,
    # without any, the first held-out texts); 0: never.
    eval_every: Annotated[NonNegativeInt, AT_RESUME] = 1000
    eval_batches: Annotated[PositiveInt, AT_RESUME] = 8
    sample_every: Annotated[NonNegativeInt, AT_RESUME] = 1000
    # Steps between measurements of all metrics of `evaluate`; 0: never. They generate what they measure.
    metrics_every: Annotated[NonNegativeInt, AT_RESUME] = 0
    # Where measurements of this and the other trainings go: "jsonl" (metrics.jsonl, which reports are made from),
    # "tensorboard", "wandb", or what a module of `config.modules` adds to the registry.
    loggers: Annotated[tuple[str, ...], AT_RESUME] = ("jsonl", "tensorboard")
    seed: Annotated[Seed, AFTER_IMPORT] = 0


@dataclass(frozen=True)
class RecoveryConfig(Part):
    """What a run does about a step that would harm it: a loss or gradient norm that is not finite, or a spike."""

    # A step whose gradient norm is this many times the running mean of those before is skipped; 0: only if it is not
    # finite.
    spike_factor: Annotated[float, Range(above=1, other=0)] = 10.0
    # After this many skipped steps in a row the run is rolled back to its last checkpoint before them, and skips their
    # batches.
    max_skipped: PositiveInt = 10
    # Rollbacks before the run ends for good.
    max_rollbacks: NonNegativeInt = 3
