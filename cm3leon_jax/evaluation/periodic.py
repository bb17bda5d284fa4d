"""The metrics of a run, measured while it trains."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

from jax.sharding import Mesh

from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.metrics import build_metrics, check_sets, measure
from cm3leon_jax.evaluation.sets.configured import build_sets
from cm3leon_jax.generation.load import TrainedModel, scoring_clip
from cm3leon_jax.generation.sampler import Sampler
from cm3leon_jax.image_tokenizers.base import load_image_tokenizer
from cm3leon_jax.models.transformer import abstract_model
from cm3leon_jax.vocabulary import Vocabulary


class PeriodicMetrics:
    """Measures the parameters of a step with the metrics of `config.evaluate`."""

    def __init__(self, config: Config, vocabulary: Vocabulary, corpus: PreparedCorpus, mesh: Mesh) -> None:
        """Opens all that the metrics need: what is missing shows before the first step."""
        self._config, self._corpus, self._mesh, self._vocabulary = config, corpus, mesh, vocabulary
        self._metrics, self._sets = build_metrics(config.evaluate.metrics), build_sets(config.evaluate)
        check_sets(self._metrics, self._sets)
        self._kept: dict[Hashable, Any] = {}
        self._image_tokenizer = load_image_tokenizer(config.image_tokenizer.path)
        self._clip = scoring_clip(config)
        length, image_length = config.batch.sequence_length, config.image_tokenizer.image_length
        self._graph, _ = abstract_model(config.model, vocabulary.size, length, image_length)
        self._sampler = Sampler(config.model, vocabulary, length, mesh, image_length)

    def __call__(self, step: int, parameters: Any) -> dict[str, float]:
        """Values by name; all processes of the run call this."""
        self._sampler.load(parameters)
        model = TrainedModel(
            step,
            self._graph,
            parameters,
            self._sampler,
            self._mesh,
            self._vocabulary,
            self._image_tokenizer,
            self._clip,
            self._config.corpus.squaring,
        )
        evaluation = EvaluationContext(self._config, model, self._corpus, self._sets, kept=self._kept)
        values = measure(self._metrics, evaluation)
        self._sampler.load(None)
        # The logged line has its own step, and no infinities.
        return {name: value for name, value in values.items() if name != "step" and math.isfinite(value)}
