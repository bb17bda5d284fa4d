"""Qwen2 and Qwen2.5 (arXiv 2407.10671), Llama with biases of queries, keys and values: read and written."""

from __future__ import annotations

from typing import Any

from cm3leon_jax.huggingface.decoders import DecoderFamily
from cm3leon_jax.huggingface.families import llama
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.models.config import ModelConfig


def attention_window(stored: StoredConfig) -> int | None:
    """How far back a token sees in some layers, itself included; None: everything."""
    if not stored.flag("use_sliding_window", False):
        return None
    return None if stored.values.get("sliding_window", 4096) is None else stored.size("sliding_window", 4096)


def _read_config(stored: StoredConfig) -> dict[str, Any]:
    return llama.read_config(stored) | {"query_key_value_biases": True}


def _write_config(config: ModelConfig, vocabulary_size: int, sequence_length: int, dtype: str) -> dict[str, Any]:
    return llama.write_config("qwen2", config, vocabulary_size, sequence_length, dtype) | {
        "architectures": ["Qwen2ForCausalLM"],
        "use_sliding_window": False,
    }


FAMILY = DecoderFamily(
    "qwen2", llama.TENSORS, _read_config, _write_config, llama.IGNORED, attention_window=attention_window
)
