"""The tables between our parameters and those of other decoders, both ways, whole and in parts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.huggingface.families import FAMILIES
from cm3leon_jax.models.config import ModelConfig
from tests.huggingface.conftest import by_shape

SIZES = dict(num_layers=2, model_dim=12, num_heads=3, ffn_dim=10, norm_scale_and_bias=True)
LLAMA = dict(norm="rms", gated=True, positions="rotary", tied_embeddings=False, num_key_value_heads=1, biases=True)
MODELS = {
    "opt": ModelConfig(**SIZES, biases=True, embedding_dim=8),
    "llama": ModelConfig(**SIZES, **LLAMA),
    "qwen3": ModelConfig(**SIZES, **LLAMA, query_key_norm="rms", head_size=6),
    "chameleon": ModelConfig(**SIZES, **LLAMA, query_key_norm="layer", query_key_norm_per_head=True),
}
TABLES = {name: FAMILIES.load(name).tensors for name in MODELS}
SHAPES = {name: by_shape(config) for name, config in MODELS.items()}


@pytest.mark.parametrize("family", MODELS)
def test_every_parameter_has_an_entry_and_every_entry_a_parameter(family):
    assert SHAPES[family].keys() == TABLES[family].keys()
    assert len({tensor.name for tensor in TABLES[family].values()}) == len(TABLES[family])


def test_a_matrix_becomes_out_by_in_with_heads_merged():
    table = TABLES["opt"]
    query = np.arange(12 * 3 * 4).reshape(12, 3, 4)
    found = table["blocks.attention.query"].from_ours(query)
    assert found.shape == (12, 12)
    # The second number of the third head, of the sixth input.
    assert found[2 * 4 + 1, 5] == query[5, 2, 1]
    output = np.arange(3 * 4 * 12).reshape(3, 4, 12)
    assert table["blocks.attention.output"].from_ours(output)[5, 2 * 4 + 1] == output[2, 1, 5]
    assert table["position_embedding"].shape((32, 12)) == (34, 12)
    assert not table["position_embedding"].from_ours(np.ones((32, 12)))[:2].any()


@pytest.mark.parametrize(("family", "name"), [(family, name) for family in MODELS for name in sorted(TABLES[family])])
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_any_part_comes_back(family, name, data):
    tensor, shape = TABLES[family][name], SHAPES[family][name]
    layer = shape[1:] if tensor.is_stacked else shape
    parameter = np.random.default_rng(0).standard_normal(layer).astype(np.float32)
    theirs = tensor.from_ours(parameter)
    assert theirs.shape == tensor.shape(shape)

    def cut(size):
        start = data.draw(st.integers(0, size))
        return slice(start, data.draw(st.integers(start, size)))

    index = tuple(cut(size) for size in layer)
    np.testing.assert_array_equal(tensor.to_ours(lambda part: theirs[part], layer, index), parameter[index])
