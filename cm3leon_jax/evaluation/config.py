"""What an evaluation measures."""

from __future__ import annotations

from dataclasses import dataclass

from cm3leon_jax.config_part import Part, one_of
from cm3leon_jax.ranges import NonNegativeInt, PositiveInt


@dataclass(frozen=True)
class EvaluateConfig(Part):
    """What `cm3leon evaluate` looks at, over the held-out split."""

    # Sequences of the held-out loss, and how many of them at a time.
    num_loss_sequences: PositiveInt = 512
    loss_batch_size: PositiveInt = 32
    # Documents that are captioned, infilled and shown; 0 means all.
    num_documents: NonNegativeInt = 256
    # Prompts from which images are drawn (none: the first held-out texts), and images a prompt.
    prompts: tuple[str, ...] = ()
    samples_per_prompt: PositiveInt = 4
    # Documents of the corpus put in front of each prompt, at most; they are found by its text.
    num_retrieved: NonNegativeInt = 0
    # "digits" also reads every drawn digit with a classifier trained on real ones; "" does not.
    classifier: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("evaluate", self, "classifier", "", "digits")
