"""The mesh and the table from logical axes to it."""

import jax
import pytest
from flax import nnx

from cm3leon_jax.errors import UserError
from cm3leon_jax.models.config import MeshConfig
from cm3leon_jax.models.sharding import RULES, make_mesh, shardings
from cm3leon_jax.models.transformer import Transformer


def abstract(config):
    return nnx.state(nnx.eval_shape(lambda: Transformer(config, 128, 16, nnx.Rngs(0))))


def test_every_parameter_is_placed_by_the_table(tiny_model):
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    placed = shardings(abstract(tiny_model), mesh)
    specs = {
        "/".join(str(key.key) for key in path): leaf.get_value().spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(placed, is_leaf=lambda x: isinstance(x, nnx.Variable))
    }
    assert specs["token_embedding"] == jax.P("tensor", "fsdp")
    assert specs["blocks/attention/query"] == jax.P(None, "fsdp", "tensor", None)
    assert specs["blocks/feed_forward/down"] == jax.P(None, "tensor", "fsdp")
    assert set(RULES) >= {"layers", "embed", "vocab", "heads", "ffn", "head", "position"}


def test_a_dimension_that_does_not_divide_is_named(tiny_model):
    mesh = make_mesh(MeshConfig(replica=1, fsdp=1, tensor=8))
    with pytest.raises(UserError, match=r"blocks.attention.*dimension \d \(heads, 4\).*mesh axis tensor \(8\)"):
        shardings(abstract(tiny_model), mesh)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (MeshConfig(replica=3, fsdp=1, tensor=1), "does not make 8 devices"),
        (MeshConfig(replica=3, fsdp=-1, tensor=1), "does not make 8 devices"),
        (MeshConfig(replica=-1, fsdp=-1), "only one of"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(mesh, message):
    with pytest.raises(UserError, match=message):
        make_mesh(mesh)


def test_the_free_axis_takes_the_rest():
    assert dict(make_mesh(MeshConfig(replica=2, fsdp=-1, tensor=2)).shape) == {"replica": 2, "fsdp": 2, "tensor": 2}
