"""How a tensor of another project is laid out, seen from our parameter: one entry, read in both directions.

Others keep a matrix as [out, in] and the heads of an attention merged; ours are [in, out] with heads apart, and all
layers stacked in one array.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Shaped

from cm3leon_jax.errors import UserError
from cm3leon_jax.huggingface.reading_weights import Index, StoredTensor

Shape = tuple[int, ...]

# Axes of a tensor, each a group of ours that are merged into it.
SCALAR = ()
VECTOR = ((0,),)
MATRIX = ((0,), (1,))
TRANSPOSED = ((1,), (0,))
# The weights of projections into heads and out of them, and the bias of one into heads.
TO_HEADS, FROM_HEADS, HEADS = ((1, 2), (0,)), ((2,), (0, 1)), ((0, 1),)


@dataclass(frozen=True)
class TensorMap:
    """One tensor of a folder."""

    # "{}" stands for the layer: then our parameter is a stack of such tensors.
    name: str
    # For each axis of the tensor, those of ours (without the axis of layers) that are merged into it, in order.
    axes: tuple[tuple[int, ...], ...]
    # Rows that the tensor has before the first of ours.
    extra_rows: int = 0

    @property
    def is_stacked(self) -> bool:
        """Whether our parameter holds one such tensor per layer."""
        return "{}" in self.name

    def names(self, ours: Shape) -> list[str]:
        """The names of the tensors that make up a parameter of this shape."""
        return [self.name.format(layer) for layer in range(ours[0])] if self.is_stacked else [self.name]

    def shape(self, ours: Shape) -> Shape:
        """The shape of each tensor, given that of our parameter."""
        ours = ours[1:] if self.is_stacked else ours
        sizes = [math.prod(ours[axis] for axis in group) for group in self.axes]
        return (sizes[0] + self.extra_rows, *sizes[1:]) if sizes else ()

    def from_ours(self, parameter: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """The tensor of a parameter, or of one layer of it; rows before the first of ours are zeros."""
        order = [axis for group in self.axes for axis in group]
        merged = [math.prod(parameter.shape[axis] for axis in group) for group in self.axes]
        tensor = parameter.transpose(order).reshape(merged)
        return np.pad(tensor, [(self.extra_rows, 0), *[(0, 0)] * (tensor.ndim - 1)]) if self.extra_rows else tensor

    def to_ours(
        self, read: Callable[[Index], Float[np.ndarray, "..."]], ours: Shape, index: Index
    ) -> Float[np.ndarray, "..."]:
        """A part of one layer's parameter, for which no more of the tensor is read than whole heads.

        `ours` is the shape of the whole parameter, without the axis of layers.
        """
        ranges = [range(*part.indices(size)) for part, size in zip(index, ours, strict=True)]
        order = [axis for group in self.axes for axis in group]
        # Of merged axes only the first can be sliced contiguously; the others are read whole and sliced in memory.
        firsts = {group[0] for group in self.axes}
        read_sizes = [len(ranges[axis]) if axis in firsts else ours[axis] for axis in order]
        wanted = []
        for position, (first, *others) in enumerate(self.axes):
            width = math.prod(ours[axis] for axis in others)
            skipped = 0 if position else self.extra_rows
            wanted.append(slice(ranges[first].start * width + skipped, ranges[first].stop * width + skipped))
        part = read(tuple(wanted)).reshape(read_sizes).transpose(np.argsort(order).astype(int))
        return np.asarray(part[tuple(slice(None) if axis in firsts else cut for axis, cut in enumerate(index))])

    def read(self, tensors: Sequence[StoredTensor], ours: Shape, index: Index) -> Float32[np.ndarray, "..."]:
        """A part of a parameter, given the tensors that make it up."""
        if not self.is_stacked:
            return self.to_ours(tensors[0].read, ours, index)
        layers, *others = index
        sizes = [len(range(*part.indices(size))) for part, size in zip(index, ours, strict=True)]
        result = np.empty(sizes, np.float32)
        for layer, tensor in enumerate(tensors[layers]):
            result[layer] = self.to_ours(tensor.read, ours[1:], tuple(others))
        return result


def linear_maps(axes: tuple[tuple[int, ...], ...], names: Mapping[str, str]) -> dict[str, TensorMap]:
    """The weights and biases of linear layers, from our names to theirs; `axes` are those of the weights."""
    bias_axes = HEADS if axes == TO_HEADS else VECTOR
    weights = {ours: TensorMap(f"{theirs}.weight", axes) for ours, theirs in names.items()}
    return weights | {f"{ours}_bias": TensorMap(f"{theirs}.bias", bias_axes) for ours, theirs in names.items()}


def attention_maps(ours: str, theirs: str, output: str = "out_proj") -> dict[str, TensorMap]:
    """The four projections of an attention and their biases, given the prefixes of our names and of theirs."""
    heads = {f"{ours}.{name}": f"{theirs}.{name[0]}_proj" for name in ("query", "key", "value")}
    return linear_maps(TO_HEADS, heads) | linear_maps(FROM_HEADS, {f"{ours}.output": f"{theirs}.{output}"})


def norm_maps(
    names: Mapping[str, str], axes: tuple[tuple[int, ...], ...] = VECTOR, has_bias: bool = True
) -> dict[str, TensorMap]:
    """The scales, and biases if there are any, of norms, from our names to theirs."""
    scales = {f"{ours}.scale": TensorMap(f"{theirs}.weight", axes) for ours, theirs in names.items()}
    biases = {f"{ours}.bias": TensorMap(f"{theirs}.bias", axes) for ours, theirs in names.items()}
    return scales | (biases if has_bias else {})


def check_tensors(
    table: Mapping[str, TensorMap], shapes: Mapping[str, Shape], weights: Mapping[str, StoredTensor], folder: Path
) -> None:
    """Compares a folder's tensors with those that parameters of these shapes are made of.

    Raises a `UserError` that names the first tensor that is missing, has another shape, or has no place in the model.
    """
    expected: dict[str, Shape] = {}
    for name, shape in shapes.items():
        expected |= dict.fromkeys(table[name].names(shape), table[name].shape(shape))
    for name in sorted(expected.keys() | weights.keys()):
        found = weights[name].shape if name in weights else "absent"
        if found != expected.get(name, "absent"):
            raise UserError(
                f"{folder}: tensor {name} is {found}, by config.json it has to be {expected.get(name, 'absent')}: they "
                "do not belong together"
            )
