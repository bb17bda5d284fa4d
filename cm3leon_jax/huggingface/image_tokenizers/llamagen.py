"""LlamaGen's VQ-8 and VQ-16 (arXiv 2406.06525, section 2.1), and Janus', a VQ-16, in DeepSeek's own folders."""

from __future__ import annotations

from cm3leon_jax.huggingface.image_tokenizers.layout import ImageTokenizerLayout

LAYOUT = ImageTokenizerLayout(
    "VQ model of LlamaGen",
    sign="encoder.conv_blocks.0.res.0.",
    prefixes=("", "gen_vision_model."),
    modules=(
        (r"^encoder\.down\.(\d+)", r"encoder.conv_blocks.\1"),
        (r"^decoder\.up\.(\d+)", r"decoder.conv_blocks.\1"),
        (r"\.block\.(\d+)", r".res.\1"),
        (r"\.mid\.block_1", ".mid.0"),
        (r"\.mid\.attn_1", ".mid.1"),
        (r"\.mid\.block_2", ".mid.2"),
    ),
    decoder_from_lowest=True,
    # How often each code was used of late.
    ignored=("quantize.codebook_used",),
    unit_codes=True,
    filter="bicubic",
    kinds=("multi_modality",),
)
