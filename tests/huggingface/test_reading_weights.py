"""Tensors of a folder, in parts, and only from that folder."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from cm3leon_jax.errors import UserError
from cm3leon_jax.huggingface.reading_weights import open_weights
from cm3leon_jax.huggingface.writing_weights import LazyTensor, write_weights


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_any_part_of_any_type_is_float32(tmp_path, dtype):
    value = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    tensors = [LazyTensor("a", (5, 7), lambda: value), LazyTensor("b", (7,), lambda: value[0])]
    write_weights(tmp_path, tensors, dtype, 10**6, lambda: None)
    found = open_weights(tmp_path)
    assert {name: tensor.shape for name, tensor in found.items()} == {"a": (5, 7), "b": (7,)}
    part = found["a"].read((slice(1, 4), slice(2, 3)))
    assert part.dtype == np.float32
    rounded = value.astype(np.dtype(getattr(ml_dtypes, dtype, dtype))).astype(np.float32)
    np.testing.assert_array_equal(part, rounded[1:4, 2:3])


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "../elsewhere.safetensors"}}, "no file beside it"),
        ({"weight_map": {"a": "absent.safetensors"}}, "no file beside it"),
        ({"weight_map": {"a": 3}}, "no file beside it"),
        ({"weights": {}}, "has no weight_map"),
        ([], "not an object"),
        ({"weight_map": {"a": "x" * 5_000}}, "no file beside it"),
        ({"weight_map": {"a": "x\0.safetensors"}}, "no file beside it"),
        ({"weight_map": {"a": ["x"]}}, "has no weight_map"),
        ({"weight_map": 3}, "has no weight_map"),
    ],
)
def test_an_index_names_files_beside_it(tmp_path, index, message):
    safetensors.numpy.save_file({"a": np.zeros(2, np.float32)}, tmp_path / "elsewhere.safetensors")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=message):
        open_weights(folder)


def test_weights_that_are_no_floats_are_refused(tmp_path):
    safetensors.numpy.save_file({"a": np.zeros(2, np.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"a is of type I8, which is none of"):
        open_weights(tmp_path)
