"""Where each of our parameters lies in OPT, and in which shape: one table, read in both directions.

OPT keeps a matrix as [out, in] and the heads of an attention merged; ours are [in, out] with heads apart, and all
layers in one array.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

Shape = tuple[int, ...]
Index = tuple[slice, ...]

# In front of the names in a whole model; some published folders leave it out.
PREFIX = "model."
# OPT's table of positions begins with two rows for tokens that are padding.
_POSITIONS_IN_FRONT = 2


@dataclass(frozen=True)
class OptTensor:
    """One tensor of OPT, seen from ours."""

    # "{}" stands for the layer.
    name: str
    # For each axis of OPT's tensor, those of ours (without the axis of layers) that are merged into it, in order.
    axes: tuple[tuple[int, ...], ...]
    # Rows that OPT has before the first of ours.
    rows_in_front: int = 0

    @property
    def is_by_rows(self) -> bool:
        """Whether the rows of OPT's tensor are those of ours."""
        return self.axes[0] == (0,)

    def shape(self, ours: Shape) -> Shape:
        """The shape of OPT's tensor, given that of one layer's parameter."""
        rows, *others = (math.prod(ours[axis] for axis in group) for group in self.axes)
        return (rows + self.rows_in_front, *others)

    def from_ours(self, parameter: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """OPT's arrangement of (some rows of) one layer's parameter, without the rows in front."""
        order = [axis for group in self.axes for axis in group]
        merged = [math.prod(parameter.shape[axis] for axis in group) for group in self.axes]
        return parameter.transpose(order).reshape(merged)

    def to_ours(
        self, read: Callable[[Index], Float[np.ndarray, "..."]], ours: Shape, index: Index
    ) -> Float[np.ndarray, "..."]:
        """A part of one layer's parameter, for which no more of OPT's tensor is read than whole heads.

        Args:
          read: gives a part of OPT's tensor.
          ours: the shape of the whole parameter.
          index: which part of it.
        """
        ranges = [range(*part.indices(size)) for part, size in zip(index, ours, strict=True)]
        order = [axis for group in self.axes for axis in group]
        # Of merged axes only the first can be cut without reading what lies between.
        firsts = {group[0] for group in self.axes}
        read_sizes = [len(ranges[axis]) if axis in firsts else ours[axis] for axis in order]
        wanted = []
        for place, (first, *others) in enumerate(self.axes):
            width = math.prod(ours[axis] for axis in others)
            front = 0 if place else self.rows_in_front
            wanted.append(slice(ranges[first].start * width + front, ranges[first].stop * width + front))
        part = read(tuple(wanted)).reshape(read_sizes).transpose(np.argsort(order))
        return part[tuple(slice(None) if axis in firsts else cut for axis, cut in enumerate(index))]


_AS_IT_IS = ((0,), (1,))
_TRANSPOSED = ((1,), (0,))
_VECTOR = ((0,),)
_TO_HEADS = ((1, 2), (0,))
_FROM_HEADS = ((2,), (0, 1))
_HEADS = ((0, 1),)

_LAYER = "decoder.layers.{}."

# In the order in which a forward pass needs them.
OUTSIDE_LAYERS = {
    "token_embedding": OptTensor("decoder.embed_tokens.weight", _AS_IT_IS),
    "position_embedding": OptTensor("decoder.embed_positions.weight", _AS_IT_IS, _POSITIONS_IN_FRONT),
    "project_in": OptTensor("decoder.project_in.weight", _TRANSPOSED),
    "project_out": OptTensor("decoder.project_out.weight", _TRANSPOSED),
    "final_norm.scale": OptTensor("decoder.final_layer_norm.weight", _VECTOR),
    "final_norm.bias": OptTensor("decoder.final_layer_norm.bias", _VECTOR),
}
IN_LAYERS = {
    "blocks.attention_norm.scale": OptTensor(_LAYER + "self_attn_layer_norm.weight", _VECTOR),
    "blocks.attention_norm.bias": OptTensor(_LAYER + "self_attn_layer_norm.bias", _VECTOR),
    "blocks.attention.query": OptTensor(_LAYER + "self_attn.q_proj.weight", _TO_HEADS),
    "blocks.attention.query_bias": OptTensor(_LAYER + "self_attn.q_proj.bias", _HEADS),
    "blocks.attention.key": OptTensor(_LAYER + "self_attn.k_proj.weight", _TO_HEADS),
    "blocks.attention.key_bias": OptTensor(_LAYER + "self_attn.k_proj.bias", _HEADS),
    "blocks.attention.value": OptTensor(_LAYER + "self_attn.v_proj.weight", _TO_HEADS),
    "blocks.attention.value_bias": OptTensor(_LAYER + "self_attn.v_proj.bias", _HEADS),
    "blocks.attention.output": OptTensor(_LAYER + "self_attn.out_proj.weight", _FROM_HEADS),
    "blocks.attention.output_bias": OptTensor(_LAYER + "self_attn.out_proj.bias", _VECTOR),
    "blocks.feed_forward_norm.scale": OptTensor(_LAYER + "final_layer_norm.weight", _VECTOR),
    "blocks.feed_forward_norm.bias": OptTensor(_LAYER + "final_layer_norm.bias", _VECTOR),
    "blocks.feed_forward.up": OptTensor(_LAYER + "fc1.weight", _TRANSPOSED),
    "blocks.feed_forward.up_bias": OptTensor(_LAYER + "fc1.bias", _VECTOR),
    "blocks.feed_forward.down": OptTensor(_LAYER + "fc2.weight", _TRANSPOSED),
    "blocks.feed_forward.down_bias": OptTensor(_LAYER + "fc2.bias", _VECTOR),
}
# The output layer of a folder that stores it beside the embedding table to which it is tied.
TIED = "lm_head.weight"
