"""CLIP as a bi-encoder, from a folder of `config.json`, `model.safetensors` and `tokenizer.json`."""

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
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import read_json, replacing, write_json
from cm3leon_jax.image_tokenizer.vqgan import bind
from cm3leon_jax.retrieval.bi_encoder import CONFIG_FILE
from cm3leon_jax.retrieval.clip import ClipArchitecture, Tower, abstract_clip, end_places, unit
from cm3leon_jax.retrieval.clip_inputs import ClipTokenizer, Colours, Marks, kept_patches, normalised

KIND = "clip"
WEIGHTS_FILE, TOKENIZER_FILE = "model.safetensors", "tokenizer.json"
# Most texts or pictures in one call.
_BATCH = 256

Weights = Mapping[str, Array | np.ndarray]


class ClipEncoder:
    """Fulfils `BiEncoder`."""

    def __init__(
        self, architecture: ClipArchitecture, weights: Weights, tokenizer_json: str, marks: Marks, colours: Colours
    ) -> None:
        """Takes `weights` by the names of `clip.Clip`'s parameters."""
        self.architecture, self.marks, self.colours = architecture, marks, colours
        self.weights = {name: np.asarray(weights[name]) for name in sorted(weights)}
        self.dim = architecture.embedding_dim
        self.tokenizer = ClipTokenizer(tokenizer_json, marks, architecture.max_text_tokens)
        self.fingerprint = self._fingerprint()
        self._mesh = jax.make_mesh(
            (jax.local_device_count(),), ("data",), axis_types=(AxisType.Auto,), devices=jax.local_devices()
        )
        self._on_devices = jax.device_put(self.weights, NamedSharding(self._mesh, PartitionSpec()))

    def encode_texts(
        self, texts: Sequence[str], dropout: float = 0.0, keys: Int64[np.ndarray, "n"] | None = None
    ) -> Float32[np.ndarray, "n dim"]:
        """As `BiEncoder` says; a text is cut to what the encoder takes, and one without a token is a zero vector."""
        tokens, says = self.tokenizer(texts, dropout, keys)
        return self._in_batches(_encode_texts(self.architecture, self.marks), tokens) * says[:, None]

    def encode_pictures(
        self, pictures: UInt8[np.ndarray, "n R R C"], dropout: float = 0.0, keys: Int64[np.ndarray, "n"] | None = None
    ) -> Float32[np.ndarray, "n dim"]:
        """As `BiEncoder` says; a patch that is left out has the mean colour."""
        kept = kept_patches(len(pictures), self.architecture.num_patches, dropout, keys)
        return self._in_batches(_encode_pictures(self.architecture, self.colours), pictures, kept)

    def save(self, path: str | Path, training: dict[str, Any] | None = None) -> None:
        """Writes the folder; `training` is kept as a record. The config is written last and seals the weights."""
        path = Path(path)
        with replacing(path / WEIGHTS_FILE) as temporary:
            safetensors.numpy.save_file(self.weights, temporary)
        with replacing(path / TOKENIZER_FILE) as temporary:
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
        stored = read_json(path / CONFIG_FILE, "the bi-encoder's config")
        mend = "delete the folder and make it again"
        try:
            towers = {name: Tower(**stored["architecture"][name]) for name in ("text", "image")}
            architecture = ClipArchitecture(**{**stored["architecture"], **towers})
            marks, colours = Marks(**stored["marks"]), Colours(**{k: tuple(v) for k, v in stored["colours"].items()})
            fingerprint = stored["fingerprint"]
            expected = parameter_shapes(architecture)
        except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError, UserError) as error:
            raise UserError(f"{path / CONFIG_FILE} is not the config of a CLIP encoder ({error}); {mend}") from None
        try:
            weights = safetensors.numpy.load_file(path / WEIGHTS_FILE)
            tokenizer_json = (path / TOKENIZER_FILE).read_text(encoding="utf-8")
        except (OSError, SafetensorError, UnicodeDecodeError) as error:
            raise UserError(f"the bi-encoder {path} is damaged ({error}); {mend}") from None
        _check_shapes(expected, weights, path / WEIGHTS_FILE, mend)
        try:
            encoder = cls(architecture, weights, tokenizer_json, marks, colours)
        except Exception as error:  # The tokenizers library raises a bare Exception for what it cannot parse.
            raise UserError(f"{path / TOKENIZER_FILE} is damaged ({error}); {mend}") from None
        if encoder.fingerprint != fingerprint:
            raise UserError(f"the files in {path} are not those that {CONFIG_FILE} was written with; {mend}")
        return encoder

    def _settings(self) -> dict[str, Any]:
        """All but the weights and the tokenizer."""
        parts: dict[str, Any] = {"architecture": self.architecture, "marks": self.marks, "colours": self.colours}
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
def _encode_texts(architecture: ClipArchitecture, marks: Marks) -> Callable[..., Float[Array, "B E"]]:
    model = abstract_clip(architecture)

    @jax.jit
    def encode(weights: dict[str, Array], tokens: Int[Array, "B T"]) -> Float[Array, "B E"]:
        return unit(bind(model, weights).text(tokens, end_places(tokens, marks.read_at)))

    return encode


@functools.cache
def _encode_pictures(architecture: ClipArchitecture, colours: Colours) -> Callable[..., Float[Array, "B E"]]:
    model = abstract_clip(architecture)

    @jax.jit
    def encode(
        weights: dict[str, Array], pictures: UInt8[Array, "B R R C"], kept: Bool[Array, "B P"]
    ) -> Float[Array, "B E"]:
        pixels = normalised(pictures, architecture.resolution, colours)
        return unit(bind(model, weights).image(pixels, kept))

    return encode


def parameter_shapes(architecture: ClipArchitecture) -> dict[str, tuple[int, ...]]:
    """Of every parameter, by name."""
    found = flat(nnx.to_pure_dict(nnx.state(abstract_clip(architecture))))
    return {name: leaf.shape for name, leaf in found.items()}


def _check_shapes(
    expected: Mapping[str, tuple[int, ...]], weights: dict[str, np.ndarray], file: Path, mend: str
) -> None:
    for name in sorted(expected.keys() | weights.keys()):
        found = weights[name].shape if name in weights else "absent"
        if name not in expected or found != expected[name]:
            raise UserError(f"{file}: tensor {name} is {found}, its config says {expected.get(name, 'absent')}; {mend}")
