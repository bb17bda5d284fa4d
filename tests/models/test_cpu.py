"""The einsum of a weight is the plain one: its values, its gradients, and on an accelerator its program too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3leon_jax.models import cpu
from cm3leon_jax.models.config import MeshConfig
from cm3leon_jax.models.sharding import make_mesh

SIZES = {"B": 2, "L": 6, "D": 8, "F": 12, "H": 4, "d": 2, "N": 3}
# Wide to narrow and back, one axis and two.
EQUATIONS = ("BLD,DF->BLF", "BLF,FD->BLD", "BLD,DHd->BLHd", "BLHd,HdD->BLD", "BLF,FHd->BLHd", "BLD,DN->BLN")


def inputs(equation: str, dtype: str = "float32"):
    shapes = [[SIZES[axis] for axis in side] for side in equation.replace("->", ",").split(",")]
    return [jax.random.normal(jax.random.key(n), shape).astype(dtype) for n, shape in enumerate(shapes)]


def value_and_gradients(einsum, equation, x, weight, d_out):
    out, backward = jax.vjp(lambda x, weight: einsum(equation, x, weight), x, weight)
    return out, *backward(d_out)


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("equation", EQUATIONS)
def test_is_the_plain_einsum(equation, dtype, degree):
    arrays = inputs(equation, dtype)
    expected = value_and_gradients(jnp.einsum, equation, *arrays)
    mesh = make_mesh(MeshConfig(replica=1, fsdp=degree, tensor=degree), jax.devices()[: degree * degree])
    with jax.set_mesh(mesh):
        found = jax.jit(value_and_gradients, static_argnums=(0, 1))(cpu.einsum, equation, *arrays)
    np.testing.assert_array_equal(found[0], expected[0])
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype
        tolerance = 1e-5 if dtype == "float32" else 0.05
        np.testing.assert_allclose(mine.astype("float32"), theirs.astype("float32"), rtol=tolerance, atol=tolerance)


def lowered_gradient(einsum, equation: str, platform: str) -> str:
    step = jax.jit(lambda *arrays: value_and_gradients(einsum, equation, *arrays))
    return step.trace(*inputs(equation)).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_on_an_accelerator_the_program_is_that_of_the_plain_einsum(monkeypatch, platform, equation):
    monkeypatch.setattr(cpu, "platform", lambda: platform)
    assert lowered_gradient(cpu.einsum, equation, platform) == lowered_gradient(jnp.einsum, equation, platform)


def test_on_a_cpu_the_narrow_operand_is_transposed(monkeypatch):
    monkeypatch.setattr(cpu, "platform", lambda: "cpu")
    for equation in ("BLD,DF->BLF", "BLF,FD->BLD"):
        program = lowered_gradient(cpu.einsum, equation, "cpu")
        transposed = [line for line in program.splitlines() if "stablehlo.transpose" in line]
        assert any("-> tensor<8x2x6xf32>" in line for line in transposed)
        assert not any("tensor<12x2x6xf32>" in line for line in transposed)
