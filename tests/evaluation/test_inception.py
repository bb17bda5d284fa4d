"""Inception-v3 with random weights: the features and distance that pytorch-fid and clean-fid have of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.features import inception_features
from cm3leon_jax.evaluation.frechet import frechet_distance
from cm3leon_jax.evaluation.inception import expected_tensors, load_inception
from tests.evaluation import made

RECORDED = Path(__file__).parent / "recorded"


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return {name: made.tensor(name, shape) for name, shape in expected_tensors().items()}


@pytest.fixture(scope="module")
def weights(tensors: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    file = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    # The published file also has a classifier, and counts of batches.
    unread = {"fc.bias": np.zeros(1008, np.float32), "Conv2d_1a_3x3.bn.num_batches_tracked": np.zeros((), np.int64)}
    safetensors.numpy.save_file(tensors | unread, file)
    return load_inception(file)


def test_features_and_distance_are_those_of_pytorch_fid_and_clean_fid(weights):
    recorded, images = np.load(RECORDED / "images.npz"), made.images()
    features = inception_features(images, weights, "pytorch-fid", batch_size=2)
    np.testing.assert_allclose(features, recorded["pytorch_fid"], rtol=1e-4, atol=1e-4)
    clean = inception_features(images[:2], weights, "clean-fid", batch_size=2)
    np.testing.assert_allclose(clean, recorded["clean_fid"], rtol=1e-4, atol=1e-4)
    assert np.abs(clean - features[:2]).max() > 0.1

    real, generated = np.array_split(features[:, :: made.EVERY], 2)
    expected = json.loads((RECORDED / "images.json").read_text())["frechet_of_images"]
    assert frechet_distance(real, generated).value == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("Mixed_5b.branch1x1.conv.weight", None, "has no tensor Mixed_5b.branch1x1.conv.weight"),
        (
            "Conv2d_2a_3x3.bn.bias",
            np.zeros(31, np.float32),
            r"tensor Conv2d_2a_3x3.bn.bias has shape \(31,\), the FID's Inception-v3 \(32,\); docs/evaluation.md",
        ),
    ],
)
def test_weights_of_another_network_are_one_line(tensors, name, change, message, tmp_path):
    others = {key: value for key, value in tensors.items() if key.startswith(("Conv", "Mixed_5b"))} | {name: change}
    safetensors.numpy.save_file({k: v for k, v in others.items() if v is not None}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=message):
        load_inception(tmp_path / "other.safetensors")


def test_a_file_that_is_none_is_one_line(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"PK\x03\x04 a pickle")
    for file in ("weights.pth", "absent.safetensors"):
        with pytest.raises(UserError, match="Inception weights cannot be read from"):
            load_inception(tmp_path / file)
