"""FLOPs by formula, against sums made by hand."""

from dataclasses import replace

import pytest

from cm3leon_jax.models.config import ModelConfig
from cm3leon_jax.models.flops import flops_per_token, layer_matrices, output_matrices, recomputed_flops_per_token
from cm3leon_jax.models.transformer import parameter_count

SEVEN_BILLION = ModelConfig(num_layers=32, model_dim=4096, num_heads=32)
V, S = 64_640, 4096


def test_a_step_of_the_7b_by_hand():
    # 12 D^2 a layer, and the output layer.
    matrices = 32 * 12 * 4096**2 + V * 4096
    by_hand = 2048 * 4096 * (6 * matrices + 6 * 32 * 4096 * S)
    assert 2048 * 4096 * flops_per_token(SEVEN_BILLION, V, S) == pytest.approx(by_hand)
    assert by_hand == pytest.approx(3.648e17, rel=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 2},
        {"head_size": 6},
        {"gated": True, "ffn_dim": 96},
        {"embedding_dim": 16},
        {"positions": "rotary"},
    ],
)
def test_every_matrix_of_the_model_is_counted(changes):
    config = replace(ModelConfig(num_layers=3, model_dim=32, num_heads=4, positions="rotary"), **changes)
    counted = 3 * sum(layer_matrices(config).values()) + output_matrices(config, 512)
    assert counted == parameter_count(config, 512, 16) - ("learned" in config.positions) * 16 * 32


def test_what_is_computed_again():
    again = {
        remat: recomputed_flops_per_token(replace(SEVEN_BILLION, remat=remat), S, has_kernel=False) / 32
        for remat in ("full", "save_attention", "save_dots", "none")
    }
    attention = 2 * 4096 * S
    # All products but the last of a layer, that is 8 of its 12 D^2.
    assert again["full"] == 2 * 8 * 4096**2 + attention
    assert again["save_attention"] == 2 * 5 * 4096**2 + attention / 2
    assert again["save_dots"] == attention
    assert again["none"] == 0
    with_kernel = recomputed_flops_per_token(replace(SEVEN_BILLION, remat="none"), S, has_kernel=True)
    assert with_kernel == 32 * attention / 2
