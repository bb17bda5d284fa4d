"""OPT (arXiv 2205.01068), the paper's architecture: OPT-125M to 66B and Galactica are read, and models written."""

from __future__ import annotations

from typing import Any

from cm3leon_jax.huggingface.decoders import DecoderFamily, common_config
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.huggingface.tensor_map import MATRIX, TRANSPOSED, TensorMap, attention_maps, linear_maps, norm_maps
from cm3leon_jax.models.config import ModelConfig

# Theirs, ours. transformers has more names for the approximate function, of which published folders use two.
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_OTHER_NAMES = {"gelu_new": "gelu_pytorch_tanh", "gelu_python_tanh": "gelu_pytorch_tanh", "gelu_python": "gelu"}

_LAYER = "model.decoder.layers.{}."
_TENSORS = {
    "token_embedding": TensorMap("model.decoder.embed_tokens.weight", MATRIX),
    # It begins with two rows for padding.
    "position_embedding": TensorMap("model.decoder.embed_positions.weight", MATRIX, extra_rows=2),
    "project_in": TensorMap("model.decoder.project_in.weight", TRANSPOSED),
    "project_out": TensorMap("model.decoder.project_out.weight", TRANSPOSED),
    **norm_maps(
        {
            "final_norm": "model.decoder.final_layer_norm",
            "blocks.attention_norm": _LAYER + "self_attn_layer_norm",
            "blocks.feed_forward_norm": _LAYER + "final_layer_norm",
        }
    ),
    **attention_maps("blocks.attention", _LAYER + "self_attn"),
    **linear_maps(TRANSPOSED, {"blocks.feed_forward.up": _LAYER + "fc1", "blocks.feed_forward.down": _LAYER + "fc2"}),
}


def _read_config(stored: StoredConfig) -> dict[str, Any]:
    # Where a folder does not say, OPT's defaults hold.
    before = stored.flag("do_layer_norm_before", True)
    activation = stored.text("activation_function", "relu")
    activation = _OTHER_NAMES.get(activation, activation)
    stored.refuse_if("activation_function", activation not in _ACTIVATIONS)
    stored.refuse_if("tie_word_embeddings", not stored.flag("tie_word_embeddings", True))
    stored.refuse_if("_remove_final_layer_norm", before and stored.flag("_remove_final_layer_norm", False))
    width = stored.size("hidden_size")
    embedding_dim, ffn_dim = stored.size("word_embed_proj_dim", width), stored.size("ffn_dim")
    return {
        "num_layers": stored.num_layers("num_hidden_layers"),
        "model_dim": width,
        "num_heads": stored.size("num_attention_heads"),
        "ffn_dim": None if ffn_dim == 4 * width else ffn_dim,
        "activation": _ACTIVATIONS[activation],
        "biases": stored.flag("enable_bias", True),
        "norm_scale_and_bias": stored.flag("layer_norm_elementwise_affine", True),
        "norm_position": "input" if before else "sum",
        "embedding_dim": None if embedding_dim == width else embedding_dim,
    }


def _write_config(config: ModelConfig, vocabulary_size: int, sequence_length: int, dtype: str) -> dict[str, Any]:
    activations = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    return common_config("opt", config, vocabulary_size, sequence_length, dtype) | {
        "architectures": ["OPTForCausalLM"],
        "word_embed_proj_dim": config.token_dim,
        "ffn_dim": config.hidden_dim,
        "activation_function": activations.get(config.activation, "relu"),
        "enable_bias": config.biases,
        "layer_norm_elementwise_affine": config.norm_scale_and_bias,
        "do_layer_norm_before": config.norm_position == "input",
        "_remove_final_layer_norm": False,
        "tie_word_embeddings": True,
        "init_std": config.init_std,
        "dropout": 0.0,
        "layerdrop": 0.0,
    }


# Some folders store the LM head beside the embedding table to which it is tied.
FAMILY = DecoderFamily("opt", _TENSORS, _read_config, _write_config, ignored=("lm_head.weight", "model.lm_head.weight"))
