"""The table between our parameters and OPT's tensors, both ways, whole and in parts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.huggingface.families.opt_names import IN_LAYERS, OUTSIDE_LAYERS
from cm3leon_jax.models.config import ModelConfig
from tests.huggingface.conftest import by_shape

TABLE = {**OUTSIDE_LAYERS, **IN_LAYERS}
SHAPES = by_shape(
    ModelConfig(
        num_layers=2, model_dim=12, num_heads=3, ffn_dim=10, biases=True, norm_scale_and_bias=True, embedding_dim=8
    )
)


def test_every_parameter_has_a_row_and_every_row_a_parameter():
    assert SHAPES.keys() == TABLE.keys()
    assert len({tensor.name for tensor in TABLE.values()}) == len(TABLE)


def test_a_matrix_becomes_out_by_in_with_heads_merged():
    query = np.arange(12 * 3 * 4).reshape(12, 3, 4)
    found = TABLE["blocks.attention.query"].from_ours(query)
    assert found.shape == (12, 12)
    # The second number of the third head, of the sixth input.
    assert found[2 * 4 + 1, 5] == query[5, 2, 1]
    output = np.arange(3 * 4 * 12).reshape(3, 4, 12)
    assert TABLE["blocks.attention.output"].from_ours(output)[5, 2 * 4 + 1] == output[2, 1, 5]
    assert TABLE["position_embedding"].shape((32, 12)) == (34, 12)


@pytest.mark.parametrize("name", sorted(TABLE))
@settings(deadline=None)
@given(data=st.data())
def test_any_part_comes_back(name, data):
    tensor, ours = TABLE[name], SHAPES[name]
    parameter = np.random.default_rng(0).standard_normal(ours).astype(np.float32)
    front = np.full((tensor.rows_in_front, *ours[1:]), np.nan, np.float32)
    theirs = tensor.from_ours(parameter)
    theirs = np.concatenate([front, theirs]) if tensor.rows_in_front else theirs
    assert theirs.shape == tensor.shape(ours)

    def cut(size):
        start = data.draw(st.integers(0, size))
        return slice(start, data.draw(st.integers(start, size)))

    index = tuple(cut(size) for size in ours)
    np.testing.assert_array_equal(tensor.to_ours(lambda part: theirs[part], ours, index), parameter[index])
