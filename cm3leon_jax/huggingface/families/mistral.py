"""Mistral (arXiv 2310.06825), Llama with a sliding window that rows may not outgrow: read and written."""

from __future__ import annotations

from typing import Any

from cm3leon_jax.huggingface.decoders import DecoderFamily
from cm3leon_jax.huggingface.families import llama
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.models.config import ModelConfig


def _write_config(config: ModelConfig, vocabulary_size: int, sequence_length: int, dtype: str) -> dict[str, Any]:
    return llama.write_config("mistral", config, vocabulary_size, sequence_length, dtype) | {
        "architectures": ["MistralForCausalLM"],
        "sliding_window": None,
    }


def _attention_window(stored: StoredConfig) -> int | None:
    # Where the field is absent transformers has a window; null is none.
    if "sliding_window" in stored.values and stored.values["sliding_window"] is None:
        return None
    return stored.size("sliding_window", 4096)


FAMILY = DecoderFamily(
    "mistral", llama.TENSORS, llama.read_config, _write_config, llama.IGNORED, attention_window=_attention_window
)
