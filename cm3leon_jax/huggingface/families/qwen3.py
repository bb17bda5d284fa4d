"""Qwen3 (arXiv 2505.09388), Llama with normalized queries and keys and heads of their own width: read and written."""

from __future__ import annotations

from typing import Any

from cm3leon_jax.huggingface.decoders import DecoderFamily
from cm3leon_jax.huggingface.families import llama, qwen2
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.huggingface.tensor_map import norm_maps
from cm3leon_jax.models.config import ModelConfig

_ATTENTION = "model.layers.{}.self_attn."
_NORMS = {"blocks.attention.query_norm": _ATTENTION + "q_norm", "blocks.attention.key_norm": _ATTENTION + "k_norm"}


def _read_config(stored: StoredConfig) -> dict[str, Any]:
    stored.refuse_if("attention_bias", stored.flag("attention_bias", False))
    return llama.read_config(stored.with_defaults({"head_dim": 128})) | {"query_key_norm": "rms"}


def _write_config(config: ModelConfig, vocabulary_size: int, sequence_length: int, dtype: str) -> dict[str, Any]:
    return llama.write_config("qwen3", config, vocabulary_size, sequence_length, dtype) | {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "use_sliding_window": False,
    }


FAMILY = DecoderFamily(
    "qwen3",
    llama.TENSORS | norm_maps(_NORMS, has_bias=False),
    _read_config,
    _write_config,
    llama.IGNORED,
    attention_window=qwen2.attention_window,
)
