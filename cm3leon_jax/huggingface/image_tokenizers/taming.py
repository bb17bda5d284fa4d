"""taming-transformers' VQModel (arXiv 2012.09841), whose names are ours; Chameleon's, Anole's and Lumina-mGPT's too."""

from __future__ import annotations

from typing import Any

from cm3leon_jax.huggingface.image_tokenizers.layout import ImageTokenizerLayout, LayoutWriter
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig


def _read_config(stored: StoredConfig) -> dict[str, Any]:
    """Chameleon's: its config.json has a part for the image tokenizer."""
    part = stored.part("vq_config")
    part.refuse_if("double_latent", part.flag("double_latent", part.flag("double_z", False)))
    part.refuse_if("attn_type", part.text("attn_type", "vanilla") != "vanilla")
    return {"resolution": part.size("resolution", 512)}


def _write_config(config: VQGANConfig, norm_groups: int) -> dict[str, Any]:
    """What `taming.models.vqgan.VQModel` is made from."""
    del norm_groups
    sizes = {
        "double_z": False,
        "z_channels": config.latent_channels,
        "resolution": config.resolution,
        "in_channels": config.in_channels,
        "out_ch": config.in_channels,
        "ch": config.base_channels,
        "ch_mult": list(config.channel_multipliers),
        "num_res_blocks": config.num_res_blocks,
        "attn_resolutions": list(config.attention_resolutions),
        "dropout": 0.0,
    }
    values = {"embed_dim": config.embedding_dim, "n_embed": config.codebook_size, "ddconfig": sizes}
    losses = {"lossconfig": {"target": "taming.modules.losses.DummyLoss"}}
    return {"model": {"target": "taming.models.vqgan.VQModel", "params": values | losses}}


LAYOUT = ImageTokenizerLayout(
    "VQModel of taming-transformers",
    sign="encoder.down.0.block.0.",
    prefixes=("", "model.vqmodel.", "vqmodel.", "first_stage_model."),
    # The losses that it was trained with.
    ignored=("loss.*",),
    kinds=("chameleon",),
    read_config=_read_config,
    writer=LayoutWriter("config.yaml", "model", _write_config, norm_groups=32),
)
