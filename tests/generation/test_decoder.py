"""Cached decoding: the same answers as a loop without a cache, legal tokens only, and no neighbor's influence."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cm3leon_jax.errors import UserError
from cm3leon_jax.generation import constrained_decoding, prefill, prompts
from cm3leon_jax.generation.config import SamplingConfig
from cm3leon_jax.generation.decoder import Decoder
from cm3leon_jax.generation.prompts import IMAGE_CODE, Prompt, PromptVariant
from cm3leon_jax.generation.sampling import edit_guided_logits, guided_logits
from cm3leon_jax.models.config import MeshConfig, ModelConfig
from cm3leon_jax.models.sharding import make_mesh
from cm3leon_jax.models.transformer import Transformer

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
    # Big random outputs, so that answers depend on everything that a token may attend to.
    for index, parameter in enumerate((model.blocks.attention.output, model.blocks.feed_forward.down)):
        parameter.set_value(jax.random.normal(jax.random.key(index), parameter.get_value().shape))
    return model


def decoder_on(model, vocabulary, mesh: MeshConfig) -> Decoder:
    size = (mesh.replica or 1) * mesh.fsdp * mesh.tensor
    decoder = Decoder(model.config, vocabulary, LENGTH, make_mesh(mesh, jax.devices()[:size]), IMAGE_LENGTH)
    decoder.load(nnx.state(model))
    return decoder


@pytest.fixture(scope="module")
def decoder(model, vocabulary) -> Decoder:
    return decoder_on(model, vocabulary, MESHES[0])


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
        prompts.text_after_image(codes, 10, v, "the"),
        prompts.infill("zero", codes, corner.ravel(), v),
        prompts.edit("make it wide", codes, v),
        prompts.continuation(["a photo", codes, "the"], 60, IMAGE_LENGTH, v),
    ]


@jax.jit
def next_logits(graph_and_parameters, ids, image_positions, length):
    """Logits behind the first `length` ids of a row that is padded on the right."""
    model = nnx.merge(*graph_and_parameters)
    hidden = model(ids, jnp.arange(LENGTH)[None], jnp.zeros_like(ids), image_positions)
    return model.logits(hidden[:, length - 1])


def without_cache(model, prompt: Prompt, stream: PromptVariant, answer: list[int], vocabulary) -> jax.Array:
    def padded(ids):
        return jnp.array([[*ids, *[0] * (LENGTH - len(ids))]])

    image_positions = [*stream.image_positions, *prompt.plan_image_positions[: len(answer)]]
    if prompt.plan[0] == prompts.ANYTHING:
        image_positions = PromptVariant.of([*stream.tokens, *answer], vocabulary).image_positions
    ids = padded([*stream.tokens, *answer])
    return next_logits(nnx.split(model), ids, padded(image_positions), len(stream.tokens) + len(answer))


def expected_next(prompt: Prompt, answer: list[int], vocabulary) -> constrained_decoding.ConstraintState:
    """The grammar's view of an answer so far, counted anew from its tokens."""
    v = vocabulary
    tail = 0
    while tail < len(answer) and v.is_image(np.array(answer[len(answer) - 1 - tail])):
        tail += 1
    one = {
        "plan": prompt.plan[len(answer)],
        "room": len(prompt.plan) - len(answer),
        "last": answer[-1] if answer else prompt.variants[0].tokens[-1],
        "image_tokens_left": -tail % prompt.image_length if prompt.image_length else 0,
        "stop": prompt.stop,
        "spans_left": prompt.num_spans - answer.count(prompt.stop),
        "num_spans": prompt.num_spans,
        "image_length": prompt.image_length,
    }
    return constrained_decoding.ConstraintState(**{name: jnp.array([value]) for name, value in one.items()})


def guided(logits: list[jax.Array], sampling: SamplingConfig) -> jax.Array:
    if len(logits) == 3:
        return edit_guided_logits(*logits, sampling.edit_guidance, sampling.edit_image_guidance)
    return guided_logits(*logits, sampling.guidance) if len(logits) == 2 else logits[0]


def greedy_without_cache(model, vocabulary, prompt: Prompt, sampling: SamplingConfig) -> list[int]:
    """One full forward pass a token and a stream."""
    answer: list[int] = []
    ids = jnp.arange(vocabulary.size)
    while len(answer) < len(prompt.plan):
        expected = expected_next(prompt, answer, vocabulary)
        token = int(constrained_decoding.forced_tokens(expected, vocabulary)[0])
        if token < 0:
            logits = [without_cache(model, prompt, stream, answer, vocabulary) for stream in prompt.variants]
            legal = constrained_decoding.legal_tokens(ids, expected, vocabulary)
            token = int(jnp.where(legal, guided(logits, sampling), -jnp.inf).argmax())
        if token == prompt.stop and answer.count(token) == prompt.num_spans - 1:
            break
        answer.append(token)
    return answer


@pytest.mark.parametrize("mesh", MESHES, ids=["one device", "eight devices"])
def test_a_mixed_batch_answers_as_a_loop_without_cache(model, vocabulary, mesh):
    asked = all_prompts(vocabulary)
    sampling = SamplingConfig(temperature=0.0, batch_size=len(asked))
    answers = decoder_on(model, vocabulary, mesh)(asked, sampling)
    for prompt, answer in zip(asked, answers, strict=True):
        assert answer.tokens == greedy_without_cache(model, vocabulary, prompt, sampling)


@pytest.mark.parametrize("mesh", MESHES, ids=["one device", "eight devices"])
def test_cached_logits_equal_the_uncached_at_every_position(model, vocabulary, mesh):
    """Prompts of different lengths, with and without retrieved documents, then given tokens one by one."""
    decoder = decoder_on(model, vocabulary, mesh)
    variants = [stream for prompt in all_prompts(vocabulary) for stream in prompt.variants]
    plan = prefill.plan_prefill([prompt.variants for prompt in all_prompts(vocabulary)])
    assert plan.prefixes is not None
    hidden, cache = decoder._read(plan, "")
    cache, hidden = decoder._copy_rows(cache, plan.rest_row, plan.num_slots + 12), hidden[plan.rest_row]
    start = plan.num_slots - plan.length[plan.rest_row]
    given = np.random.default_rng(0).integers(4, vocabulary.size, (len(variants), 12))
    for step in range(12):
        for row, stream in enumerate(variants):
            ids = jnp.array([[*stream.tokens, *given[row, :step]]])
            ids = jnp.pad(ids, ((0, 0), (0, LENGTH - ids.shape[1])))
            image_positions = (
                jnp.zeros_like(ids).at[0, : len(stream.image_positions)].set(jnp.array(stream.image_positions))
            )
            expected = next_logits(nnx.split(model), ids, image_positions, len(stream.tokens) + step)
            np.testing.assert_allclose(model.logits(hidden[row : row + 1]), expected, atol=1e-4)
        index = np.int32(plan.num_slots + step)
        tokens = given[:, step : step + 1].astype(np.int32)
        part = (tokens, (index - start)[:, None].astype(np.int32), np.zeros_like(tokens))
        hidden, cache = decoder._extend(decoder._parameters, cache, part, start.astype(np.int32), index)


def test_tensor_parallel_steps_move_no_weights(vocabulary):
    """Between devices go sums of activations and of scores, never a weight or the cache."""
    config = ModelConfig(num_layers=1, model_dim=64, num_heads=8, compute_dtype="float32")
    decoder = Decoder(config, vocabulary, LENGTH, make_mesh(MeshConfig(fsdp=1, tensor=8)))
    decoder.load(nnx.state(Transformer(config, vocabulary.size, LENGTH, nnx.Rngs(0))))
    cache = decoder._empty_cache(4, 64, "")
    token = np.ones((4, 1), np.int32)
    step = decoder._extend.lower(decoder._parameters, cache, (token,) * 3, np.zeros(4, np.int32), np.int32(3))
    moved = re.findall(r"= \(?(\w+\[[\d,]*\]).* (all-[a-z\-]+|collective-permute)\(", step.compile().as_text())
    assert moved, "nothing is shared out"
    for shape, operation in moved:
        size = np.prod([int(n) for n in re.findall(r"\d+", shape.partition("[")[2])])
        assert size <= 4 * config.model_dim, f"{operation} of {shape}"
    assert all(layer.key.sharding.spec[1] == "tensor" for layer in cache)


def test_no_guidance_is_the_prompt_alone(model, decoder, vocabulary):
    prompt = all_prompts(vocabulary)[0]
    sampling = SamplingConfig(temperature=0.0, guidance=1.0, batch_size=1)
    alone = dataclasses.replace(prompt, variants=prompt.variants[:1])
    assert decoder([prompt], sampling)[0].tokens == greedy_without_cache(model, vocabulary, alone, sampling)


@pytest.mark.slow
def test_an_answer_does_not_depend_on_its_neighbors(decoder, vocabulary):
    asked = all_prompts(vocabulary)
    asked = [asked[0], asked[1], asked[6]]
    together = decoder(asked, SamplingConfig(batch_size=3, seed=5))
    (alone,) = decoder(asked[1:2], SamplingConfig(batch_size=3, seed=5), indices=[1])
    assert alone.tokens == together[1].tokens
    again = decoder(asked, SamplingConfig(batch_size=2, seed=5))
    assert [a.tokens for a in again] == [a.tokens for a in together]
    other_seed = decoder(asked, SamplingConfig(batch_size=3, seed=6))
    assert other_seed[0].tokens != together[0].tokens


def test_equal_prompts_give_different_candidates(decoder, vocabulary):
    prompt = all_prompts(vocabulary)[1]
    answers = decoder([prompt] * 4, SamplingConfig(batch_size=4))
    assert len({tuple(answer.tokens) for answer in answers}) == 4


def test_only_legal_tokens_are_drawn(decoder, vocabulary):
    v = vocabulary
    drawn, _, texts, text, after, filled, edited, more = decoder(all_prompts(v), SamplingConfig(seed=1, batch_size=8))
    for image in (drawn, edited):
        assert len(image.tokens) == IMAGE_LENGTH
        assert v.is_image(np.array(image.tokens)).all()
    for words in (text, after):
        assert v.is_text(np.array(words.tokens, np.int64)).all()
    marks = [token for token in texts.tokens if not v.is_text(np.array(token))]
    assert marks in ([], [v.eoss, v.mask(1)])
    # Two rows of two codes are two spans.
    assert v.is_image(np.array(filled.tokens)).tolist() == [True, True, False, False, True, True]
    assert filled.tokens[2:4] == [v.eoss, v.mask(1)]
    for segment in prompts.split_segments(more.tokens, v):
        assert isinstance(segment, str) or len(segment) == IMAGE_LENGTH


@pytest.mark.parametrize("mesh", MESHES, ids=["one device", "eight devices"])
@pytest.mark.parametrize("method", ["top_p", "contrastive"])
def test_the_score_is_the_mean_log_likelihood(model, vocabulary, mesh, method):
    prompt = all_prompts(vocabulary)[1]
    decoder = decoder_on(model, vocabulary, mesh)
    answer, _ = decoder([prompt] * 2, SamplingConfig(batch_size=2, method=method))
    total = 0.0
    for i, token in enumerate(answer.tokens):
        ids = jnp.asarray(constrained_decoding.candidate_ids(frozenset({IMAGE_CODE}), vocabulary))
        logits = without_cache(model, prompt, prompt.variants[0], answer.tokens[:i], vocabulary)[0, ids]
        total += float(jax.nn.log_softmax(logits)[token - vocabulary.first_image_code])
    assert answer.score == pytest.approx(total / IMAGE_LENGTH, abs=1e-4)


def test_few_programs_for_prompts_of_many_lengths(decoder, vocabulary):
    sampling = SamplingConfig(batch_size=2, seed=3, temperature=0.9)
    lengths = set()
    for words in range(1, 12):
        prompt = prompts.text_to_image("zero " * words, IMAGE_LENGTH, vocabulary)
        lengths.add(len(prompt.variants[0].tokens))
        decoder([prompt], sampling)
    before = decoder._decode._cache_size()
    assert len(lengths) == 11
    decoder([prompts.text_to_image("seven " * 7, IMAGE_LENGTH, vocabulary)], sampling)
    assert decoder._decode._cache_size() == before


def test_a_small_cache_type_gives_nearly_the_same_scores(model, decoder, vocabulary):
    prompt = all_prompts(vocabulary)[1]
    exact = decoder([prompt], SamplingConfig(temperature=0.0, batch_size=1))[0]
    for dtype, most in (("bfloat16", 0.05), ("int8", 0.1)):
        rounded = decoder([prompt], SamplingConfig(temperature=0.0, batch_size=1, cache_dtype=dtype))[0]
        assert rounded.score != exact.score
        assert rounded.score == pytest.approx(exact.score, abs=most)


def test_a_prompt_that_does_not_fit_is_refused(decoder, vocabulary):
    with pytest.raises(UserError, match="do not fit the model's 192 positions"):
        decoder([prompts.text_to_image("zero " * 180, IMAGE_LENGTH, vocabulary)], SamplingConfig(batch_size=1))
