"""Image tokenizers of other projects with random weights, and what they are called elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig

SIDE, CODES = 16, 64
# Three levels of different widths and attention at the lowest, as in LlamaGen, which every reference can have.
CONFIG = VQGANConfig(
    resolution=SIDE,
    base_channels=32,
    channel_multipliers=(1, 2, 3),
    num_res_blocks=1,
    attention_resolutions=(SIDE // 4,),
    latent_channels=12,
    embedding_dim=6,
    codebook_size=CODES,
)
_SIZES = dict(
    base_channels=32,
    channel_multiplier=[1, 2, 3],
    num_res_blocks=1,
    latent_channels=12,
    embed_dim=6,
    num_embeddings=CODES,
)


class Reference(NamedTuple):
    """Someone else's image tokenizer."""

    # Its tensors by name.
    tensors: dict[str, Any]
    # Images in [-1, 1] to codes, and codes to pixels about [-1, 1]; [B C R R] and [B G G].
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


def images(count: int = 3) -> np.ndarray:
    """Smooth random images, [B R R C] of 0..255."""
    rng = np.random.default_rng(0)
    small = rng.uniform(0, 255, (count, 4, 4, 3))
    return np.clip(small.repeat(4, 1).repeat(4, 2) + rng.normal(0, 20, (count, SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


def randomize(model: Any) -> Any:
    """Random numbers in every parameter, also where an initialization has zeros or ones."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("quantize.embedding.weight"):
                parameter.normal_(0, 1)
            elif parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        _spread_latents(model)
    return model.eval()


def _spread_latents(model: Any) -> None:
    """Makes latents of images as far apart as the vectors of the codebook, so that many codes are used."""
    import torch

    pixels = torch.tensor(images()).permute(0, 3, 1, 2).float() / 127.5 - 1
    for _ in range(2):
        latents = model.quant_conv(model.encoder(pixels))
        mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        model.quant_conv.weight /= deviation[:, None, None, None]
        model.quant_conv.bias.copy_((model.quant_conv.bias - mean) / deviation)


def diffusers_model(**changes: Any) -> Any:
    """A `VQModel` of the sizes of CONFIG."""
    diffusers = pytest.importorskip("diffusers", reason="the extra [test] brings diffusers")
    values = dict(
        block_out_channels=(32, 64, 96),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=1,
        latent_channels=12,
        num_vq_embeddings=CODES,
        vq_embed_dim=6,
        sample_size=SIDE,
    )
    return randomize(diffusers.VQModel(**values | changes))


def of_diffusers(model: Any) -> Reference:
    def encode(pixels: Any) -> Any:
        return model.quantize(model.encode(pixels).latents)[2][2].reshape(len(pixels), -1)

    def decode(codes: Any) -> Any:
        found = model.quantize.get_codebook_entry(codes.reshape(-1), (*codes.shape, model.config.vq_embed_dim))
        return model.decoder(model.post_quant_conv(found))

    return Reference(model.state_dict(), encode, decode)


def chameleon() -> Reference:
    """Chameleon's, whose encoder `transformers` has; the decoder is that of diffusers under taming's names."""
    transformers = pytest.importorskip("transformers")
    values = dict(resolution=SIDE, in_channels=3, attn_resolutions=[SIDE // 4])
    config = transformers.models.chameleon.configuration_chameleon.ChameleonVQVAEConfig(**_SIZES, **values)
    model = randomize(transformers.models.chameleon.modeling_chameleon.ChameleonVQVAE(config))
    other = diffusers_model()
    names = taming_names(other.state_dict())

    def decode(codes: Any) -> Any:
        found = model.quantize.embedding(codes).permute(0, 3, 1, 2)
        return other.decoder(model.post_quant_conv(found))

    tensors = model.state_dict() | {name: tensor for name, tensor in names.items() if name.startswith("decoder.")}
    return Reference(tensors, lambda pixels: model.encode(pixels).image_tokens.reshape(len(pixels), -1), decode)


def janus(unit_codebook: bool = True) -> Reference:
    """Janus', as `transformers` has it."""
    transformers = pytest.importorskip("transformers")
    config = transformers.models.janus.configuration_janus.JanusVQVAEConfig(**_SIZES, num_patches=SIDE // 4)
    model = randomize(transformers.models.janus.modeling_janus.JanusVQVAE(config))
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if unit_codebook:
        # Then `transformers` compares latents with the vectors that it decodes.
        codebook = model.quantize.embedding.weight.data
        codebook /= codebook.norm(dim=-1, keepdim=True)
    return Reference(
        tensors,
        lambda pixels: model.encode(pixels).image_tokens.reshape(len(pixels), -1),
        lambda codes: model.decode(codes.reshape(len(codes), -1)),
    )


def llamagen_names(tensors: dict[str, Any]) -> dict[str, Any]:
    """What LlamaGen calls the tensors that `transformers` has of Janus, whose decoders count their levels alike."""
    found = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^encoder\.down\.|^decoder\.up\.", lambda part: f"{part[0][:7]}.conv_blocks.", name)
        name = name.replace(".block.", ".res.")
        for ours, theirs in (("block_1", "0"), ("attn_1", "1"), ("block_2", "2")):
            name = name.replace(f".mid.{ours}.", f".mid.{theirs}.")
        found[name] = tensor
    return found


def taming_names(tensors: dict[str, Any]) -> dict[str, Any]:
    """What taming-transformers calls the tensors of a `VQModel` of three levels, in its shapes."""
    found = {}
    for name, tensor in tensors.items():
        name = re.sub(r"down_blocks\.(\d)", r"down.\1", name)
        name = re.sub(r"up_blocks\.(\d)", lambda part: f"up.{2 - int(part[1])}", name)
        if "attentions" in name and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        parts = {
            "mid_block.resnets.0": "mid.block_1",
            "mid_block.resnets.1": "mid.block_2",
            "mid_block.attentions.0": "mid.attn_1",
            "resnets": "block",
            "attentions": "attn",
            "downsamplers.0": "downsample",
            "upsamplers.0": "upsample",
            "conv_shortcut": "nin_shortcut",
            "conv_norm_out": "norm_out",
            "group_norm": "norm",
            "to_q": "q",
            "to_k": "k",
            "to_v": "v",
            "to_out.0": "proj_out",
        }
        for theirs, taming in parts.items():
            name = name.replace(theirs, taming)
        found[name] = tensor
    return found


def save(folder: Path, tensors: dict[str, Any], prefix: str = "", config: dict[str, Any] | None = None) -> Path:
    """A folder of one safetensors file, with a config.json where one is given."""
    import json

    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({prefix + name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder
