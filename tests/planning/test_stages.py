"""Device-hours of the stages before training, by hand."""

from dataclasses import replace

import pytest

from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.config import BatchConfig
from cm3leon_jax.encoders.clip.flops import clip_flops
from cm3leon_jax.encoders.tfidf_config import TfidfConfig
from cm3leon_jax.image_tokenizers.vqgan.flops import vqgan_flops
from cm3leon_jax.planning import report, stages
from cm3leon_jax.planning.accelerator_types import find_pod
from cm3leon_jax.planning.costs import Rates
from cm3leon_jax.retrieval.config import RetrievalConfig
from tests.planning.pod_plans import make_pod_plan

PAPER = Config(batch=BatchConfig(sequence_length=4224), retrieval=RetrievalConfig(enabled=True))
POD = find_pod("v5p-1024")


def by_command(config, pod=POD, num_images=None):
    return {stage.command: stage for stage in stages.find_stages(config, pod, num_images)}


def test_trainings_are_bounds_at_the_peak_on_as_many_devices_as_a_batch_has_rows():
    found = by_command(PAPER)
    _, flops = vqgan_flops(PAPER.image_tokenizer)
    tokenizer = found["train-image-tokenizer"]
    assert tokenizer.flops == flops
    assert tokenizer.device_hours == pytest.approx(flops / 459e12 / 3600)
    # 192 images a step, on 512 chips.
    assert tokenizer.hours == pytest.approx(tokenizer.device_hours / 192)
    encoder = found["train-encoder"]
    assert encoder.device_hours == pytest.approx(clip_flops(PAPER.encoder)[1] / 459e12 / 3600)
    assert encoder.hours == pytest.approx(encoder.device_hours / 512)
    assert "prepare" not in found


def test_prepare_encodes_each_image_once_for_codes_and_each_pair_twice_for_vectors():
    codes, pair = vqgan_flops(PAPER.image_tokenizer)[0], clip_flops(PAPER.encoder)[0]
    found = by_command(PAPER, num_images=1_000_000)["prepare"]
    assert found.flops == pytest.approx(1e6 * (codes + 2 * pair))
    assert found.hours == pytest.approx(found.flops / 459e12 / 512 / 3600)


def test_without_retrieval_there_is_no_encoder_and_others_have_no_formula():
    alone = replace(PAPER, retrieval=RetrievalConfig(enabled=False))
    assert set(by_command(alone, num_images=10)) == {"train-image-tokenizer", "prepare"}
    codes = vqgan_flops(PAPER.image_tokenizer)[0]
    assert by_command(alone, num_images=10)["prepare"].flops == pytest.approx(10 * codes)
    words = replace(PAPER, encoder=TfidfConfig(family="tfidf"))
    assert "train-encoder" not in by_command(words)


def test_gpus_take_float32_at_half_the_rate():
    found = by_command(PAPER, find_pod("h100-256"))["train-image-tokenizer"]
    assert found.device_hours == pytest.approx(found.flops / (989e12 / 2) / 3600)


def test_they_are_in_the_report_and_called_bounds():
    planned = make_pod_plan("v5p-1024", config=PAPER)
    text = report.lines("a.py", planned, Rates(num_images=5_000))
    assert any("bounds" in line for line in text)
    assert any("5 k images" in line for line in text)
    commands = [stage["command"] for stage in report.as_json("a.py", planned, Rates())["stages"]]
    assert commands == ["train-image-tokenizer", "train-encoder"]
