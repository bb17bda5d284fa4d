"""LPIPS against an independent NumPy computation on random weights."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from cm3leon_jax.errors import UserError
from cm3leon_jax.image_tokenizers.vqgan import lpips


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    values = {}
    for name, shape in lpips.expected_shapes().items():
        value = random.standard_normal(shape, np.float32) * np.float32(
            np.sqrt(2 / np.prod(shape[1:]) if shape[1:] else 0.1)
        )
        values[name] = np.abs(value) if name.startswith("lin") else value
    return values


@pytest.fixture(scope="module")
def weights(tensors: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    file = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    safetensors.numpy.save_file(tensors, file)
    return lpips.load_lpips(file)


PIXELS = np.random.default_rng(1).uniform(-1, 1, (2, 1, 32, 32, 3)).astype(np.float32)


def reference(tensors: dict[str, np.ndarray], first: np.ndarray, second: np.ndarray) -> float:
    """One pair [3 32 32], channels first, as the published description reads."""

    def convolve(x: np.ndarray, index: int) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (1, 1), (1, 1))), (3, 3), axis=(1, 2))
        out = np.tensordot(tensors[f"features.{index}.weight"], windows, axes=([1, 2, 3], [0, 3, 4]))
        return np.maximum(out + tensors[f"features.{index}.bias"][:, None, None], 0)

    def features(x: np.ndarray) -> list[np.ndarray]:
        x = (x - np.array([-0.030, -0.088, -0.188])[:, None, None]) / np.array([0.458, 0.448, 0.450])[:, None, None]
        found = []
        for layers in ([0, 2], [5, 7], [10, 12, 14], [17, 19, 21], [24, 26, 28]):
            for index in layers:
                x = convolve(x, index)
            found.append(x / np.sqrt((x**2).sum(0)))
            c, h, w = x.shape
            x = x.reshape(c, h // 2, 2, w // 2, 2).max((2, 4))
        return found

    pairs = zip(features(first), features(second), strict=True)
    return sum(
        float((tensors[f"lin{k}.model.1.weight"][0] * (a - b) ** 2).sum(0).mean()) for k, (a, b) in enumerate(pairs)
    )


def test_distance_agrees_with_numpy(tensors: dict[str, np.ndarray], weights: dict[str, np.ndarray]) -> None:
    on_device = {name: jnp.asarray(value) for name, value in weights.items()}
    expected = reference(tensors, *(image[0].transpose(2, 0, 1).astype(np.float64) for image in PIXELS))
    found = jax.jit(lpips.lpips_distance)(on_device, jnp.asarray(PIXELS[0]), jnp.asarray(PIXELS[1]))
    np.testing.assert_allclose(found, [expected], rtol=1e-3)


@pytest.mark.slow
def test_identical_images_are_at_zero_with_a_finite_gradient(weights: dict[str, np.ndarray]) -> None:
    gray = jnp.asarray(PIXELS[0, ..., :1])
    on_device = {name: jnp.asarray(value) for name, value in weights.items()}
    # A bias that switches all of a stage off: its unit features have no direction.
    on_device["features.28.bias"] = jnp.full(512, -1e6)
    to_grey = jax.jit(jax.value_and_grad(lambda x, weights: lpips.lpips_distance(weights, x, gray)[0]))
    value, gradient = to_grey(gray, on_device)
    # The two sides may be computed by differently fused programs: zero to rounding.
    assert abs(value) < 1e-10 and np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features.5.weight": None}, "has no tensor features.5.weight"),
        ({"features.0.bias": np.zeros(63, np.float32)}, r"tensor features.0.bias has shape \(63,\)"),
        ({"lin2.model.1.weight": -np.ones((1, 256, 1, 1), np.float32)}, "lin2.model.1.weight has negative"),
    ],
)
def test_a_wrong_file_is_explained(
    tensors: dict[str, np.ndarray], tmp_path: Path, change: dict[str, np.ndarray | None], message: str
) -> None:
    file = tmp_path / "wrong.safetensors"
    kept = {name: value for name, value in (tensors | change).items() if value is not None}
    safetensors.numpy.save_file(kept, file)
    with pytest.raises(UserError, match=message):
        lpips.load_lpips(file)


def test_a_missing_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        lpips.load_lpips(tmp_path / "absent.safetensors")
