"""Llama (arXiv 2302.13971; grouped heads as in arXiv 2307.09288): read and written."""

from __future__ import annotations

from typing import Any

from cm3leon_jax.huggingface.decoders import DecoderFamily, common_config
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.huggingface.tensor_map import MATRIX, TRANSPOSED, TensorMap, attention_maps, linear_maps, norm_maps
from cm3leon_jax.models.config import ModelConfig

# Theirs, ours.
_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "relu": "relu", "gelu_pytorch_tanh": "gelu_tanh"}

_LAYER = "model.layers.{}."
TENSORS = {
    "token_embedding": TensorMap("model.embed_tokens.weight", MATRIX),
    "output_embedding": TensorMap("lm_head.weight", MATRIX),
    **norm_maps(
        {
            "final_norm": "model.norm",
            "blocks.attention_norm": _LAYER + "input_layernorm",
            "blocks.feed_forward_norm": _LAYER + "post_attention_layernorm",
        },
        has_bias=False,
    ),
    **attention_maps("blocks.attention", _LAYER + "self_attn", output="o_proj"),
    **linear_maps(
        TRANSPOSED, {f"blocks.feed_forward.{name}": f"{_LAYER}mlp.{name}_proj" for name in ("gate", "up", "down")}
    ),
}


def read_config(stored: StoredConfig) -> dict[str, Any]:
    """The fields of ModelConfig; those that Chameleon shares."""
    width, num_heads, ffn_dim = (
        stored.size(name) for name in ("hidden_size", "num_attention_heads", "intermediate_size")
    )
    num_key_value_heads = stored.size("num_key_value_heads", num_heads)
    activation, biases = stored.text("hidden_act", "silu"), stored.flag("attention_bias", False)
    stored.refuse_if("hidden_act", activation not in _ACTIVATIONS)
    stored.refuse_if("mlp_bias", stored.flag("mlp_bias", False) != biases)
    stored.refuse_if("head_dim", width != num_heads * stored.size("head_dim", width // num_heads))
    # Before transformers 5 the base stood by itself, beside `rope_scaling`.
    rope = stored.part("rope_scaling", "rope_parameters")
    rope.refuse_if("rope_type", rope.text("rope_type", rope.text("type", "default")) != "default")
    return {
        "num_layers": stored.num_layers("num_hidden_layers"),
        "model_dim": width,
        "num_heads": num_heads,
        "num_key_value_heads": None if num_key_value_heads == num_heads else num_key_value_heads,
        "ffn_dim": None if ffn_dim == 4 * width else ffn_dim,
        "activation": _ACTIVATIONS[activation],
        "gated": True,
        "norm": "rms",
        "norm_scale_and_bias": True,
        "biases": biases,
        "positions": "rotary",
        "rotary_base": rope.number("rope_theta", stored.number("rope_theta", 10_000.0)),
        "layer_norm_epsilon": stored.number("rms_norm_eps", 1e-6),
        "tied_embeddings": stored.flag("tie_word_embeddings", False),
    }


def _write_config(config: ModelConfig, vocabulary_size: int, sequence_length: int, dtype: str) -> dict[str, Any]:
    activations = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    return common_config("llama", config, vocabulary_size, sequence_length, dtype) | {
        "architectures": ["LlamaForCausalLM"],
        "intermediate_size": config.hidden_dim,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": activations.get(config.activation, "silu"),
        "attention_bias": config.biases,
        "mlp_bias": config.biases,
        "rms_norm_eps": config.layer_norm_epsilon,
        # Also where it was before transformers 5, and where engines look.
        "rope_theta": config.rotary_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base},
        "tie_word_embeddings": config.tied_embeddings,
        "initializer_range": config.init_std,
    }


FAMILY = DecoderFamily("llama", TENSORS, read_config, _write_config, ignored=("*.rotary_emb.inv_freq",))
