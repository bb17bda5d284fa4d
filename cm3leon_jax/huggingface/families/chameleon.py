"""Chameleon (arXiv 2405.09818, section 2.3), Llama with normalized queries and keys: its decoder is read."""

from __future__ import annotations

from typing import Any

from cm3leon_jax.huggingface.decoders import DecoderFamily
from cm3leon_jax.huggingface.families import llama
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.huggingface.tensor_map import MATRIX, norm_maps

_ATTENTION = "model.layers.{}.self_attn."
_NORMS = {"blocks.attention.query_norm": _ATTENTION + "q_norm", "blocks.attention.key_norm": _ATTENTION + "k_norm"}


def _read_config(stored: StoredConfig) -> dict[str, Any]:
    stored.refuse_if("model_parallel_size", stored.size("model_parallel_size", 1) != 1)
    return llama.read_config(stored) | {
        "layer_norm_epsilon": stored.number("rms_norm_eps", 1e-5),
        "query_key_norm": "layer",
        "query_key_norm_per_head": True,
        # "Swin norm": on the sublayers' outputs.
        "norm_position": "output" if stored.flag("swin_norm", False) else "input",
    }


FAMILY = DecoderFamily(
    "chameleon",
    llama.TENSORS | norm_maps(_NORMS, MATRIX),
    _read_config,
    ignored=("model.vqmodel.*", "*.rotary_emb.inv_freq"),
)
