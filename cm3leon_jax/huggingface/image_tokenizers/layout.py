"""What another project calls the parameters of our VQGAN, read in both directions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float32

from cm3leon_jax.errors import UserError
from cm3leon_jax.huggingface.reading_weights import StoredTensor
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.huggingface.tensor_map import MATRIX, VECTOR, TensorMap
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig
from cm3leon_jax.image_tokenizers.vqgan.model import abstract_vqgan
from cm3leon_jax.named_parameters import parameters

CODEBOOK = "quantize.embedding"
# Kernels are [height, width, in, out] here, [out, in, height, width] in PyTorch.
_CONVOLUTION = ((3,), (2,), (0,), (1,))
# A convolution of one pixel that is stored as a linear layer, [out, in].
_LINEAR = ((3,), (2, 0, 1))
# The groups of every published norm.
_NORM_GROUPS = 32
_LEAST_NORM = 1e-12


@dataclass(frozen=True)
class LayoutWriter:
    """The files of a folder that another project reads."""

    # The name of the config's file, which is written as JSON (of which YAML is a superset).
    config_file: str
    # What the names of the files of weights begin with.
    stem: str
    # The object in it, given the config and the groups of all norms.
    write_config: Callable[[VQGANConfig, int], dict[str, Any]]
    # The groups that every norm has, where no config says.
    norm_groups: int | None = None


@dataclass(frozen=True)
class ImageTokenizerLayout:
    """One layout: the names of its modules, and what its weights take for granted."""

    # What a message calls it.
    title: str
    # A module that only this layout has, so that weights tell their layout by themselves.
    sign: str
    # What the names may begin with, in a whole model.
    prefixes: tuple[str, ...] = ("",)
    # Patterns and their replacements, one after the other, from our names of modules to theirs.
    modules: tuple[tuple[str, str], ...] = ()
    # Earlier spellings of their names, and today's.
    earlier: tuple[tuple[str, str], ...] = ()
    # Whether the decoder's levels are counted from the lowest resolution, ours from the full one.
    decoder_from_lowest: bool = False
    # Modules, by a pattern of their names, whose convolutions of one pixel are linear layers.
    linear: str = ""
    # Patterns of tensors that may be there besides.
    ignored: tuple[str, ...] = ()
    # Whether latents and code vectors are compared, and decoded, with length 1 (arXiv 2110.04627, section 3.2).
    unit_codes: bool = False
    # The filter of `Squaring` that its images were scaled with, where there is but one.
    filter: str | None = None
    # The `model_type` or class that the config.json beside the weights names, where there is one.
    kinds: tuple[str, ...] = ()
    # The fields of VQGANConfig that this config.json says and the weights do not.
    read_config: Callable[[StoredConfig], dict[str, Any]] = field(default=lambda stored: {})
    # How weights of this layout are written; None: they are only read.
    writer: LayoutWriter | None = None

    def all_ignored(self) -> tuple[str, ...]:
        """The patterns of what may be there besides, whatever the names begin with."""
        return tuple(prefix + pattern for prefix in self.prefixes for pattern in self.ignored)

    def tensor(self, ours: str, levels: int) -> TensorMap:
        """Where a parameter of our VQGAN is, given how many levels it has."""
        module, _, kind = ours.rpartition(".")
        if self.decoder_from_lowest:
            module = re.sub(r"^decoder\.up\.(\d+)", lambda found: f"decoder.up.{levels - 1 - int(found[1])}", module)
        for pattern, replacement in self.modules:
            module = re.sub(pattern, replacement, module)
        if kind == "embedding":
            return TensorMap(f"{module}.embedding.weight", MATRIX)
        if kind == "kernel":
            is_linear = bool(self.linear) and re.search(self.linear, module) is not None
            return TensorMap(f"{module}.weight", _LINEAR if is_linear else _CONVOLUTION)
        return TensorMap(f"{module}.{'weight' if kind == 'scale' else 'bias'}", VECTOR)

    def tensors(self, config: VQGANConfig) -> dict[str, TensorMap]:
        """Where each parameter of the VQGAN of a config is."""
        levels = len(config.channel_multipliers)
        return {name: self.tensor(name, levels) for name in parameter_shapes(config)}

    def prefix(self, names: Iterable[str]) -> str | None:
        """What the names of such weights begin with; None if these are others."""
        names = set(names)
        return next((each for each in self.prefixes if any(name.startswith(each + self.sign) for name in names)), None)

    def without_prefix(self, weights: Mapping[str, StoredTensor], prefix: str) -> dict[str, StoredTensor]:
        """The tensors of the image tokenizer in a whole model, under the names of today."""
        found = {}
        for name, tensor in weights.items():
            if name.startswith(prefix):
                name = name.removeprefix(prefix)
                for pattern, replacement in self.earlier:
                    name = re.sub(pattern, replacement, name)
                found[name] = tensor
        return found

    def architecture(self, weights: Mapping[str, StoredTensor], resolution: int) -> dict[str, Any]:
        """The fields of VQGANConfig that follow from the shapes of weights, and the layout's own.

        Raises a `UserError` that names a tensor without which they do not.
        """
        source = next(iter(weights.values())).file

        def shape(ours: str) -> tuple[int, ...]:
            name = self.tensor(ours, 1).name
            if name not in weights:
                raise UserError(f"{source}: there is no tensor {name}: this is no whole {self.title}")
            if len(weights[name].shape) < 2:
                raise UserError(f"{source}: tensor {name} is {weights[name].shape}: this is no {self.title}")
            return weights[name].shape

        def count(ours: str) -> int:
            """How many of a module there are, which "{}" counts; the encoder's, as every layout counts those alike."""
            number = 0
            while self.tensor(ours.format(number), 1).name in weights:
                number += 1
            return number

        base, in_channels, *_ = shape("encoder.conv_in.kernel")
        levels = count("encoder.down.{}.block.0.conv1.kernel")
        widths = [shape(f"encoder.down.{level}.block.0.conv1.kernel")[0] for level in range(levels)]
        if not widths or any(width % base for width in widths):
            raise UserError(
                f"{source}: levels of {widths} channels are no multiples of {base}: this is no {self.title}"
            )
        codebook_size, embedding_dim = shape(CODEBOOK)
        attention = [level for level in range(levels) if count(f"encoder.down.{level}.attn.{{}}.q.kernel")]
        return {
            "in_channels": in_channels,
            "codebook_size": codebook_size,
            "base_channels": base,
            "channel_multipliers": tuple(width // base for width in widths),
            "num_res_blocks": count("encoder.down.0.block.{}.conv1.kernel"),
            "attention_resolutions": tuple(resolution // 2**level for level in attention),
            "mid_block": True,
            "encoder": "convolutional",
            "norm_groups": _NORM_GROUPS,
            "latent_channels": shape("encoder.conv_out.kernel")[0],
            "embedding_dim": embedding_dim,
        }

    def read(self, config: VQGANConfig, weights: Mapping[str, StoredTensor]) -> dict[str, Float32[np.ndarray, "..."]]:
        """The parameters by our names, of weights that have all tensors in the right shapes."""
        result, table = {}, self.tensors(config)
        for name, shape in parameter_shapes(config).items():
            whole = (slice(None),) * len(shape)
            result[name] = np.asarray(table[name].read([weights[table[name].name]], shape, whole), order="C")
        if self.unit_codes:
            # Of vectors of length 1 the nearest by distance is the nearest by angle, however long the latent is.
            lengths = np.linalg.norm(result[CODEBOOK], axis=-1, keepdims=True)
            result[CODEBOOK] /= np.maximum(lengths, _LEAST_NORM)
        return result


@cache
def parameter_shapes(config: VQGANConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a VQGAN, by name."""
    return {name: value.shape for name, value in parameters(abstract_vqgan(config)).items()}
