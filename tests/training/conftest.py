"""A small run over the corpus of all tests."""

import pytest

from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.config import BatchConfig
from cm3leon_jax.training.config import OptimizerConfig, TrainConfig

B, L = 8, 96


@pytest.fixture
def config(tiny_model, tiny_images) -> Config:
    return Config(
        image_tokenizer=tiny_images,
        model=tiny_model,
        batch=BatchConfig(batch_size=B, sequence_length=L),
        optimizer=OptimizerConfig(peak_learning_rate=1e-2, warmup_steps=2),
        train=TrainConfig(num_tokens=10.0 * B * L),
    )
