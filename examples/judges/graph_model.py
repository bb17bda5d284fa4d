"""Graph models of TensorFlow.js, run by TensorFlow."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cm3leon_jax.errors import UserError

# Operations that TensorFlow.js fuses with what follows them: the operation alone, and which attributes are its own.
_CONVOLUTION = ("T", "strides", "padding", "data_format", "dilations", "explicit_paddings")
_FUSED = {
    "_FusedConv2D": ("Conv2D", _CONVOLUTION),
    "FusedDepthwiseConv2dNative": ("DepthwiseConv2dNative", _CONVOLUTION),
    "_FusedMatMul": ("MatMul", ("T", "transpose_a", "transpose_b")),
}
_ACTIVATIONS = ("Relu", "Relu6", "Elu", "Sigmoid", "Tanh")

Node = Mapping[str, Any]


def load_graph_model(
    file: str | Path, inputs: Sequence[str], outputs: Sequence[str]
) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """Loads a graph model: a .json file with the graph, beside files of its weights.

    Args:
      file: the .json file.
      inputs: names of all nodes that are given.
      outputs: names of nodes to compute.

    Returns:
      A function of the inputs by name, which returns the outputs by name.

    Raises:
      UserError: if TensorFlow is not installed, or the model is not there, damaged, or uses what is not known here.
    """
    tf = _import_tensorflow()
    from google.protobuf import json_format
    from tensorflow.core.framework import graph_pb2

    file = Path(file)
    try:
        model = json.loads(file.read_text(encoding="utf-8"))
        weights = dict(_weights(model["weightsManifest"], file.parent))
        nodes = [part for node in model["modelTopology"]["node"] for part in split_fused(node)]
        graph = graph_pb2.GraphDef()
        for node in nodes:
            attributes = {name: value for name, value in node.get("attr", {}).items() if name != "value"}
            json_format.ParseDict({**node, "attr": attributes}, parsed := graph.node.add())
            if node["op"] == "Const":
                parsed.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(weights[node["name"]]))
        whole = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph, name=""), [])
        function = whole.prune([f"{name}:0" for name in inputs], [f"{name}:0" for name in outputs])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, json_format.ParseError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"the graph model {file} cannot be loaded ({type(error).__name__}: {reason}): "
            "give the .json file of a TensorFlow.js graph model, with its files of weights beside it"
        ) from None

    def run(given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = function(*(tf.constant(given[name]) for name in inputs))
        return {name: each.numpy() for name, each in zip(outputs, found, strict=True)}

    return run


def split_fused(node: Node) -> Iterator[Node]:
    """The operations of a fused one, which TensorFlow.js knows and TensorFlow does not on every device.

    Raises:
      ValueError: for a fused operation or activation of another kind.
    """
    attributes = node.get("attr", {})
    if "fused_ops" not in attributes:
        yield node
        return
    if node["op"] not in _FUSED:
        raise ValueError(f"the operation {node['op']} is not known here")
    operation, own = _FUSED[node["op"]]
    followers = [base64.b64decode(text).decode() for text in attributes["fused_ops"].get("list", {}).get("s", [])]
    names = [f"{node['name']}/{number}" for number in range(len(followers))] + [node["name"]]
    kept = {name: attributes[name] for name in own if name in attributes}
    yield {"name": names[0], "op": operation, "input": node["input"][:2], "attr": kept}
    for last, name, follower in zip(names, names[1:], followers, strict=False):
        if follower != "BiasAdd" and follower not in _ACTIVATIONS:
            raise ValueError(f"{node['op']} fused with {follower} is not known here")
        bias = [node["input"][2]] if follower == "BiasAdd" else []
        yield {"name": name, "op": follower, "input": [last, *bias], "attr": {"T": attributes["T"]}}


def _weights(manifest: list[Mapping[str, Any]], folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Each weight by name; a quantized one is scaled back."""
    for group in manifest:
        content = b"".join((folder / Path(path).name).read_bytes() for path in group["paths"])
        offset = 0
        for weight in group["weights"]:
            quantization = weight.get("quantization", {})
            stored = np.dtype(quantization.get("dtype", weight["dtype"]))
            values = np.frombuffer(content, stored, math.prod(weight["shape"]), offset)
            offset += values.nbytes
            if "scale" in quantization:
                values = values * np.float64(quantization["scale"]) + quantization["min"]
            yield weight["name"], values.astype(weight["dtype"]).reshape(weight["shape"])
        if offset != len(content):
            raise ValueError(f"{len(content) - offset} bytes of {', '.join(group['paths'])} belong to no weight")


def _import_tensorflow() -> Any:
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UserError(f"a graph model needs TensorFlow ({error}): pip install 'cm3leon_jax[data]'") from None
    # The accelerator's memory is for the model that is judged.
    tf.config.set_visible_devices([], "GPU")
    return tf
