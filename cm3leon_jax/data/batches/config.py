"""The objective and the shape of a training batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cm3leon_jax.config_part import AFTER_IMPORT, Part, require
from cm3leon_jax.ranges import Fraction, OneOf, Positive, PositiveInt, Seed


@dataclass(frozen=True)
class ObjectiveConfig(Part):
    """The CM3 objective (arXiv 2201.07520, section 2; arXiv 2309.02591, section 2.2)."""

    # "poisson": the number of masks is Poisson(mean_spans); "fixed": exactly mean_spans; "none": plain left to right.
    span_count: Annotated[str, OneOf("poisson", "fixed", "none")] = "poisson"
    mean_spans: Positive = 1.0
    max_spans: PositiveInt = 16
    # Fraction of the masked documents in which whole segments (a caption, an image) are masked instead of random spans.
    # Random spans almost never cover a whole caption (1 in 20,000), so without this fraction neither the unconditional
    # branch of guidance (`<mask:0> <break> image`) nor captioning by infill would be trained. At a half, a captioned
    # image loses its whole caption 16% of the time, about the drop rate of classifier-free guidance elsewhere, and
    # the other half keeps training infill inside images.
    segment_mask_prob: Fraction = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.span_count != "fixed" or self.mean_spans.is_integer(),
            f"objective.mean_spans is {self.mean_spans}: a whole number where span_count is 'fixed'",
        )


@dataclass(frozen=True)
class BatchConfig(Part):
    # Sequences over all devices, and tokens in each.
    batch_size: Annotated[PositiveInt, AFTER_IMPORT] = 2048
    sequence_length: PositiveInt = 4096
    # "best_fit": whole documents, attention stays inside each; "concat_then_split": the paper's way, documents end to
    # end cut anywhere, attention over all of the row.
    packing: Annotated[str, OneOf("best_fit", "concat_then_split"), AFTER_IMPORT] = "best_fit"
    seed: Annotated[Seed, AFTER_IMPORT] = 0
