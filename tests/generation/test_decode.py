"""Cached decoding: legal tokens only, the same answers as a loop without a cache, and no neighbour's influence."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cm3leon_jax.config import SamplingConfig
from cm3leon_jax.errors import UserError
from cm3leon_jax.generation import prompts
from cm3leon_jax.generation.decode import Decoder, legal_tokens
from cm3leon_jax.generation.prompts import IMAGE_CODE, TEXT_TOKEN, Prompt
from cm3leon_jax.generation.sampling import guided_logits
from cm3leon_jax.model.transformer import Transformer

LENGTH, IMAGE_LENGTH = 64, 16


@pytest.fixture
def model(tiny_model, vocabulary) -> Transformer:
    config = dataclasses.replace(
        tiny_model, positions="learned+rotary", picture_places=IMAGE_LENGTH, position_init_std=0.1
    )
    model = Transformer(config, vocabulary.size, LENGTH, nnx.Rngs(0))
    # Big random outputs, so that answers depend on everything that a token may attend to.
    for index, parameter in enumerate((model.blocks.attention.output, model.blocks.feed_forward.down)):
        parameter.set_value(jax.random.normal(jax.random.key(index), parameter.get_value().shape))
    return model


@pytest.fixture
def decoder(model, vocabulary) -> Decoder:
    return Decoder(*nnx.split(model), vocabulary, LENGTH)


def all_prompts(vocabulary) -> list[Prompt]:
    codes = np.arange(IMAGE_LENGTH) % vocabulary.num_image_codes
    corner = np.zeros((4, 4), bool)
    corner[2:, 1:3] = True
    return [
        prompts.text_to_image("a handwritten seven", IMAGE_LENGTH, vocabulary),
        prompts.text_to_image("zero", IMAGE_LENGTH, vocabulary),
        prompts.caption(codes, 10, vocabulary),
        prompts.caption(codes, 10, vocabulary, by_infill=False),
        prompts.infill("zero", codes, corner.ravel(), vocabulary),
    ]


@jax.jit
def next_logits(graph_and_parameters, ids, places, length):
    """Logits behind the first `length` ids of a row that is padded on the right."""
    model = nnx.merge(*graph_and_parameters)
    hidden, _ = model(ids, jnp.arange(LENGTH)[None], jnp.zeros_like(ids), places)
    return model.logits(hidden[:, length - 1])


def without_cache(model, prompt: Prompt, stream: tuple[int, ...], answer: list[int]) -> jax.Array:
    def padded(ids):
        return jnp.array([[*ids, *[0] * (LENGTH - len(ids))]])

    places = prompt.places if stream == prompt.tokens else (0,) * len(stream)
    places = padded([*places, *prompt.plan_places[: len(answer)]])
    return next_logits(nnx.split(model), padded([*stream, *answer]), places, len(stream) + len(answer))


def greedy_without_cache(model, vocabulary, prompt: Prompt, guidance: float) -> list[int]:
    """One full forward pass a token and a stream."""
    answer: list[int] = []
    for plan in prompt.plan:
        streams = [stream for stream in (prompt.tokens, prompt.unconditional) if stream]
        logits = [without_cache(model, prompt, stream, answer) for stream in streams]
        scores = guided_logits(*logits, guidance) if len(logits) == 2 else logits[0]
        legal = legal_tokens(jnp.array([plan]), jnp.array([prompt.stop]), vocabulary)
        token = int(jnp.where(legal, scores, -jnp.inf).argmax())
        if token == prompt.stop:
            break
        answer.append(token)
    return answer


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_mixed_batch_answers_as_a_loop_without_cache(model, decoder, vocabulary, guidance):
    asked = all_prompts(vocabulary)
    answers = decoder(asked, SamplingConfig(temperature=0.0, guidance=guidance, batch_size=5))
    for prompt, answer in zip(asked, answers, strict=True):
        assert answer.tokens == greedy_without_cache(model, vocabulary, prompt, guidance)


def test_an_answer_does_not_depend_on_its_neighbours(decoder, vocabulary):
    asked = all_prompts(vocabulary)
    together = decoder(asked, SamplingConfig(batch_size=8, seed=5))
    for index, prompt in enumerate(asked):
        (alone,) = decoder([prompt], SamplingConfig(batch_size=8, seed=5), indices=[index])
        assert alone.tokens == together[index].tokens
    again = decoder(asked, SamplingConfig(batch_size=2, seed=5))
    assert [a.tokens for a in again] == [a.tokens for a in together]
    other_seed = decoder(asked, SamplingConfig(batch_size=8, seed=6))
    assert other_seed[0].tokens != together[0].tokens


def test_only_legal_tokens_are_drawn(decoder, vocabulary):
    v = vocabulary
    drawn, _, by_infill, left_to_right, filled = decoder(all_prompts(v), SamplingConfig(seed=1, batch_size=5))
    assert len(drawn.tokens) == IMAGE_LENGTH
    assert v.is_image(np.array(drawn.tokens)).all()
    for text in (by_infill, left_to_right):
        assert v.is_text(np.array(text.tokens, np.int64)).all()
    # Two rows of two codes are two spans.
    assert v.is_image(np.array(filled.tokens)).tolist() == [True, True, False, False, True, True]
    assert filled.tokens[2:4] == [v.eoss, v.mask(1)]


def test_what_is_legal(vocabulary):
    v = vocabulary
    plan = jnp.array([IMAGE_CODE, TEXT_TOKEN, TEXT_TOKEN, v.break_])
    legal = np.asarray(legal_tokens(plan, jnp.array([-1, v.eoss, v.end, -1]), v))
    ids = np.arange(v.size)
    np.testing.assert_array_equal(legal[0], v.is_image(ids))
    np.testing.assert_array_equal(legal[1], v.is_text(ids) | (ids == v.eoss))
    np.testing.assert_array_equal(legal[2], v.is_text(ids) | (ids == v.end))
    np.testing.assert_array_equal(legal[3], ids == v.break_)


def test_the_score_is_the_mean_log_likelihood(model, decoder, vocabulary):
    prompt = prompts.text_to_image("zero", 4, vocabulary)
    (answer,) = decoder([prompt], SamplingConfig(guidance=3.0, batch_size=1))
    total = 0.0
    for i, token in enumerate(answer.tokens):
        legal = legal_tokens(jnp.array([IMAGE_CODE]), jnp.array([-1]), vocabulary)
        scores = jnp.where(legal, without_cache(model, prompt, prompt.tokens, answer.tokens[:i]), -jnp.inf)
        total += float(jax.nn.log_softmax(scores)[0, token])
    assert answer.score == pytest.approx(total / 4, abs=1e-4)


def test_a_prompt_that_does_not_fit_is_refused(decoder, vocabulary):
    with pytest.raises(UserError, match="do not fit the model's 64 positions"):
        decoder([prompts.text_to_image("zero " * 60, IMAGE_LENGTH, vocabulary)], SamplingConfig(batch_size=1))
