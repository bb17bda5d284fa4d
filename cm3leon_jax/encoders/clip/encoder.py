"""CLIP as an encoder, from a folder of `config.json`, `model.safetensors` and `tokenizer.json`."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Float32, Int, Int64, UInt8
from safetensors import SafetensorError

from cm3leon_jax.checkpoints import flat
from cm3leon_jax.encoders.base import CONFIG_FILE
from cm3leon_jax.encoders.clip.inputs import (
    ClipTokenizer,
    ImageNormalization,
    SpecialTokenIds,
    kept_patches,
    normalized,
)
from cm3leon_jax.encoders.clip.model import ClipArchitecture, Tower, abstract_clip, eos_positions, l2_normalize
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import atomic_write, read_json, write_json
from cm3leon_jax.image_tokenizers.vqgan.model import bind

KIND = "clip"
WEIGHTS_FILE, TOKENIZER_FILE = "model.safetensors", "tokenizer.json"
# Most texts or images in one call.
_BATCH = 256

Weights = Mapping[str, Array | np.ndarray]


class ClipEncoder:
    """Fulfils `Encoder`."""

    def __init__(
        self,
        architecture: ClipArchitecture,
        weights: Weights,
        tokenizer_json: str,
        special_tokens: SpecialTokenIds,
        colors: ImageNormalization,
    ) -> None:
        """Takes `weights` by the names of `clip.Clip`'s parameters."""
        self.architecture, self.special_tokens, self.colors = architecture, special_tokens, colors
        self.weights = {name: np.asarray(weights[name]) for name in sorted(weights)}
        self.dim = architecture.embedding_dim
        self.tokenizer = ClipTokenizer(tokenizer_json, special_tokens, architecture.max_text_tokens)
        self.fingerprint = self._fingerprint()
        self._mesh = jax.make_mesh(
            (jax.local_device_count(),), ("data",), axis_types=(AxisType.Auto,), devices=jax.local_devices()
        )
        self._on_devices = jax.device_put(self.weights, NamedSharding(self._mesh, PartitionSpec()))

    def encode_texts(
        self, texts: Sequence[str], dropout: float = 0.0, keys: Int64[np.ndarray, "n"] | None = None
    ) -> Float32[np.ndarray, "n dim"]:
        """As `Encoder` says; a text is cut to what the encoder takes, and one without a token is a zero vector."""
        tokens, says = self.tokenizer(texts, dropout, keys)
        return self._in_batches(_encode_texts(self.architecture, self.special_tokens), tokens) * says[:, None]

    def encode_images(
        self, images: UInt8[np.ndarray, "n R R C"], dropout: float = 0.0, keys: Int64[np.ndarray, "n"] | None = None
    ) -> Float32[np.ndarray, "n dim"]:
        """As `Encoder` says; a patch that is left out has the mean color."""
        kept = kept_patches(len(images), self.architecture.num_patches, dropout, keys)
        return self._in_batches(_encode_images(self.architecture, self.colors), images, kept)

    def save(self, path: str | Path, training: dict[str, Any] | None = None) -> None:
        """Writes the folder; `training` is kept as a record. The config is written last and seals the weights."""
        path = Path(path)
        with atomic_write(path / WEIGHTS_FILE) as temporary:
            safetensors.numpy.save_file(self.weights, temporary)
        with atomic_write(path / TOKENIZER_FILE) as temporary:
            temporary.write_text(self.tokenizer.json, encoding="utf-8")
        record = {"kind": KIND, **self._settings(), "fingerprint": self.fingerprint, "training": training}
        write_json(path / CONFIG_FILE, record)

    @classmethod
    def load(cls, path: str | Path) -> ClipEncoder:
        """Reads the folder that `save` wrote.

        Raises:
          UserError: if there is none, or its files are damaged or do not belong together.
        """
        path = Path(path)
        stored = read_json(path / CONFIG_FILE, "the encoder's config")
        fix = "delete the folder and make it again"
        try:
            towers = {name: Tower(**stored["architecture"][name]) for name in ("text", "image")}
            architecture = ClipArchitecture(**{**stored["architecture"], **towers})
            special_tokens, colors = (
                SpecialTokenIds(**stored["marks"]),
                ImageNormalization(**{k: tuple(v) for k, v in stored["colors"].items()}),
            )
            fingerprint = stored["fingerprint"]
            expected = parameter_shapes(architecture)
        except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError, UserError) as error:
            raise UserError(f"{path / CONFIG_FILE} is not the config of a CLIP encoder ({error}); {fix}") from None
        try:
            weights = safetensors.numpy.load_file(path / WEIGHTS_FILE)
            tokenizer_json = (path / TOKENIZER_FILE).read_text(encoding="utf-8")
        except (OSError, SafetensorError, UnicodeDecodeError) as error:
            raise UserError(f"the encoder {path} is damaged ({error}); {fix}") from None
        _check_shapes(expected, weights, path / WEIGHTS_FILE, fix)
        try:
            encoder = cls(architecture, weights, tokenizer_json, special_tokens, colors)
        except Exception as error:  # The tokenizers library raises a bare Exception for what it cannot parse.
            raise UserError(f"{path / TOKENIZER_FILE} is damaged ({error}); {fix}") from None
        if encoder.fingerprint != fingerprint:
            raise UserError(f"the files in {path} are not those that {CONFIG_FILE} was written with; {fix}")
        return encoder

    def _settings(self) -> dict[str, Any]:
        """All but the weights and the tokenizer."""
        parts: dict[str, Any] = {"architecture": self.architecture, "marks": self.special_tokens, "colors": self.colors}
        return {name: dataclasses.asdict(part) for name, part in parts.items()}

    def _fingerprint(self) -> str:
        canonical = [self._settings(), json.loads(self.tokenizer.json)]
        digest = hashlib.sha256(json.dumps(canonical, sort_keys=True).encode())
        for name, value in self.weights.items():
            digest.update(f"{name} {value.dtype} {value.shape}".encode())
            digest.update(np.ascontiguousarray(value).data)
        return digest.hexdigest()[:16]

    def _in_batches(self, function: Callable[..., Array], *columns: np.ndarray) -> Float32[np.ndarray, "n dim"]:
        """Rows of the columns through `function`: batches of one size, the last one filled up with zeros."""
        count, ways = len(columns[0]), self._mesh.size
        # A few sizes for any number of rows, so that little is compiled.
        size = -(-min(_BATCH, 1 << max(count - 1, 0).bit_length()) // ways) * ways
        sharding = NamedSharding(self._mesh, PartitionSpec("data"))
        result = np.zeros((count, self.dim), np.float32)
        for start in range(0, count, size):
            batch = [np.asarray(column[start : start + size]) for column in columns]
            padded = [np.pad(rows, [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1)) for rows in batch]
            found = function(self._on_devices, *jax.device_put(padded, sharding))
            result[start : start + size] = np.asarray(found)[: len(batch[0])]
        return result


@functools.cache
def _encode_texts(
    architecture: ClipArchitecture, special_tokens: SpecialTokenIds
) -> Callable[..., Float[Array, "B E"]]:
    model = abstract_clip(architecture)

    @jax.jit
    def encode(weights: dict[str, Array], tokens: Int[Array, "B T"]) -> Float[Array, "B E"]:
        return l2_normalize(bind(model, weights).text(tokens, eos_positions(tokens, special_tokens.read_at)))

    return encode


@functools.cache
def _encode_images(architecture: ClipArchitecture, colors: ImageNormalization) -> Callable[..., Float[Array, "B E"]]:
    model = abstract_clip(architecture)

    @jax.jit
    def encode(
        weights: dict[str, Array], images: UInt8[Array, "B R R C"], kept: Bool[Array, "B P"]
    ) -> Float[Array, "B E"]:
        pixels = normalized(images, architecture.resolution, colors)
        return l2_normalize(bind(model, weights).image(pixels, kept))

    return encode


def parameter_shapes(architecture: ClipArchitecture) -> dict[str, tuple[int, ...]]:
    """Of every parameter, by name."""
    found = flat(nnx.to_pure_dict(nnx.state(abstract_clip(architecture))))
    return {name: leaf.shape for name, leaf in found.items()}


def _check_shapes(
    expected: Mapping[str, tuple[int, ...]], weights: dict[str, np.ndarray], file: Path, fix: str
) -> None:
    for name in sorted(expected.keys() | weights.keys()):
        found = weights[name].shape if name in weights else "absent"
        if name not in expected or found != expected[name]:
            raise UserError(f"{file}: tensor {name} is {found}, its config says {expected.get(name, 'absent')}; {fix}")
