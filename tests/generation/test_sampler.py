"""Cached decoding: the same completions as a loop without a cache, legal tokens only, and no neighbor's influence."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cm3leon_jax.errors import UserError
from cm3leon_jax.generation import decode, prefill, prompts
from cm3leon_jax.generation.config import SamplingConfig
from cm3leon_jax.generation.instruction_prompt import instruction_prompt
from cm3leon_jax.generation.prompts import IMAGE_CODE, Prompt, PromptVariant
from cm3leon_jax.generation.sampler import Sampler
from cm3leon_jax.generation.sampling import edit_guided_logits, guided_logits
from cm3leon_jax.models.config import MeshConfig, ModelConfig
from cm3leon_jax.models.sharding import make_mesh
from cm3leon_jax.models.transformer import Transformer
from tests.generation.constraints import constraints

LENGTH, IMAGE_LENGTH = 192, 16
MESHES = [MeshConfig(fsdp=1), MeshConfig(replica=2, fsdp=2, tensor=2)]


@pytest.fixture(scope="module")
def model(vocabulary) -> Transformer:
    config = ModelConfig(
        num_layers=2,
        model_dim=32,
        num_heads=4,
        compute_dtype="float32",
        init_std=0.05,
        positions="learned+rotary",
        image_position_embedding=True,
        position_init_std=0.1,
    )
    model = Transformer(config, vocabulary.size, LENGTH, nnx.Rngs(0), IMAGE_LENGTH)
    # Big random outputs, so that completions depend on everything that a token may attend to.
    for index, parameter in enumerate((model.blocks.attention.output, model.blocks.feed_forward.down)):
        parameter.set_value(jax.random.normal(jax.random.key(index), parameter.get_value().shape))
    return model


def sampler_on(model, vocabulary, mesh: MeshConfig) -> Sampler:
    size = (mesh.replica or 1) * mesh.fsdp * mesh.tensor
    sampler = Sampler(model.config, vocabulary, LENGTH, make_mesh(mesh, jax.devices()[:size]), IMAGE_LENGTH)
    sampler.load(nnx.state(model))
    return sampler


@pytest.fixture(scope="module")
def sampler(model, vocabulary) -> Sampler:
    return sampler_on(model, vocabulary, MESHES[0])


def document(vocabulary, text: str, seed: int) -> list[int]:
    codes = np.random.default_rng(seed).integers(0, vocabulary.num_image_codes, IMAGE_LENGTH)
    return [*vocabulary.encode_text(text), vocabulary.break_, *vocabulary.encode_image(codes).tolist()]


def all_prompts(vocabulary) -> list[Prompt]:
    v = vocabulary
    codes = np.arange(IMAGE_LENGTH) % v.num_image_codes
    corner = np.zeros((4, 4), bool)
    corner[2:, 1:3] = True
    retrieved = [document(v, "a handwritten two", 1), document(v, "the digit two", 2)]
    return [
        prompts.text_to_image("a handwritten seven", IMAGE_LENGTH, v),
        prompts.text_to_image("zero", IMAGE_LENGTH, v, retrieved),
        prompts.text_infill("a <mask> of <mask>", codes, 5, v),
        prompts.text_infill("<mask>", codes, 10, v, retrieved[:1]),
        prompts.text_after_image(codes, 10, v),
        prompts.infill("zero", codes, corner.ravel(), v),
        instruction_prompt("edit", {"image": codes, "instruction": "make it wide"}, len(codes), 1, v),
        prompts.continuation(["a photo", codes, "the"], 42, IMAGE_LENGTH, LENGTH, v),
    ]


@jax.jit
def next_logits(graph_and_parameters, ids, image_positions, length):
    """Logits behind the first `length` ids of a row that is padded on the right."""
    model = nnx.merge(*graph_and_parameters)
    hidden = model(ids, jnp.arange(LENGTH)[None], jnp.zeros_like(ids), image_positions)
    return model.logits(hidden[:, length - 1])


def without_cache(model, prompt: Prompt, variant: PromptVariant, completion: list[int], vocabulary) -> jax.Array:
    def padded(ids):
        return jnp.array([[*ids, *[0] * (LENGTH - len(ids))]])

    image_positions = [*variant.image_positions, *prompt.plan_image_positions[: len(completion)]]
    if prompt.plan[0] == prompts.ANYTHING:
        image_positions = PromptVariant.of([*variant.tokens, *completion], vocabulary).image_positions
    ids = padded([*variant.tokens, *completion])
    return next_logits(nnx.split(model), ids, padded(image_positions), len(variant.tokens) + len(completion))


def expected_next(prompt: Prompt, completion: list[int], vocabulary) -> tuple[decode.PromptBatch, decode.DecodeState]:
    """The grammar's view of an completion so far, counted anew from its tokens."""
    v = vocabulary
    tail = 0
    while tail < len(completion) and v.is_image(np.array(completion[len(completion) - 1 - tail])):
        tail += 1
    one = {
        "plan": prompt.plan[len(completion)],
        "tokens_left": len(prompt.plan) - len(completion),
        "last": completion[-1] if completion else prompt.variants[0].tokens[-1],
        "image_tokens_left": -tail % prompt.image_length if prompt.image_length else 0,
        "stop": prompt.stop,
        "spans_left": prompt.num_spans - completion.count(prompt.stop),
        "num_spans": prompt.num_spans,
        "image_length": prompt.image_length,
    }
    return constraints(**one)


def guided(logits: list[jax.Array], sampling: SamplingConfig) -> jax.Array:
    if len(logits) == 3:
        return edit_guided_logits(*logits, sampling.edit_guidance, sampling.edit_image_guidance)
    return guided_logits(*logits, sampling.guidance) if len(logits) == 2 else logits[0]


def greedy_without_cache(model, vocabulary, prompt: Prompt, sampling: SamplingConfig) -> list[int]:
    """One full forward pass a token and a variant."""
    completion: list[int] = []
    ids = np.arange(vocabulary.size)
    while len(completion) < len(prompt.plan):
        expected = expected_next(prompt, completion, vocabulary)
        token = int(decode.forced_tokens(*expected, vocabulary)[0])
        if token < 0:
            logits = [without_cache(model, prompt, variant, completion, vocabulary) for variant in prompt.variants]
            legal = decode.legal_tokens(ids, *expected, vocabulary)
            token = int(jnp.where(legal, guided(logits, sampling), -jnp.inf).argmax())
        if token == prompt.stop and completion.count(token) == prompt.num_spans - 1:
            break
        completion.append(token)
    return completion


@pytest.mark.parametrize(
    ("mesh", "layout"),
    [(MESHES[0], "vocabulary"), (MESHES[1], "vocabulary"), (MESHES[0], "framed_vocabulary")],
    ids=["one device", "eight devices", "images in frames"],
)
def test_a_mixed_batch_completions_as_a_loop_without_cache(model, request, mesh, layout):
    vocabulary = request.getfixturevalue(layout)
    asked = all_prompts(vocabulary)
    sampling = SamplingConfig(temperature=0.0, batch_size=len(asked))
    completions = sampler_on(model, vocabulary, mesh)(asked, sampling)
    for prompt, completion in zip(asked, completions, strict=True):
        assert completion.tokens == greedy_without_cache(model, vocabulary, prompt, sampling)


@pytest.mark.parametrize("mesh", MESHES, ids=["one device", "eight devices"])
def test_cached_logits_equal_the_uncached_at_every_position(model, vocabulary, mesh):
    """Prompts of different lengths, with and without retrieved documents, then given tokens one by one."""
    sampler = sampler_on(model, vocabulary, mesh)
    variants = [variant for prompt in all_prompts(vocabulary) for variant in prompt.variants]
    plan = prefill.plan_prefill([prompt.variants for prompt in all_prompts(vocabulary)])
    assert plan.prefixes is not None
    hidden, cache = sampler._prefill(plan, "")
    cache, hidden = sampler._copy_rows(cache, plan.suffix_row, None, plan.num_slots + 12), hidden[plan.suffix_row]
    start = plan.num_slots - plan.length[plan.suffix_row]
    given = np.random.default_rng(0).integers(4, vocabulary.size, (len(variants), 12))
    for step in range(12):
        for row, variant in enumerate(variants):
            ids = jnp.array([[*variant.tokens, *given[row, :step]]])
            ids = jnp.pad(ids, ((0, 0), (0, LENGTH - ids.shape[1])))
            image_positions = (
                jnp.zeros_like(ids).at[0, : len(variant.image_positions)].set(jnp.array(variant.image_positions))
            )
            expected = next_logits(nnx.split(model), ids, image_positions, len(variant.tokens) + step)
            np.testing.assert_allclose(model.logits(hidden[row : row + 1]), expected, atol=1e-4)
        index = np.int32(plan.num_slots + step)
        tokens = given[:, step : step + 1].astype(np.int32)
        part = (tokens, (index - start)[:, None].astype(np.int32), np.zeros_like(tokens))
        hidden, cache = sampler._extend(sampler._parameters, cache, part, start.astype(np.int32), index)


def test_tensor_parallel_steps_move_no_weights(vocabulary):
    """Between devices go sums of activations and of scores, never a weight or the cache."""
    config = ModelConfig(num_layers=1, model_dim=64, num_heads=8, compute_dtype="float32")
    sampler = Sampler(config, vocabulary, LENGTH, make_mesh(MeshConfig(fsdp=1, tensor=8)))
    sampler.load(nnx.state(Transformer(config, vocabulary.size, LENGTH, nnx.Rngs(0))))
    cache = sampler._empty_cache(4, 64, "")
    token = np.ones((4, 1), np.int32)
    step = sampler._extend.lower(sampler._parameters, cache, (token,) * 3, np.zeros(4, np.int32), np.int32(3))
    moved = re.findall(r"= \(?(\w+\[[\d,]*\]).* (all-[a-z\-]+|collective-permute)\(", step.compile().as_text())
    assert moved, "nothing is shared out"
    for shape, operation in moved:
        size = np.prod([int(n) for n in re.findall(r"\d+", shape.partition("[")[2])])
        assert size <= 4 * config.model_dim, f"{operation} of {shape}"
    assert all(layer.key.sharding.spec[1] == "tensor" for layer in cache)


def test_no_guidance_is_the_prompt_alone(model, sampler, vocabulary):
    prompt = all_prompts(vocabulary)[0]
    sampling = SamplingConfig(temperature=0.0, guidance=1.0, batch_size=1)
    alone = dataclasses.replace(prompt, variants=prompt.variants[:1])
    assert sampler([prompt], sampling)[0].tokens == greedy_without_cache(model, vocabulary, alone, sampling)


@pytest.mark.slow
def test_an_completion_does_not_depend_on_its_neighbors(sampler, vocabulary):
    asked = all_prompts(vocabulary)
    asked = [asked[0], asked[1], asked[6]]
    together = sampler(asked, SamplingConfig(batch_size=3, seed=5))
    (alone,) = sampler(asked[1:2], SamplingConfig(batch_size=3, seed=5), indices=[1])
    assert alone.tokens == together[1].tokens
    again = sampler(asked, SamplingConfig(batch_size=2, seed=5))
    assert [a.tokens for a in again] == [a.tokens for a in together]
    other_seed = sampler(asked, SamplingConfig(batch_size=3, seed=6))
    assert other_seed[0].tokens != together[0].tokens


def test_equal_prompts_give_different_candidates(sampler, vocabulary):
    prompt = all_prompts(vocabulary)[1]
    completions = sampler([prompt] * 4, SamplingConfig(batch_size=4))
    assert len({tuple(completion.tokens) for completion in completions}) == 4


def test_only_legal_tokens_are_sampled(sampler, vocabulary):
    v = vocabulary
    sampled, _, texts, text, after, infilled, edited, more = sampler(
        all_prompts(v), SamplingConfig(seed=1, batch_size=8)
    )
    for image in (sampled, edited):
        assert len(image.tokens) == IMAGE_LENGTH
        assert v.is_image(np.array(image.tokens)).all()
    for words in (text, after):
        assert v.is_text(np.array(words.tokens, np.int64)).all()
    marks = [token for token in texts.tokens if not v.is_text(np.array(token))]
    assert marks in ([], [v.eoss, v.mask(1)])
    # Two rows of two codes are two spans.
    assert v.is_image(np.array(infilled.tokens)).tolist() == [True, True, False, False, True, True]
    assert infilled.tokens[2:4] == [v.eoss, v.mask(1)]
    for segment in prompts.split_segments(more.tokens, v):
        assert isinstance(segment, str) or len(segment) == IMAGE_LENGTH


@pytest.mark.parametrize("mesh", MESHES, ids=["one device", "eight devices"])
@pytest.mark.parametrize("method", ["top_p", "contrastive"])
def test_the_score_is_the_mean_log_likelihood(model, vocabulary, mesh, method):
    prompt = all_prompts(vocabulary)[1]
    sampler = sampler_on(model, vocabulary, mesh)
    completion, _ = sampler([prompt] * 2, SamplingConfig(batch_size=2, method=method))
    total = 0.0
    for i, token in enumerate(completion.tokens):
        ids = jnp.asarray(decode.candidate_ids(frozenset({IMAGE_CODE}), vocabulary))
        logits = without_cache(model, prompt, prompt.variants[0], completion.tokens[:i], vocabulary)[0, ids]
        total += float(jax.nn.log_softmax(logits)[token - vocabulary.first_image_code])
    assert completion.mean_logprob == pytest.approx(total / IMAGE_LENGTH, abs=1e-4)


def test_few_programs_for_prompts_of_many_lengths(sampler, vocabulary):
    sampling = SamplingConfig(batch_size=2, seed=3, temperature=0.9)
    lengths = set()
    for words in range(1, 12):
        prompt = prompts.text_to_image("zero " * words, IMAGE_LENGTH, vocabulary)
        lengths.add(len(prompt.variants[0].tokens))
        sampler([prompt], sampling)
    before = sampler._decode._cache_size()
    assert len(lengths) == 11
    sampler([prompts.text_to_image("seven " * 7, IMAGE_LENGTH, vocabulary)], sampling)
    assert sampler._decode._cache_size() == before


def test_a_small_cache_type_gives_nearly_the_same_scores(model, sampler, vocabulary):
    prompt = all_prompts(vocabulary)[1]
    exact = sampler([prompt], SamplingConfig(temperature=0.0, batch_size=1))[0]
    for dtype, most in (("bfloat16", 0.05), ("int8", 0.1)):
        rounded = sampler([prompt], SamplingConfig(temperature=0.0, batch_size=1, cache_dtype=dtype))[0]
        assert rounded.mean_logprob != exact.mean_logprob
        assert rounded.mean_logprob == pytest.approx(exact.mean_logprob, abs=most)


def test_a_prompt_that_does_not_fit_is_refused(sampler, vocabulary):
    with pytest.raises(UserError, match="do not fit the model's 192 positions"):
        sampler([prompts.text_to_image("zero " * 180, IMAGE_LENGTH, vocabulary)], SamplingConfig(batch_size=1))
