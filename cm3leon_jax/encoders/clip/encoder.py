"""CLIP as an encoder, from a folder of `config.json`, `model.safetensors` and `tokenizer.json`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int64, UInt8

from cm3leon_jax.encoders.base import Encoder
from cm3leon_jax.encoders.clip.inputs import (
    ClipTokenizer,
    ImageNormalization,
    SpecialTokenIds,
    kept_patches,
    normalize_images,
)
from cm3leon_jax.encoders.clip.model import ClipArchitecture, Tower, abstract_clip, eos_positions, normalize_rows
from cm3leon_jax.encoders.device_batches import DeviceBatches
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import atomic_write
from cm3leon_jax.named_parameters import bind, parameters
from cm3leon_jax.weights import WEIGHTS_FILE, check_shapes

TOKENIZER_FILE = "tokenizer.json"
_FIX = "delete the folder and make it again"


class ClipEncoder(Encoder):
    """A trained CLIP; its arrays have the names of `Clip`'s parameters."""

    family = "clip"

    def __init__(
        self,
        architecture: ClipArchitecture,
        weights: Mapping[str, Array | np.ndarray],
        tokenizer_json: str,
        special_tokens: SpecialTokenIds,
        normalization: ImageNormalization,
    ) -> None:
        self.architecture, self.special_tokens, self.normalization = architecture, special_tokens, normalization
        self.dim = architecture.embedding_dim
        self.tokenizer = ClipTokenizer(tokenizer_json, special_tokens, architecture.max_text_tokens)
        parts: dict[str, Any] = {
            "architecture": architecture, "special_tokens": special_tokens, "normalization": normalization
        }  # fmt: skip
        settings = {name: dataclasses.asdict(part) for name, part in parts.items()}
        tokenizer = hashlib.sha256(json.dumps(json.loads(tokenizer_json), sort_keys=True).encode()).hexdigest()
        super().__init__(settings | {"tokenizer": tokenizer[:16]}, weights)
        self._in_batches = DeviceBatches(self.weights, self.dim)

    def encode_texts(
        self, texts: Sequence[str], dropout: float = 0.0, keys: Int64[np.ndarray, "n"] | None = None
    ) -> Float32[np.ndarray, "n dim"]:
        """As in `Encoder`; texts are truncated, and one without a token gives a zero vector."""
        tokens, is_said = self.tokenizer(texts, dropout, keys)
        encode = partial(_encode_texts, self.architecture, self.special_tokens.read_at)
        return self._in_batches(encode, tokens) * is_said[:, None]

    def encode_images(
        self, images: UInt8[np.ndarray, "n R R C"], dropout: float = 0.0, keys: Int64[np.ndarray, "n"] | None = None
    ) -> Float32[np.ndarray, "n dim"]:
        """As in `Encoder`; a patch that is left out has the mean color."""
        kept = kept_patches(len(images), self.architecture.num_patches, dropout, keys)
        return self._in_batches(partial(_encode_images, self.architecture, self.normalization), images, kept)

    def save(self, path: str | Path, training: dict[str, Any] | None = None) -> None:
        """Writes the folder; next to the weights is the tokenizer."""
        with atomic_write(Path(path) / TOKENIZER_FILE) as temporary:
            temporary.write_text(self.tokenizer.json, encoding="utf-8")
        super().save(path, training)

    @classmethod
    def restore(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray], folder: Path) -> ClipEncoder:
        """The encoder that `save` wrote.

        Raises a `UserError` if the arrays or the tokenizer are not those of the settings.
        """
        towers = {name: Tower(**settings["architecture"][name]) for name in ("text", "image")}
        architecture = ClipArchitecture(**{**settings["architecture"], **towers})
        special_tokens = SpecialTokenIds(**settings["special_tokens"])
        normalization = ImageNormalization(**{k: tuple(v) for k, v in settings["normalization"].items()})
        check_shapes(parameter_shapes(architecture), arrays, folder / WEIGHTS_FILE, _FIX)
        tokenizer_json = (folder / TOKENIZER_FILE).read_text(encoding="utf-8")
        try:
            return cls(architecture, arrays, tokenizer_json, special_tokens, normalization)
        except Exception as error:  # The tokenizers library raises a bare Exception for what it cannot parse.
            raise UserError(f"{folder / TOKENIZER_FILE} is damaged ({error}); {_FIX}") from None


@partial(jax.jit, static_argnums=(0, 1))
def _encode_texts(
    architecture: ClipArchitecture, read_at: int | None, weights: dict[str, Array], tokens: Int[Array, "B T"]
) -> Float[Array, "B E"]:
    model = bind(abstract_clip(architecture), weights)
    return normalize_rows(model.text(tokens, eos_positions(tokens, read_at)))


@partial(jax.jit, static_argnums=(0, 1))
def _encode_images(
    architecture: ClipArchitecture,
    normalization: ImageNormalization,
    weights: dict[str, Array],
    images: UInt8[Array, "B R R C"],
    kept: Bool[Array, "B P"],
) -> Float[Array, "B E"]:
    pixels = normalize_images(images, architecture.resolution, normalization)
    return normalize_rows(bind(abstract_clip(architecture), weights).image(pixels, kept))


def parameter_shapes(architecture: ClipArchitecture) -> dict[str, tuple[int, ...]]:
    """Of every parameter, by name."""
    return {name: leaf.shape for name, leaf in parameters(abstract_clip(architecture)).items()}
