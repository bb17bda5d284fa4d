"""SigLIP as an encoder, from a folder of `config.json`, `model.safetensors` and its tokenizer's file."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int64, UInt8

from cm3leon_jax.encoders.base import Encoder
from cm3leon_jax.encoders.clip.inputs import ImageNormalization, kept_patches, normalize_images
from cm3leon_jax.encoders.clip.model import Tower, normalize_rows
from cm3leon_jax.encoders.device_batches import DeviceBatches
from cm3leon_jax.encoders.siglip.model import SiglipArchitecture, abstract_siglip
from cm3leon_jax.encoders.siglip.tokenizer import SiglipTokenizer, TextFormat
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import atomic_write
from cm3leon_jax.named_parameters import bind, parameters
from cm3leon_jax.weights import WEIGHTS_FILE, check_shapes

_FIX = "delete the folder and make it again"


class SiglipEncoder(Encoder):
    """An imported SigLIP; its arrays have the names of `Siglip`'s parameters."""

    family = "siglip"

    def __init__(
        self,
        architecture: SiglipArchitecture,
        weights: Mapping[str, Array | np.ndarray],
        tokenizer: SiglipTokenizer,
        normalization: ImageNormalization,
        resize: str = "cubic",
    ) -> None:
        """`resize` is the filter of `jax.image.resize` by which images become squares of the architecture's side."""
        self.architecture, self.tokenizer = architecture, tokenizer
        self.normalization, self.resize = normalization, resize
        self.dim = architecture.embedding_dim
        settings: dict[str, Any] = {
            "architecture": dataclasses.asdict(architecture),
            "text_format": dataclasses.asdict(tokenizer.format),
            "normalization": dataclasses.asdict(normalization),
            "resize": resize,
            "tokenizer": hashlib.sha256(tokenizer.content).hexdigest()[:16],
        }
        super().__init__(settings, weights)
        self._in_batches = DeviceBatches(self.weights, self.dim)

    def encode_texts(
        self, texts: Sequence[str], dropout: float = 0.0, keys: Int64[np.ndarray, "n"] | None = None
    ) -> Float32[np.ndarray, "n dim"]:
        """As in `Encoder`; texts are truncated, and one without a word gives a zero vector."""
        tokens, is_said = self.tokenizer(texts, dropout, keys)
        return self._in_batches(partial(_encode_texts, self.architecture), tokens) * is_said[:, None]

    def encode_images(
        self, images: UInt8[np.ndarray, "n R R C"], dropout: float = 0.0, keys: Int64[np.ndarray, "n"] | None = None
    ) -> Float32[np.ndarray, "n dim"]:
        """As in `Encoder`; a patch that is left out has the mean color."""
        kept = kept_patches(len(images), self.architecture.num_patches, dropout, keys)
        encode = partial(_encode_images, self.architecture, self.normalization, self.resize)
        return self._in_batches(encode, images, kept)

    def save(self, path: str | Path, training: dict[str, Any] | None = None) -> None:
        """Writes the folder; next to the weights is the tokenizer."""
        with atomic_write(Path(path) / self.tokenizer.format.file) as temporary:
            temporary.write_bytes(self.tokenizer.content)
        super().save(path, training)

    @classmethod
    def restore(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray], folder: Path) -> SiglipEncoder:
        """The encoder that `save` wrote.

        Raises a `UserError` if the arrays or the tokenizer are not those of the settings.
        """
        towers = {name: Tower(**settings["architecture"][name]) for name in ("text", "image")}
        architecture = SiglipArchitecture(**{**settings["architecture"], **towers})
        around = {name: tuple(settings["text_format"][name]) for name in ("before", "after")}
        text_format = TextFormat(**{**settings["text_format"], **around})
        normalization = ImageNormalization(**{k: tuple(v) for k, v in settings["normalization"].items()})
        check_shapes(parameter_shapes(architecture), arrays, folder / WEIGHTS_FILE, _FIX)
        file = folder / text_format.file
        content = file.read_bytes()
        try:
            tokenizer = SiglipTokenizer(content, text_format, architecture.max_text_tokens)
        except UserError:
            raise
        except Exception as error:  # The libraries raise bare Exceptions for what they cannot parse.
            raise UserError(f"{file} is damaged ({error}); {_FIX}") from None
        return cls(architecture, arrays, tokenizer, normalization, settings["resize"])


@partial(jax.jit, static_argnums=0)
def _encode_texts(
    architecture: SiglipArchitecture, weights: dict[str, Array], tokens: Int[Array, "B T"]
) -> Float[Array, "B E"]:
    return normalize_rows(bind(abstract_siglip(architecture), weights).text(tokens))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _encode_images(
    architecture: SiglipArchitecture,
    normalization: ImageNormalization,
    resize: str,
    weights: dict[str, Array],
    images: UInt8[Array, "B R R C"],
    kept: Bool[Array, "B P"],
) -> Float[Array, "B E"]:
    pixels = normalize_images(images, architecture.resolution, normalization, resize)
    return normalize_rows(bind(abstract_siglip(architecture), weights).image(pixels, kept))


def parameter_shapes(architecture: SiglipArchitecture) -> dict[str, tuple[int, ...]]:
    """Of every parameter, by name."""
    return {name: leaf.shape for name, leaf in parameters(abstract_siglip(architecture)).items()}
