"""`VQModel` of `diffusers`."""

from __future__ import annotations

from typing import Any

from cm3leon_jax.huggingface.image_tokenizers.layout import ImageTokenizerLayout, LayoutWriter
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig


def _read_config(stored: StoredConfig) -> dict[str, Any]:
    stored.refuse_if("act_fn", stored.text("act_fn", "silu") not in ("silu", "swish"))
    stored.refuse_if("norm_type", stored.text("norm_type", "group") != "group")
    stored.refuse_if("mid_block_add_attention", not stored.flag("mid_block_add_attention", True))
    return {"norm_groups": stored.size("norm_num_groups", 32)}


def _write_config(config: VQGANConfig, norm_groups: int) -> dict[str, Any]:
    sides = [config.resolution // 2**level for level in range(len(config.channel_multipliers))]
    has_attention = [side in config.attention_resolutions for side in sides]
    return {
        "_class_name": "VQModel",
        "_diffusers_version": "0.30.0",
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "down_block_types": ["AttnDownEncoderBlock2D" if found else "DownEncoderBlock2D" for found in has_attention],
        "up_block_types": ["AttnUpDecoderBlock2D" if found else "UpDecoderBlock2D" for found in has_attention[::-1]],
        "block_out_channels": [config.base_channels * multiplier for multiplier in config.channel_multipliers],
        "layers_per_block": config.num_res_blocks,
        "act_fn": "silu",
        "latent_channels": config.latent_channels,
        "sample_size": config.resolution,
        "num_vq_embeddings": config.codebook_size,
        "norm_num_groups": norm_groups,
        "vq_embed_dim": config.embedding_dim,
        "norm_type": "group",
        # `decode` then takes codes.
        "lookup_from_codebook": True,
    }


LAYOUT = ImageTokenizerLayout(
    "VQModel of diffusers",
    sign="encoder.down_blocks.0.resnets.0.",
    modules=(
        (r"^encoder\.down\.(\d+)", r"encoder.down_blocks.\1"),
        (r"^decoder\.up\.(\d+)", r"decoder.up_blocks.\1"),
        (r"\.block\.(\d+)", r".resnets.\1"),
        (r"\.attn\.(\d+)", r".attentions.\1"),
        (r"\.mid\.attn_1", ".mid_block.attentions.0"),
        (r"\.mid\.block_1", ".mid_block.resnets.0"),
        (r"\.mid\.block_2", ".mid_block.resnets.1"),
        (r"\.(downsample|upsample)\.conv", r".\1rs.0.conv"),
        (r"\.nin_shortcut", ".conv_shortcut"),
        (r"\.norm_out", ".conv_norm_out"),
        (r"(\.attentions\.\d+)\.norm", r"\1.group_norm"),
        (r"(\.attentions\.\d+)\.([qkv])$", r"\1.to_\2"),
        (r"(\.attentions\.\d+)\.proj_out", r"\1.to_out.0"),
    ),
    earlier=(
        (r"(\.attentions\.\d+)\.query\.", r"\1.to_q."),
        (r"(\.attentions\.\d+)\.key\.", r"\1.to_k."),
        (r"(\.attentions\.\d+)\.value\.", r"\1.to_v."),
        (r"(\.attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
    ),
    decoder_from_lowest=True,
    linear=r"\.to_(q|k|v|out\.0)$",
    filter="lanczos",
    kinds=("VQModel",),
    read_config=_read_config,
    writer=LayoutWriter("config.json", "diffusion_pytorch_model", _write_config),
)
