"""Chameleon (arXiv 2405.09818, section 2.3): Llama with normalized queries and keys, and images in frames.

A folder's config.json has the image tokenizer's sizes, and which ids are image codes; its weights hold the encoder.
Published folders lack the decoder, without which there are no images: that comes with Anole's, or as vqgan.ckpt.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cm3leon_jax.config import Config
from cm3leon_jax.errors import UserError
from cm3leon_jax.huggingface.decoders import DecoderFamily, OtherParts, exported_image_tokenizer, other_at
from cm3leon_jax.huggingface.families import llama
from cm3leon_jax.huggingface.image_tokenizers import taming
from cm3leon_jax.huggingface.image_tokenizers.exporting import checked_config, lazy_tensors
from cm3leon_jax.huggingface.image_tokenizers.importing import read_image_tokenizer
from cm3leon_jax.huggingface.image_tokenizers.layout import CODEBOOK
from cm3leon_jax.huggingface.reading_weights import StoredTensor, open_weights
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.huggingface.tensor_map import MATRIX, norm_maps
from cm3leon_jax.huggingface.tokenizer_files import read_vocabulary
from cm3leon_jax.image_tokenizers.base import ImageTokenizer, load_image_tokenizer
from cm3leon_jax.models.config import ModelConfig
from cm3leon_jax.vocabulary import IMAGE_FRAME, Vocabulary
from cm3leon_jax.weights import CONFIG_FILE

_ATTENTION = "model.layers.{}.self_attn."
_NORMS = {"blocks.attention.query_norm": _ATTENTION + "q_norm", "blocks.attention.key_norm": _ATTENTION + "k_norm"}
# Whatever a config.json says, queries and keys are normalized with it.
_EPSILON = 1e-5
_IMAGE_TOKENIZER = "model.vqmodel."
_CODEBOOK = "vqmodel.quantize.embedding.weight"
# Of bfloat16, in which folders are published, while the image tokenizer was stored in float32.
_ROUNDING = 2**-7

# A code in decimal digits, each of which a letter stands for.
_CODE = re.compile("IMGIMG([A-J]+)Z")
_TO_DIGITS, _TO_LETTERS = str.maketrans("ABCDEFGHIJ", "0123456789"), str.maketrans("0123456789", "ABCDEFGHIJ")
# Ours and theirs: a document begins with `</s>`, and between segments stands what ends a turn of a conversation.
_BEGIN_IMAGE, _END_IMAGE = IMAGE_FRAME
_ROLES = {"</s>": "<s>", _BEGIN_IMAGE: "<racm3:break>", _END_IMAGE: "<eoss>", "<break>": "<reserved08706>"}
# The id that stands for each code of an image until the encoder has given it.
_PLACEHOLDER = "<image>"


def _read_config(stored: StoredConfig) -> dict[str, Any]:
    epsilon = stored.number("rms_norm_eps", _EPSILON)
    stored.refuse_if("rms_norm_eps", epsilon != _EPSILON)
    return llama.read_config(stored) | {
        "layer_norm_epsilon": epsilon,
        "query_key_norm": "layer",
        "query_key_norm_per_head": True,
        # "Swin norm": on the sublayers' outputs.
        "norm_position": "output" if stored.flag("swin_norm", False) else "input",
    }


def _write_config(config: ModelConfig, vocabulary_size: int, sequence_length: int, dtype: str) -> dict[str, Any]:
    return llama.write_config("chameleon", config, vocabulary_size, sequence_length, dtype) | {
        "architectures": ["ChameleonForConditionalGeneration"],
        # It knows no other width of heads, and no other epsilon.
        "head_dim": None,
        "rms_norm_eps": _EPSILON,
        "attention_bias": config.biases,
        "mlp_bias": config.biases,
        "swin_norm": config.norm_position == "output",
        "model_parallel_size": 1,
    }


def token_roles(ids: Mapping[str, int], folder: Path) -> dict[str, int]:
    """Image codes and special tokens by the names that published tokenizers have for them."""
    codes = {
        int(found[1].translate(_TO_DIGITS)): index for name, index in ids.items() if (found := _CODE.fullmatch(name))
    }
    wanted = [*_ROLES.values(), *(_spelled(code) for code in range(max(len(codes), 1)))]
    if missing := [name for name in wanted if name not in ids]:
        raise UserError(f"{folder}: its tokenizer has no token {missing[0]}: it is none of Chameleon's; get it again")
    return {ours: ids[theirs] for ours, theirs in _ROLES.items()} | {
        f"<image:{code}>": index for code, index in sorted(codes.items())
    }


def _spelled(code: int) -> str:
    """The name of an image code."""
    return f"IMGIMG{str(code).translate(_TO_LETTERS)}Z"


def _read_image_tokenizer(config: Config, folder: Path) -> ImageTokenizer:
    """The image tokenizer at the config's path, if it is there; otherwise the folder's, if that has a decoder."""
    if (exported := exported_image_tokenizer(config, folder)) is not None:
        return exported
    weights, path = open_weights(folder, ("*.inv_freq",)), Path(config.image_tokenizer.path)
    if (path / CONFIG_FILE).exists():
        present = load_image_tokenizer(path)
        _check_codebook(weights, present, path)
        return present
    if not any(name.startswith((_IMAGE_TOKENIZER + "decoder.", "vqmodel.decoder.")) for name in weights):
        raise no_image_tokenizer(folder, path)
    return read_image_tokenizer(config, folder)


def no_image_tokenizer(folder: Path, path: Path) -> UserError:
    """What to raise where neither a folder nor the config's path has one that makes images."""
    return UserError(
        f"{folder} has no image tokenizer that makes images, and there is none at config.image_tokenizer.path "
        f"{path}: give Chameleon's vqgan.ckpt by --image-tokenizer"
    )


def _check_codebook(weights: Mapping[str, StoredTensor], present: ImageTokenizer, path: Path) -> None:
    """Refuses an image tokenizer whose codes are not those of the folder."""
    for tensor in (tensor for name, tensor in weights.items() if name.endswith(_CODEBOOK)):
        ours = present.weights[CODEBOOK]
        same_shape = tensor.shape == ours.shape
        if not same_shape or not np.allclose(tensor.read((slice(None), slice(None))), ours, rtol=_ROUNDING, atol=1e-6):
            raise other_at("image_tokenizer", path)


def _write_parts(vocabulary: Vocabulary, image_tokenizer: ImageTokenizer | None) -> OtherParts:
    layout, writer = taming.LAYOUT, taming.LAYOUT.writer
    assert writer is not None
    if image_tokenizer is None:
        raise UserError(
            "a Chameleon folder holds its image tokenizer, and there is none at config.image_tokenizer.path: put it "
            "there"
        )
    config, _ = checked_config(layout, writer, image_tokenizer)
    sizes = {
        "embed_dim": config.embedding_dim,
        "num_embeddings": config.codebook_size,
        "double_latent": False,
        "latent_channels": config.latent_channels,
        "resolution": config.resolution,
        "in_channels": config.in_channels,
        "base_channels": config.base_channels,
        "channel_multiplier": list(config.channel_multipliers),
        "num_res_blocks": config.num_res_blocks,
        "attn_resolutions": list(config.attention_resolutions),
        "dropout": 0.0,
        "attn_type": "vanilla",
    }
    ids = vocabulary.ids.encode_codes(np.arange(vocabulary.num_image_codes)).tolist()
    names = (vocabulary.name(index) for index in range(vocabulary.size))
    placeholder = next((index for index, name in enumerate(names) if name == _PLACEHOLDER), vocabulary.unknown)
    known = {_spelled(code): index for code, index in enumerate(ids)} | {_PLACEHOLDER: placeholder}
    tensors = [
        dataclasses.replace(tensor, name=_IMAGE_TOKENIZER + tensor.name)
        for tensor in lazy_tensors(layout, config, image_tokenizer)
        # The class of transformers has none.
        if not tensor.name.startswith("decoder.")
    ]
    return OtherParts({"vocabulary_map": known, "vq_config": sizes}, tensors)


FAMILY = DecoderFamily(
    "chameleon",
    llama.TENSORS | norm_maps(_NORMS, MATRIX),
    _read_config,
    _write_config,
    ignored=("model.vqmodel.*", "*.rotary_emb.inv_freq"),
    read_vocabulary=partial(read_vocabulary, token_roles=token_roles),
    read_image_tokenizer=_read_image_tokenizer,
    write_parts=_write_parts,
)
