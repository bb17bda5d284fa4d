"""The loss and perplexity of held-out documents."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from cm3leon_jax.data.batches.row_plan import open_retrieval
from cm3leon_jax.data.batches.source import BatchSource
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.models.sharding import check_batch_divides, process_local_rows
from cm3leon_jax.ranges import PositiveInt
from cm3leon_jax.training.eval_loss import eval_loss, make_eval_step


@dataclass(frozen=True)
class EvalLoss:
    """Loss under the training objective, in nats per token by modality, and its exponential."""

    num_sequences: PositiveInt = 512
    batch_size: PositiveInt = 32

    def __call__(self, evaluation: EvaluationContext) -> dict[str, float]:
        config, model, corpus = evaluation.config, evaluation.model, evaluation.corpus
        batch = dataclasses.replace(config.batch, batch_size=self.batch_size)
        check_batch_divides(batch.batch_size, model.mesh)
        source = BatchSource(
            corpus,
            model.vocabulary,
            config.objective,
            batch,
            config.corpus.held_out_split,
            rows=process_local_rows(batch.batch_size, model.mesh),
            retrieval=open_retrieval(corpus, config.retrieval, config.corpus.train_split),
        )
        eval_step = make_eval_step(
            config.model,
            model.vocabulary,
            config.batch.sequence_length,
            model.mesh,
            config.train.loss_chunks,
            config.image_tokenizer.image_length,
        )
        num_batches = -(-self.num_sequences // self.batch_size)
        losses = eval_loss(eval_step, model.parameters, source, num_batches, model.mesh)
        perplexities = {
            name.replace("loss", "perplexity"): float(np.exp(value)) for name, value in losses.items() if "loss" in name
        }
        return losses | perplexities
