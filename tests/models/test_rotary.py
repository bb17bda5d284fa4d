"""Rotary positions: what scores depend on, and the frequencies of scaled wavelengths, against those of transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.models.config import ModelConfig
from cm3leon_jax.models.rotary import rotary_angles, rotate

PLAIN = ModelConfig(model_dim=16, num_heads=2, positions="rotary")
WITH_IMAGES = ModelConfig(
    model_dim=16, num_heads=2, positions="rotary", image_position_embedding=True, rotary_image_positions=True
)


def rotated_score(at: tuple[int, int], key_at: tuple[int, int], config: ModelConfig):
    """The product of a query and a key, each at a position and an image position."""
    rotated = []
    for seed, (position, image_position) in enumerate((at, key_at)):
        x = jax.random.normal(jax.random.key(seed), (1, 1, 2, 8))
        rotated.append(rotate(x, rotary_angles(jnp.array([[position]]), jnp.array([[image_position]]), config)))
    return jnp.einsum("BLHd,BLHd->H", *rotated)


def test_scores_depend_on_the_distance_alone():
    def score(query: int, key: int):
        return rotated_score((query, 7), (key, 3), PLAIN)

    np.testing.assert_allclose(score(9, 4), score(25, 20), atol=1e-4)
    assert jnp.abs(score(9, 4) - score(9, 5)).max() > 1e-2
    np.testing.assert_allclose(score(9, 4), rotated_score((9, 0), (4, 0), PLAIN))
    query, first = jax.random.normal(jax.random.key(0), (1, 1, 2, 8)), jnp.array([[0]])
    np.testing.assert_array_equal(rotate(query, rotary_angles(first, first, PLAIN)), query)


def test_with_images_scores_depend_on_the_distance_in_the_document_and_that_in_the_images():
    near = rotated_score((90, 12), (20, 11), WITH_IMAGES)
    np.testing.assert_allclose(near, rotated_score((80, 5), (10, 4), WITH_IMAGES), atol=1e-4)
    for other in ((90, 12), (20, 10)), ((91, 12), (20, 11)):
        assert jnp.abs(near - rotated_score(*other, WITH_IMAGES)).max() > 1e-2


@pytest.mark.parametrize(
    ("rope", "ours"),
    [
        (dict(rope_type="default"), dict()),
        (dict(rope_type="linear", factor=2.5), dict(rotary_scaling="linear", rotary_scaling_factor=2.5)),
        (
            dict(
                rope_type="llama3",
                factor=32.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=8192,
            ),
            dict(rotary_scaling="llama3", rotary_scaling_factor=32.0),
        ),
        (
            dict(
                rope_type="llama3",
                factor=8.0,
                low_freq_factor=2.0,
                high_freq_factor=3.0,
                original_max_position_embeddings=512,
            ),
            dict(
                rotary_scaling="llama3",
                rotary_scaling_factor=8.0,
                rotary_low_freq_factor=2.0,
                rotary_high_freq_factor=3.0,
                rotary_original_length=512,
            ),
        ),
    ],
    ids=["none", "linear", "llama3 as 3.2-1B", "llama3 with others"],
)
def test_frequencies_equal_those_of_transformers(rope, ours):
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    base = 500_000.0
    theirs = LlamaRotaryEmbedding(
        transformers.LlamaConfig(hidden_size=128, num_attention_heads=2, rope_parameters={"rope_theta": base, **rope})
    )
    config = ModelConfig(model_dim=128, num_heads=2, positions="rotary", rotary_base=base, **ours)
    angles = rotary_angles(jnp.array([[1]]), jnp.array([[0]]), config)
    np.testing.assert_allclose(angles[0, 0], theirs.inv_freq.numpy(), rtol=2e-6)


def test_unordered_limits_of_scaling_are_refused():
    with pytest.raises(UserError, match=r"model.rotary_low_freq_factor 4 is not below"):
        ModelConfig(rotary_low_freq_factor=4.0)
