"""The objective and the shape of a training batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from cm3leon_jax.config_part import AFTER_IMPORT, Part, require
from cm3leon_jax.ranges import Fraction, NonNegative, OneOf, Positive, PositiveInt, Range, Seed


@dataclass(frozen=True)
class LossWeightsConfig(Part):
    """What a token counts in the loss, by its role; all ones: the whole sequence, as in the paper (section 4).

    With `context` and `instruction` 0 the loss is on what the model has to give alone (arXiv 2405.09818, section 2.3).
    The weight of a token is that of its role times that of its modality.
    """

    # Given images, and whatever stands between segments.
    context: NonNegative = 1.0
    instruction: NonNegative = 1.0
    # Retrieved documents.
    retrieved: NonNegative = 1.0
    # Codes of an edited image that differ from the image before; other codes and texts that are to be given count 1.
    changed: NonNegative = 1.0
    text: NonNegative = 1.0
    image: NonNegative = 1.0

    @classmethod
    def name_in_config(cls) -> str:
        return "objective.weights"


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
    # Fraction of the instructions of which one condition, or all, is dropped (`Template.drops`), for guidance; they
    # have no masks beside.
    condition_drop_prob: Fraction = 0.0
    # Fraction of the other instructions in which exactly the targets are masked that something follows, as a request
    # asks for them: the answer before an image. What is left is masked as any document.
    target_mask_prob: Fraction = 0.0
    weights: LossWeightsConfig = field(default_factory=LossWeightsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.span_count != "fixed" or self.mean_spans.is_integer(),
            f"objective.mean_spans is {self.mean_spans}: a whole number where span_count is 'fixed'",
        )


@dataclass(frozen=True)
class TaskSamplingConfig(Part):
    """How often documents of each task come, from the mixture's rates and the tasks' sizes; as it is: at the rates."""

    # A task's rate is multiplied by its number of documents to this power: with rates that are all equal, 1 samples
    # tasks by their size, 0.5 by the root of it. None: the rates are taken as they are.
    alpha: Fraction | None = None
    # Bounds of how often a document comes, as a multiple of how often it would come if all documents came equally
    # often; the paper's are 3 and 0.3 (arXiv 2309.02591, section 4). None: no bound.
    max_oversampling: Annotated[float, Range(at_least=1)] | None = None
    min_undersampling: Fraction | None = None

    @classmethod
    def name_in_config(cls) -> str:
        return "batch.task_sampling"


@dataclass(frozen=True)
class BatchConfig(Part):
    # Sequences over all devices, and tokens in each.
    batch_size: Annotated[PositiveInt, AFTER_IMPORT] = 2048
    sequence_length: PositiveInt = 4096
    # "best_fit": whole documents, attention stays inside each; "concat_then_split": the paper's way, documents end to
    # end cut anywhere, attention over all of the row.
    packing: Annotated[str, OneOf("best_fit", "concat_then_split"), AFTER_IMPORT] = "best_fit"
    seed: Annotated[Seed, AFTER_IMPORT] = 0
    task_sampling: Annotated[TaskSamplingConfig, AFTER_IMPORT] = field(default_factory=TaskSamplingConfig)
