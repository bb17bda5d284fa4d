"""CLIP (arXiv 2103.00020) as the run's encoder: ViT-B/32, B/16, L/14 and every other size; and what SigLIP shares."""

from __future__ import annotations

import contextlib
import logging
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Float32
from tokenizers import Regex, decoders, normalizers, pre_tokenizers

from cm3leon_jax.config import Config
from cm3leon_jax.encoders.base import Encoder, load_encoder
from cm3leon_jax.encoders.clip.encoder import ClipEncoder, parameter_shapes
from cm3leon_jax.encoders.clip.inputs import ImageNormalization, SpecialTokenIds
from cm3leon_jax.encoders.clip.model import ACTIVATIONS, CHANNELS, ClipArchitecture, Tower
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import read_object
from cm3leon_jax.huggingface.decoders import other_at
from cm3leon_jax.huggingface.reading_weights import StoredTensor, open_weights
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.huggingface.tensor_map import (
    MATRIX,
    SCALAR,
    TRANSPOSED,
    VECTOR,
    Shape,
    TensorMap,
    attention_maps,
    check_tensors,
    linear_maps,
    norm_maps,
)
from cm3leon_jax.huggingface.tokenizer_files import open_tokenizer
from cm3leon_jax.lock import lock
from cm3leon_jax.progress import Progress
from cm3leon_jax.weights import CONFIG_FILE

log = logging.getLogger(__name__)

# What transformers takes where a config says nothing: ViT-B/32.
_TEXT_DEFAULTS = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
_IMAGE_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": CHANNELS,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
# The end token that the first published configs name, wrongly; their texts are read at the highest id.
_LEGACY_END = 2
_START, _END = "<|startoftext|>", "<|endoftext|>"
# How the published tokenizer cuts a text into words.
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

_CONVOLUTION = ((3,), (2,), (0,), (1,))


def tensor_maps() -> dict[str, TensorMap]:
    """Where each parameter of `clip.Clip` lies."""
    own = {
        "logit_scale": TensorMap("logit_scale", SCALAR),
        "text.projection": TensorMap("text_projection.weight", TRANSPOSED),
        "image.class_embedding": TensorMap("vision_model.embeddings.class_embedding", VECTOR),
        "image.projection": TensorMap("visual_projection.weight", TRANSPOSED),
        # Misspelled, as published.
        **norm_maps({"image.first_norm": "vision_model.pre_layrnorm"}),
    }
    return own | tower_maps()


def tower_maps() -> dict[str, TensorMap]:
    """Where the embeddings, the layers and the last norms of both towers lie, which SigLIP has under the same names."""
    found = {
        "text.token_embedding": TensorMap("text_model.embeddings.token_embedding.weight", MATRIX),
        "image.patch_embedding": TensorMap("vision_model.embeddings.patch_embedding.weight", _CONVOLUTION),
        **norm_maps(
            {"text.final_norm": "text_model.final_layer_norm", "image.final_norm": "vision_model.post_layernorm"}
        ),
    }
    for ours, theirs in (("text", "text_model"), ("image", "vision_model")):
        found[f"{ours}.position_embedding"] = TensorMap(f"{theirs}.embeddings.position_embedding.weight", MATRIX)
        block, layer = f"{ours}.blocks.", f"{theirs}.encoder.layers.{{}}."
        found |= attention_maps(block + "attention", layer + "self_attn")
        mlp = {block + "feed_forward.up": layer + "mlp.fc1", block + "feed_forward.down": layer + "mlp.fc2"}
        found |= linear_maps(TRANSPOSED, mlp)
        norms = {block + "attention_norm": layer + "layer_norm1", block + "feed_forward_norm": layer + "layer_norm2"}
        found |= norm_maps(norms)
    return found


class ClipFamily:
    """Reads config.json, the weights, the tokenizer and, where it is there, preprocessor_config.json."""

    def import_folder(self, config: Config, workdir: Path, folder: Path, stored: Mapping[str, Any]) -> None:
        """Writes the encoder to config.encoder.path, given the object in the folder's config.json."""
        del workdir
        path = Path(config.encoder.path)
        with lock(path, "import"):
            architecture = read_architecture(stored, folder)
            tokenizer_json, special_tokens = read_tokenizer(folder, stored, architecture)
            colors = read_colors(folder, architecture)
            weights = read_parameters(architecture, open_weights(folder, ignored=("*.position_ids",)), folder)
            encoder = ClipEncoder(architecture, weights, tokenizer_json, special_tokens, colors)
            check_tokenizer_works(encoder.tokenizer, folder)
            save_encoder(encoder, path, folder)


FAMILY = ClipFamily()


def save_encoder(encoder: Encoder, path: Path, folder: Path) -> None:
    """Writes the encoder of a folder, unless it is there. Raises a `UserError` if another one is."""
    if not (path / CONFIG_FILE).exists():
        encoder.save(path)
        count = sum(value.size for value in encoder.weights.values())
        log.info(f"imported the encoder {encoder.fingerprint} with {count:,} parameters into {path}")
    elif load_encoder(path).fingerprint == encoder.fingerprint:
        log.info(f"the encoder {path} is that of {folder} already: nothing to do")
    else:
        raise other_at("encoder", path)


def check_tokenizer_works(tokenizer: Callable[[Sequence[str]], Any], folder: Path) -> None:
    """Tokenizes a text: only then shows whether the parts of a tokenizer work together."""
    try:
        tokenizer(["a red square, 1 ünï 数"])
    except Exception as error:  # The library raises a bare Exception.
        raise UserError(f"the tokenizer in {folder} cuts no text ({error}): get it again") from None


def read_architecture(stored: Mapping[str, Any], folder: Path) -> ClipArchitecture:
    """The shapes that a config.json describes.

    Raises a `UserError` that names the first field with a value that is missing, of another type, or has no code here.
    """
    whole = StoredConfig(stored, f"{folder}/config.json")
    text, image = _part(whole, "text", _TEXT_DEFAULTS), _part(whole, "vision", _IMAGE_DEFAULTS)
    if image.get("num_channels") != CHANNELS:
        raise image.error("num_channels", image.get("num_channels"), str(CHANNELS))
    resolution, patch_size = image.size("image_size"), image.size("patch_size")
    if resolution % patch_size:
        raise image.error("image_size", resolution, f"a multiple of patch_size {patch_size}")
    return ClipArchitecture(
        embedding_dim=whole.size("projection_dim", 512),
        vocabulary_size=text.size("vocab_size"),
        # A text stands between two special tokens.
        max_text_tokens=text.size("max_position_embeddings", least=3),
        resolution=resolution,
        patch_size=patch_size,
        text=read_tower(text),
        image=read_tower(image),
    )


def read_parameters(
    architecture: ClipArchitecture, weights: Mapping[str, StoredTensor], folder: Path
) -> dict[str, Float32[np.ndarray, "..."]]:
    """The parameters of `clip.Clip` by name; raises what `read_arrays` does."""
    return read_arrays(tensor_maps(), parameter_shapes(architecture), weights, folder)


def read_arrays(
    table: Mapping[str, TensorMap], shapes: Mapping[str, Shape], weights: Mapping[str, StoredTensor], folder: Path
) -> dict[str, Float32[np.ndarray, "..."]]:
    """Parameters of these shapes, whole.

    Raises a `UserError` that names the first tensor that is missing, has another shape, or has no place in the model.
    """
    result = {}
    check_tensors(table, shapes, weights, folder)
    with contextlib.closing(Progress("import", len(shapes), unit="parameter")) as progress:
        for name, shape in shapes.items():
            stored = [weights[key] for key in table[name].names(shape)]
            result[name] = np.asarray(table[name].read(stored, shape, (slice(None),) * len(shape)), order="C")
            progress.advance()
    return result


def read_tokenizer(
    folder: Path, stored: Mapping[str, Any], architecture: ClipArchitecture
) -> tuple[str, SpecialTokenIds]:
    """The tokenizer as JSON of the `tokenizers` library, and the ids of its special tokens."""
    special = read_tokenizer_config(folder)
    tokenizer = _tokenizer(folder, special_token(special, "unk_token", _END))
    start, end = special_token(special, "bos_token", _START), special_token(special, "eos_token", _END)
    pad = special_token(special, "pad_token", end)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    absent, largest = [name for name in (start, end, pad) if name not in ids], max(ids.values(), default=0)
    if absent or largest >= architecture.vocabulary_size:
        what = f"has no token {absent[0]}" if absent else f"has the id {largest}"
        raise UserError(
            f"{folder}: its tokenizer {what}, its config.json says vocab_size {architecture.vocabulary_size}: they do "
            "not belong together"
        )
    says = _part(StoredConfig(stored, f"{folder}/config.json"), "text", _TEXT_DEFAULTS).get("eos_token_id")
    if says not in (_LEGACY_END, ids[end]):
        raise UserError(
            f"{folder}: its tokenizer ends a text with the id {ids[end]}, its config.json reads it at {says} "
            "(text_config.eos_token_id): they do not belong together"
        )
    return tokenizer.to_str(), SpecialTokenIds(ids[start], ids[end], ids[pad], ends_at_highest=says == _LEGACY_END)


def read_colors(folder: Path, architecture: ClipArchitecture) -> ImageNormalization:
    """What images are normalized by; CLIP's own where the folder does not say."""
    stored = read_preprocessing(folder)
    field = "crop_size" if stored.flag("do_center_crop", True) else "size"
    return read_normalization(stored, field, architecture.resolution, ImageNormalization())


def read_preprocessing(folder: Path) -> StoredConfig:
    """What a folder says of how images are prepared; empty where it does not."""
    file, whole = folder / "preprocessor_config.json", folder / "processor_config.json"
    if file.exists() or not whole.exists():
        found = read_object(file, "the folder's preprocessing") if file.exists() else {}
        return StoredConfig(found, str(file))
    # Later versions of transformers keep it with what prepares texts.
    return StoredConfig(read_object(whole, "the folder's preprocessing"), str(whole)).part("image_processor")


def read_normalization(
    stored: StoredConfig, size_field: str, resolution: int, default: ImageNormalization
) -> ImageNormalization:
    """What images are normalized by. Raises a `UserError` if the field of their size says another resolution."""
    sides = stored.get(size_field, resolution)
    given = list(sides.values()) if isinstance(sides, dict) else [sides]
    if not given or any(side != resolution for side in given):
        wanted = f"config.json says {resolution} pixels a side: they do not belong together"
        raise UserError(f"{stored.where} makes images of {reprlib.repr(sides)}, {wanted}")
    if not stored.flag("do_normalize", True):
        return ImageNormalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    mean, std = stored.numbers("image_mean", default.mean), stored.numbers("image_std", default.std)
    if min(std) <= 0:
        raise stored.error("image_std", std, f"{CHANNELS} numbers above 0")
    return ImageNormalization(mean, std)


def _part(stored: StoredConfig, name: str, defaults: Mapping[str, Any]) -> StoredConfig:
    # Old folders repeat each part under a second name, which counts.
    return stored.part(f"{name}_config_dict", f"{name}_config").with_defaults(defaults)


def read_tower(part: StoredConfig) -> Tower:
    """The shape of the transformer that a part of a config.json describes."""
    dim, num_heads, activation = part.size("hidden_size"), part.size("num_attention_heads"), part.text("hidden_act")
    epsilon = part.number("layer_norm_eps")
    if activation not in ACTIVATIONS:
        raise part.error("hidden_act", activation, " or ".join(map(repr, ACTIVATIONS)))
    if dim % num_heads:
        raise part.error("hidden_size", dim, f"a multiple of num_attention_heads {num_heads}")
    if epsilon <= 0:
        raise part.error("layer_norm_eps", epsilon, "above 0")
    return Tower(
        part.num_layers("num_hidden_layers"), dim, num_heads, part.size("intermediate_size"), activation, epsilon
    )


def read_tokenizer_config(folder: Path) -> StoredConfig:
    """What the files beside a tokenizer say of it; empty where there are none."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).exists():
            found |= read_object(folder / name, "the tokenizer's config")
    return StoredConfig(found, f"{folder}/tokenizer_config.json or special_tokens_map.json")


def special_token(special: StoredConfig, name: str, default: str) -> str:
    """The text of a special token, which one file writes as a text and the other as an object."""
    if isinstance(special.get(name), dict):
        return special.part(name).text("content", default)
    return special.text(name, default) or default


def _tokenizer(folder: Path, unknown: str) -> tokenizers.Tokenizer:
    tokenizer, is_whole = open_tokenizer(folder, unk_token=unknown, end_of_word_suffix="</w>")
    if is_whole:
        return tokenizer
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
