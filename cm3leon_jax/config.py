"""Defines every value that a run can set: one typed dataclass per part, with its meaning and default.

A config file (`configs/NAME.py`) names only what differs from these defaults; `config_file.py` reads it. The defaults
are the paper's 350M model (arXiv 2309.02591, Table 3) with its 256-pixel image tokenizer. In a path, `{workdir}` stands
for the folder given with `--workdir`. The type of a number says its range (`ranges.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from cm3leon_jax.config_part import AFTER_IMPORT, AT_RESUME, require
from cm3leon_jax.data.batches.config import BatchConfig, ObjectiveConfig
from cm3leon_jax.data.corpus.config import CorpusConfig, VocabularyConfig
from cm3leon_jax.distributed_config import DistributedConfig
from cm3leon_jax.encoders.clip.config import ClipConfig
from cm3leon_jax.encoders.config import EncoderConfig
from cm3leon_jax.evaluation.config import EvaluateConfig
from cm3leon_jax.generation.config import SamplingConfig
from cm3leon_jax.image_tokenizers.config import ImageTokenizerConfig
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig
from cm3leon_jax.models.config import MeshConfig, ModelConfig
from cm3leon_jax.retrieval.config import RetrievalConfig
from cm3leon_jax.training.config import OptimizerConfig, RecoveryConfig, TrainConfig


@dataclass(frozen=True)
class Config:
    """A whole run."""

    # Modules that every command imports first; the config can name what they register.
    modules: Annotated[tuple[str, ...], AT_RESUME] = ()

    corpus: Annotated[CorpusConfig, AT_RESUME] = field(default_factory=CorpusConfig)
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    image_tokenizer: ImageTokenizerConfig = field(default_factory=VQGANConfig)
    encoder: Annotated[EncoderConfig, AT_RESUME] = field(default_factory=ClipConfig)
    retrieval: Annotated[RetrievalConfig, AT_RESUME] = field(default_factory=RetrievalConfig)
    objective: Annotated[ObjectiveConfig, AFTER_IMPORT] = field(default_factory=ObjectiveConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    mesh: Annotated[MeshConfig, AT_RESUME] = field(default_factory=MeshConfig)
    distributed: Annotated[DistributedConfig, AT_RESUME] = field(default_factory=DistributedConfig)
    recovery: Annotated[RecoveryConfig, AT_RESUME] = field(default_factory=RecoveryConfig)
    optimizer: Annotated[OptimizerConfig, AFTER_IMPORT] = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sampling: Annotated[SamplingConfig, AT_RESUME] = field(default_factory=SamplingConfig)
    evaluate: Annotated[EvaluateConfig, AT_RESUME] = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        require(
            self.batch.packing == "concat_then_split" or self.batch.sequence_length > self.image_tokenizer.image_length,
            f"batch.sequence_length {self.batch.sequence_length} holds no image of "
            f"{self.image_tokenizer.image_length} codes, and best-fit packing cuts none; make it longer",
        )
        require(
            self.corpus.annotations.resolution in (None, self.image_tokenizer.resolution),
            f"corpus.annotations.resolution {self.corpus.annotations.resolution} is not image_tokenizer.resolution "
            f"{self.image_tokenizer.resolution}: boxes would be at other positions; set it to that",
        )
        # A document and its neighbors, each an image, at least one text token and a break, after one `</s>`.
        least = (self.retrieval.num_retrieved + 1) * (self.image_tokenizer.image_length + 2)
        require(
            not self.retrieval.enabled
            or self.batch.packing == "concat_then_split"
            or least <= self.batch.sequence_length,
            f"retrieval.num_retrieved {self.retrieval.num_retrieved} does not fit batch.sequence_length "
            f"{self.batch.sequence_length}: {self.retrieval.num_retrieved + 1} images of "
            f"{self.image_tokenizer.image_length} codes with their texts take at least {least}; lower the one or "
            "raise the other",
        )

    @property
    def num_steps(self) -> int:
        tokens_per_step = self.batch.batch_size * self.batch.sequence_length
        return max(1, round(self.train.num_tokens / tokens_per_step))
