"""The metrics `fid` and `encoder_distance`: names, options, and that distances grow with noise."""

from types import SimpleNamespace

import numpy as np
import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation import encoder_distance, fid
from cm3leon_jax.evaluation.encoder_distance import EncoderDistance
from cm3leon_jax.evaluation.fid import FrechetInceptionDistance
from cm3leon_jax.evaluation.frechet import moments
from tests.evaluation import made
from tests.evaluation.stand_in import ColorEncoder, given_images

REAL = np.stack([made.image(seed, 8, 8, 3) for seed in range(60)])
OTHERS = np.stack([made.image(seed, 8, 8, 3) for seed in range(100, 150)])


@pytest.fixture(autouse=True)
def colors(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of networks: the mean colors of the quarters of an image."""
    encoder = ColorEncoder()
    monkeypatch.setattr(fid, "load_inception", lambda file: {"file": np.array(file)})
    monkeypatch.setattr(
        fid, "inception_features", lambda images, weights, *_: encoder.encode_images(images[: len(images)])
    )
    monkeypatch.setattr(encoder_distance, "load_encoder", lambda path: encoder)


def test_values_and_their_names():
    found = FrechetInceptionDistance(weights="w")(given_images(OTHERS, REAL))
    parts = ("precision", "recall", "density", "coverage")
    assert found.keys() == {"fid", "kid", *(f"inception_{part}" for part in parts)}
    of_encoder = EncoderDistance(encoder="e", name="clip")(given_images(OTHERS, REAL))
    assert of_encoder.keys() == {"clip_frechet", "clip_cmmd", *(f"clip_{part}" for part in parts)}
    assert of_encoder["clip_frechet"] == found["fid"]


def test_ranks_of_a_prompt():
    found = FrechetInceptionDistance(weights="w")(given_images(OTHERS, REAL, per_prompt=2))
    assert {"fid", "fid_rank_1", "fid_all"} < found.keys()
    assert found["fid"].n == 25 and found["fid_all"].n == 50
    assert found["fid"] == FrechetInceptionDistance(weights="w")(given_images(OTHERS[::2], REAL))["fid"]


def test_a_reference_of_statistics(tmp_path):
    mean, covariance = moments(ColorEncoder().encode_images(REAL))
    np.savez(tmp_path / "real.npz", mu=mean, sigma=covariance)
    found = FrechetInceptionDistance(weights="w", reference=str(tmp_path / "real.npz"))(given_images(OTHERS, REAL[:0]))
    assert found.keys() == {"fid"}
    by_images = FrechetInceptionDistance(weights="w")(given_images(OTHERS, REAL))
    assert found["fid"].value == pytest.approx(by_images["fid"].value, rel=1e-4)


@pytest.mark.parametrize("metric", [FrechetInceptionDistance(weights="w"), EncoderDistance(encoder="e")])
def test_distances_grow_with_noise(metric):
    noise = np.random.default_rng(0).normal(0, 1, (len(OTHERS), 1, 1, 3))
    found = [
        metric(given_images((OTHERS + size * noise).clip(0, 255).astype(np.uint8), REAL)) for size in (0, 25, 50, 100)
    ]
    for name in ("fid", "kid", "encoder_frechet", "encoder_cmmd"):
        if values := [each[name].value for each in found if name in each]:
            assert sorted(values) == values and values[-1] > values[0] + 0.01, name
    for name in ("precision", "coverage"):
        first, last = (next(v for k, v in found[i].items() if k.endswith(name)) for i in (0, -1))
        assert last.value < first.value


def test_an_unknown_preprocessing_is_refused():
    with pytest.raises(UserError, match="preprocessing is 'bicubic': the choices are clean-fid, pytorch-fid"):
        FrechetInceptionDistance(weights="w", preprocessing="bicubic")


def test_a_reference_folder_has_the_side_of_the_images(tmp_path):
    from cm3leon_jax.images import encode_png

    for index, image in enumerate(REAL):
        (tmp_path / f"{index:03d}.png").write_bytes(encode_png(image.repeat(2, axis=0).repeat(2, axis=1)))
    config = SimpleNamespace(image_tokenizer=SimpleNamespace(resolution=16))
    found = EncoderDistance(encoder="e", reference=str(tmp_path))(given_images(OTHERS, REAL[:0], config=config))
    expected = EncoderDistance(encoder="e")(given_images(OTHERS, REAL))
    assert found["encoder_frechet"].value == pytest.approx(expected["encoder_frechet"].value, rel=1e-4)
