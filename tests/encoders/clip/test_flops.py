"""FLOPs by formula, beside what XLA counts in the compiled step."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from cm3leon_jax.encoders.clip import flops
from cm3leon_jax.encoders.clip.config import ClipConfig, ClipTrainingConfig
from cm3leon_jax.encoders.clip.model import ClipArchitecture
from cm3leon_jax.encoders.clip.training import ClipTrainStep
from cm3leon_jax.models.config import MeshConfig
from cm3leon_jax.models.sharding import make_mesh

# One layer: XLA counts the body of a loop once.
CONFIG = ClipConfig(
    resolution=64,
    patch_size=16,
    image_layers=1,
    image_dim=128,
    image_heads=4,
    text_layers=1,
    text_dim=96,
    text_heads=4,
    max_text_tokens=24,
    embedding_dim=64,
    training=ClipTrainingConfig(batch_size=16, num_steps=10),
)


def test_a_compiled_step():
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    step = ClipTrainStep(ClipArchitecture.of(CONFIG, 128), CONFIG.training, None, mesh)
    texts, images = jax.ShapeDtypeStruct((16, 24), np.int32), jax.ShapeDtypeStruct((16, 64, 64, 3), np.uint8)
    found = step.step.lower(step.abstract_state, texts, images).compile().cost_analysis()["flops"]
    assert 16 * flops.step_flops(CONFIG) == pytest.approx(found, rel=0.05)
    assert flops.clip_flops(CONFIG)[1] == 10 * 16 * flops.step_flops(CONFIG)


def test_a_pair_by_hand():
    text = 2 * 12 * 96**2 * 24 + 4 * 24**2 * 96
    image = 2 * 12 * 128**2 * 17 + 4 * 17**2 * 128
    ends = 2 * 64 * 64 * 3 * 128 + 2 * (96 + 128) * 64
    assert flops.clip_flops(CONFIG)[0] == text + image + ends


def test_layers_count_each():
    deep = replace(CONFIG, image_layers=3, text_layers=3)
    assert sum(flops.layers_flops(deep)) == 3 * sum(flops.layers_flops(CONFIG))
