"""The image tokenizer's values: PSNR, SSIM, LPIPS, rFID, and how much of the codebook is used."""

from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy

from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation import reconstruction
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.reconstruction import Reconstruction, codebook_use, psnr
from cm3leon_jax.image_tokenizers.vqgan import lpips
from tests.evaluation import made
from tests.evaluation.contexts import evaluation_with
from tests.evaluation.stand_in import ColorEncoder

ORIGINALS = np.stack([made.image(seed, 16, 16, 3) for seed in range(6)])
CODES = np.random.default_rng(0).integers(0, 10, (30, 8))


def of(originals: np.ndarray, others: np.ndarray) -> EvaluationContext:
    tokenizer = SimpleNamespace(config=SimpleNamespace(codebook_size=16))
    return evaluation_with(
        model=SimpleNamespace(image_tokenizer=tokenizer),
        held_out=SimpleNamespace(codes=CODES),
        originals=originals,
        reconstructions=others,
    )


def noisy(size: float) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, 1, ORIGINALS.shape)
    return (ORIGINALS + size * noise).clip(0, 255).astype(np.uint8)


def test_psnr_of_equal_and_of_opposite_images():
    black, white = np.zeros((2, 2, 2, 1), np.uint8), np.full((2, 2, 2, 1), 255, np.uint8)
    assert psnr(black, white).tolist() == [0, 0]
    assert psnr(black, black).tolist() == [100, 100]
    assert psnr(black, black + 1) == pytest.approx(48.13, abs=0.01)


def test_values_fall_or_rise_with_noise(monkeypatch, tmp_path):
    random = np.random.default_rng(0)
    tensors = {
        name: np.abs(random.standard_normal(shape, np.float32)) for name, shape in lpips.expected_shapes().items()
    }
    scaled = {name: value / np.float32(np.prod(value.shape[1:])) for name, value in tensors.items()}
    safetensors.numpy.save_file(scaled, tmp_path / "lpips.safetensors")
    monkeypatch.setattr(reconstruction, "load_inception", lambda file: {})
    monkeypatch.setattr(reconstruction, "inception_features", lambda images, *_: ColorEncoder().encode_images(images))
    metric = Reconstruction(lpips_weights=str(tmp_path / "lpips.safetensors"), inception_weights="w", batch_size=4)
    equal, little, much = (metric(of(ORIGINALS, noisy(size))) for size in (0, 10, 60))
    for name in ("reconstruction_psnr", "reconstruction_ssim"):
        assert equal[name].value > little[name].value > much[name].value
    for name in ("reconstruction_lpips", "rfid"):
        assert equal[name].value == pytest.approx(0, abs=1e-5)
        assert little[name].value < much[name].value
    assert all(much[name].n == 6 for name in much if not name.startswith("codebook"))


def test_without_originals_there_is_the_codebook_alone():
    assert Reconstruction()(of(ORIGINALS[:0], ORIGINALS[:0])).keys() == {"codebook_used", "codebook_perplexity"}


def test_images_that_are_too_small_have_no_ssim():
    small = ORIGINALS[:, :8, :8]
    assert "reconstruction_ssim" not in Reconstruction()(of(small, small))
    assert "reconstruction_ssim" in Reconstruction(ssim_window="uniform")(of(small, small))


def test_use_of_the_codebook():
    found = codebook_use(np.array([[0, 0, 1, 1], [2, 2, 3, 3]]), 8)
    assert found["codebook_used"].value == 0.5
    assert found["codebook_perplexity"].value == pytest.approx(4)
    one = codebook_use(np.array([[5, 5]]), 8)
    assert one["codebook_perplexity"].value == 1 and one["codebook_used"].low == 0.125


def test_the_interval_of_the_perplexity_is_as_wide_as_other_images_differ():
    random = np.random.default_rng(0)
    shares = random.dirichlet(np.ones(64))
    found = [codebook_use(random.choice(64, (100, 16), p=shares), 64)["codebook_perplexity"] for _ in range(50)]
    spread = np.std([estimate.value for estimate in found])
    assert np.mean([estimate.high - estimate.low for estimate in found]) == pytest.approx(2 * 1.96 * spread, rel=0.35)


@pytest.mark.parametrize("option", ["preprocessing", "ssim_window"])
def test_an_unknown_choice_is_refused(option):
    with pytest.raises(UserError, match=f"reconstruction metric's {option} is 'x': the choices are"):
        Reconstruction(**{option: "x"})
