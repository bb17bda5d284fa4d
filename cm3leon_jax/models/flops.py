"""FLOPs of a model by formula (as in PaLM, arXiv 2204.02311, appendix B, but for the causal half).

A matmul of a token with a matrix of n numbers takes 2n FLOPs forward and 4n backward. Attention takes 4 S H Dh for S
keys of H heads of size Dh, and a causal mask lets through half of them: 2 H Dh S per token and layer forward, 6 H Dh S
forward and backward. Packed documents see fewer keys; by convention that is not subtracted.
"""

from __future__ import annotations

from cm3leon_jax.models.config import ModelConfig

FLOP_RULE = (
    "6 FLOPs per token for each parameter in a matmul (the LM head too, embedding lookups not), and "
    "6 x layers x heads x head size x sequence length for causal attention; recomputation counts nothing"
)


def layer_matrices(config: ModelConfig) -> dict[str, int]:
    """The number of parameters in each matrix of one layer."""
    D, H, K, Dh, F = config.model_dim, config.num_heads, config.key_value_heads, config.head_dim, config.hidden_dim
    attention = {"query": D * H * Dh, "key": D * K * Dh, "value": D * K * Dh, "output": H * Dh * D}
    return attention | {"up": D * F, "down": F * D} | ({"gate": D * F} if config.gated else {})


def output_matrices(config: ModelConfig, vocabulary_size: int) -> int:
    """The number of parameters in the matrices outside of the layers: the LM head, and projections of embeddings."""
    D, E = config.model_dim, config.token_dim
    return vocabulary_size * E + (2 * D * E if E != D else 0)


def attention_flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """Forward FLOPs per token of causal attention in one layer."""
    return 2.0 * config.num_heads * config.head_dim * sequence_length


def flops_per_token(config: ModelConfig, vocabulary_size: int, sequence_length: int) -> float:
    """Training FLOPs per token, forward and backward, by `FLOP_RULE`."""
    layer = 6.0 * sum(layer_matrices(config).values()) + 3.0 * attention_flops_per_token(config, sequence_length)
    return config.num_layers * layer + 6.0 * output_matrices(config, vocabulary_size)


def recomputed_flops_per_token(config: ModelConfig, sequence_length: int, has_kernel: bool) -> float:
    """FLOPs per token that the backward pass spends on what it did not keep, by `config.remat`.

    The last matmul of a layer is never computed again: its output is the next layer's input, which is kept.

    Args:
      has_kernel: whether attention is fused, so that no logits are kept: its backward pass computes them again, and of
        its forward pass it needs sums that no policy keeps.
    """
    matrices, attention = layer_matrices(config), attention_flops_per_token(config, sequence_length)
    again = {
        "full": 2.0 * (sum(matrices.values()) - matrices["down"]) + attention,
        # Queries, keys, values and the output of attention are kept; its weights are not.
        "save_attention": 2.0 * (matrices["output"] + matrices["up"] + matrices.get("gate", 0))
        + (attention if has_kernel else attention / 2),
        "save_dots": attention,
        "none": 0.0,
    }
    return config.num_layers * (again[config.remat] + (attention / 2 if has_kernel else 0))
