"""Janus' image tokenizer (arXiv 2410.13848, section 3.1: LlamaGen's VQ-16) as the folders of `transformers` have it.

`transformers` compares latents with the codebook as it is stored, and decodes unit vectors; Janus, and so this package,
does both with unit vectors.
"""

from __future__ import annotations

from typing import Any

from cm3leon_jax.huggingface.image_tokenizers.layout import ImageTokenizerLayout
from cm3leon_jax.huggingface.stored_config import StoredConfig


def _read_config(stored: StoredConfig) -> dict[str, Any]:
    part = stored.part("vq_config")
    part.refuse_if("double_latent", part.flag("double_latent", False))
    multipliers = part.get("channel_multiplier", (1, 1, 2, 2, 4))
    if not isinstance(multipliers, list | tuple):
        raise part.error("channel_multiplier", multipliers, "a list of numbers, one per level")
    # Despite its name: codes along one side.
    return {"resolution": part.size("num_patches", 32) * 2 ** (len(multipliers) - 1)}


LAYOUT = ImageTokenizerLayout(
    "image tokenizer of Janus",
    # A level that is counted from the lowest resolution has something to double.
    sign="decoder.up.0.upsample.",
    prefixes=("model.vqmodel.", "vqmodel.", ""),
    decoder_from_lowest=True,
    unit_codes=True,
    filter="bicubic",
    kinds=("janus",),
    read_config=_read_config,
)
