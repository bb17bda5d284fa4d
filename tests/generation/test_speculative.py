"""Speculative Jacobi decoding changes the number of passes and nothing else."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from cm3leon_jax.generation import prompts
from cm3leon_jax.generation.config import SamplingConfig
from cm3leon_jax.generation.instruction_prompt import instruction_prompt
from cm3leon_jax.generation.sampler import Sampler
from cm3leon_jax.models.config import MeshConfig, ModelConfig
from cm3leon_jax.models.sharding import make_mesh
from cm3leon_jax.models.transformer import Transformer

LENGTH, IMAGE_LENGTH = 128, 48


def sampler_of(vocabulary, mesh: MeshConfig, std: float = 1.0) -> Sampler:
    config = ModelConfig(num_layers=2, model_dim=32, num_heads=4, compute_dtype="float32", position_init_std=0.1)
    model = Transformer(config, vocabulary.size, LENGTH, nnx.Rngs(0))
    for index, parameter in enumerate((model.blocks.attention.output, model.blocks.feed_forward.down)):
        parameter.set_value(std * jax.random.normal(jax.random.key(index), parameter.get_value().shape))
    size = (mesh.replica or 1) * mesh.fsdp * mesh.tensor
    sampler = Sampler(config, vocabulary, LENGTH, make_mesh(mesh, jax.devices()[:size]))
    sampler.load(nnx.state(model))
    return sampler


@pytest.mark.parametrize("mesh", [MeshConfig(fsdp=1), MeshConfig(replica=2, fsdp=2, tensor=2)], ids=["one", "eight"])
@pytest.mark.parametrize(
    "window", [5, pytest.param(2, marks=pytest.mark.slow), pytest.param(16, marks=pytest.mark.slow)]
)
def test_greedy_completions_are_identical(vocabulary, mesh, window):
    sampler = sampler_of(vocabulary, mesh)
    codes = np.arange(16)
    asked = [prompts.text_to_image(text, IMAGE_LENGTH, vocabulary) for text in ("zero", "a photo of a seven", "nine")]
    edit = instruction_prompt("edit", {"image": codes, "instruction": "bright"}, len(codes), 1, vocabulary)
    asked.append(dataclasses.replace(edit, plan=asked[0].plan, plan_image_positions=asked[0].plan_image_positions))
    one_by_one = SamplingConfig(temperature=0.0, batch_size=4)
    expected = sampler(asked, one_by_one)
    found = sampler(asked, dataclasses.replace(one_by_one, speculative_window=window))
    for a, b in zip(expected, found, strict=True):
        assert a.tokens == b.tokens
        assert a.mean_logprob == pytest.approx(b.mean_logprob, abs=1e-4)
    assert expected[0].num_passes == IMAGE_LENGTH
    assert found[0].num_passes < IMAGE_LENGTH


@pytest.mark.slow
def test_completions_have_the_same_distribution(vocabulary):
    """Pairs of neighboring codes over many short images, drawn either way."""
    sampler = sampler_of(vocabulary, MeshConfig(fsdp=1), std=0.3)
    prompt = prompts.text_to_image("zero", 3, vocabulary)
    sampling = SamplingConfig(temperature=0.15, top_p=0.9, guidance=2.0, batch_size=4000)

    def counts(changed: SamplingConfig) -> np.ndarray:
        codes = (
            np.array([completion.tokens for completion in sampler([prompt] * 4000, changed)])
            - vocabulary.first_image_code
        )
        pairs = codes[:, 1] * vocabulary.num_image_codes + codes[:, 2]
        return np.bincount(pairs, minlength=vocabulary.num_image_codes**2) / 4000

    expected, again = counts(sampling), counts(dataclasses.replace(sampling, seed=1))
    found = counts(dataclasses.replace(sampling, speculative_window=3))
    # As near to the plain draws as these are to each other with another seed.
    noise = np.abs(expected - again).sum()
    assert 0.02 < noise < 0.5
    assert np.abs(expected - found).sum() < 1.5 * noise


def test_other_completions_are_drawn_one_by_one(vocabulary):
    sampler = sampler_of(vocabulary, MeshConfig(fsdp=1))
    prompt = prompts.text_after_image(np.arange(16), 20, vocabulary)
    sampling = SamplingConfig(temperature=0.0, batch_size=1)
    assert (
        sampler([prompt], dataclasses.replace(sampling, speculative_window=4))[0].tokens
        == sampler([prompt], sampling)[0].tokens
    )
