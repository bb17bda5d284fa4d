"""Llama 1 to 3 (arXiv 2302.13971, 2307.09288, 2407.21783) and those like it, such as SmolLM2: read and written."""

from __future__ import annotations

from typing import Any

from cm3leon_jax.huggingface.decoders import DecoderFamily, common_config
from cm3leon_jax.huggingface.rotary_fields import rotary_fields, stored_rotary_fields
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
    """The fields of ModelConfig; those that the families built on Llama share."""
    width, num_heads, ffn_dim = (
        stored.size(name) for name in ("hidden_size", "num_attention_heads", "intermediate_size")
    )
    num_key_value_heads = stored.size("num_key_value_heads", num_heads)
    head_size = stored.size("head_dim", width // num_heads)
    activation, biases = stored.text("hidden_act", "silu"), stored.flag("attention_bias", False)
    stored.refuse_if("hidden_act", activation not in _ACTIVATIONS)
    stored.refuse_if("mlp_bias", stored.flag("mlp_bias", False) != biases)
    return {
        "num_layers": stored.num_layers("num_hidden_layers"),
        "model_dim": width,
        "num_heads": num_heads,
        "num_key_value_heads": None if num_key_value_heads == num_heads else num_key_value_heads,
        "head_size": None if head_size * num_heads == width else head_size,
        "ffn_dim": None if ffn_dim == 4 * width else ffn_dim,
        "activation": _ACTIVATIONS[activation],
        "gated": True,
        "norm": "rms",
        "norm_scale_and_bias": True,
        "biases": biases,
        "positions": "rotary",
        **rotary_fields(stored),
        "layer_norm_epsilon": stored.number("rms_norm_eps", 1e-6),
        "tied_embeddings": stored.flag("tie_word_embeddings", False),
    }


def write_config(
    model_type: str, config: ModelConfig, vocabulary_size: int, sequence_length: int, dtype: str
) -> dict[str, Any]:
    """The fields of a config.json that the families built on Llama share."""
    activations = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    return common_config(model_type, config, vocabulary_size, sequence_length, dtype) | {
        "intermediate_size": config.hidden_dim,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": activations.get(config.activation, "silu"),
        "rms_norm_eps": config.layer_norm_epsilon,
        **stored_rotary_fields(config),
        "tie_word_embeddings": config.tied_embeddings,
        "initializer_range": config.init_std,
    }


def _write_config(config: ModelConfig, vocabulary_size: int, sequence_length: int, dtype: str) -> dict[str, Any]:
    return write_config("llama", config, vocabulary_size, sequence_length, dtype) | {
        "architectures": ["LlamaForCausalLM"],
        # transformers takes no width that does not divide into heads, whatever their width is.
        "head_dim": config.head_dim if config.model_dim % config.num_heads == 0 else None,
        "attention_bias": config.biases,
        "mlp_bias": config.biases,
    }


IGNORED = ("*.rotary_emb.inv_freq",)
FAMILY = DecoderFamily("llama", TENSORS, read_config, _write_config, IGNORED)
