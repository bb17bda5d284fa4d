"""Scores against a plain loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cm3leon_jax.checkpoints import Checkpoints
from cm3leon_jax.data.corpus.config import VocabularyConfig
from cm3leon_jax.documents import Document, ImageSegment, TextSegment
from cm3leon_jax.encoders.clip.config import ClipConfig
from cm3leon_jax.encoders.tfidf import fit_documents
from cm3leon_jax.errors import UserError
from cm3leon_jax.generation import prompts
from cm3leon_jax.generation.load import load_model
from cm3leon_jax.generation.rank import SCORERS, Candidate, best, caption_prompt, text_log_likelihoods
from cm3leon_jax.generation.requests import Request
from cm3leon_jax.generation.sampler import Completion
from cm3leon_jax.images import encode_png
from cm3leon_jax.models.config import MeshConfig
from tests.conftest import CAPTIONS
from tests.encoders.conftest import random_encoder
from tests.generation.conftest import random_model

MESHES = [MeshConfig(fsdp=1), MeshConfig(replica=2, fsdp=2, tensor=2)]


@jax.jit
def next_log_probabilities(graph, parameters, tokens, image_positions, length):
    """Behind the first `length` tokens of a row that is padded on the right."""
    model = nnx.merge(graph, parameters)
    hidden = model(tokens, jnp.arange(tokens.shape[1])[None], jnp.zeros_like(tokens), image_positions)
    return jax.nn.log_softmax(model.logits(hidden[0, length - 1]))


def plain_log_likelihood(text, codes, model) -> float:
    v = model.vocabulary
    (variant,) = prompts.text_infill("<mask>", codes, 1, v).variants
    completion = [*v.encode_text(text), v.eoss]
    tokens, image_positions = np.zeros((2, 1, 160), np.int32)
    first = len(variant.tokens)
    tokens[0, :first], image_positions[0, :first] = variant.tokens, variant.image_positions
    total = 0.0
    for length, token in enumerate(completion, start=first):
        total += float(next_log_probabilities(model.graph, model.parameters, tokens, image_positions, length)[token])
        tokens[0, min(length, 159)] = token
    return total / len(completion)


@pytest.mark.parametrize("mesh", MESHES, ids=["one device", "eight devices"])
def test_captions_are_scored_as_by_a_plain_loop(tiny_config, vocabulary, image_tokenizer, mesh):
    model = random_model(tiny_config, vocabulary, image_tokenizer, mesh)
    texts = ["", "zero", *CAPTIONS, "a handwritten seven " * 4]
    images = np.random.default_rng(0).integers(0, 32, (len(texts), 16))
    expected = [plain_log_likelihood(text, codes, model) for text, codes in zip(texts, images, strict=True)]
    np.testing.assert_allclose(text_log_likelihoods(texts, images, model), expected, atol=1e-4)
    # More than one batch.
    many = text_log_likelihoods(texts * 4, np.tile(images, (4, 1)), model)
    np.testing.assert_allclose(many, expected * 4, atol=1e-4)


def test_a_caption_as_long_as_the_positions_allow(trained, tiny_config, vocabulary):
    codes = np.arange(16)
    room = tiny_config.batch.sequence_length - len(caption_prompt("", codes, vocabulary).variants[0].tokens)
    text = "!" * room
    assert len(vocabulary.encode_text(text)) == room
    trained.sampler.check_fits_sequence([caption_prompt(text, codes, vocabulary)])
    (score,) = text_log_likelihoods([text], codes[None], trained)
    assert score == pytest.approx(plain_log_likelihood(text, codes, trained), abs=1e-4)


def test_the_caption_scorer_leaves_other_tasks_to_the_likelihood(trained):
    codes = np.random.default_rng(0).integers(0, 32, (3, 16))
    completions = [Completion([], score, 1) for score in (-1.0, -2.0, -3.0)]
    requests = [Request(1, 0, prompt="zero"), Request(2, 1, "caption"), Request(3, 2, prompt="a seven")]
    candidates = [
        Candidate(request, completion, image if request.task == "text_to_image" else None)
        for request, completion, image in zip(requests, completions, codes, strict=True)
    ]
    assert SCORERS["likelihood"](candidates, trained) == [-1.0, -2.0, -3.0]
    first, second, third = SCORERS["caption"](candidates, trained)
    assert second == -2.0
    assert [first, third] == pytest.approx(
        [plain_log_likelihood("zero", codes[0], trained), plain_log_likelihood("a seven", codes[2], trained)], abs=1e-4
    )
    assert SCORERS["caption"](candidates[1:2], trained) == [-2.0]


def test_clip_scores_by_the_product_of_prompt_and_image(trained, vocabulary, tmp_path):
    encoder = random_encoder(vocabulary, tmp_path)
    model = dataclasses.replace(trained, clip=encoder)
    codes = np.random.default_rng(0).integers(0, 32, (4, 16))
    requests = [Request(1, 0, prompt="zero"), Request(2, 1, "caption"), Request(3, 2, prompt="a seven")]
    candidates = [
        Candidate(request, Completion([], -1.0, 1), image if request.task == "text_to_image" else None)
        for request, image in zip([*requests, requests[0]], codes, strict=True)
    ]
    images = encoder.encode_images(trained.image_tokenizer.decode(codes))
    texts = encoder.encode_texts(["zero", "", "a seven", "zero"])
    expected = [-1.0 if index == 1 else float(texts[index] @ images[index]) for index in range(4)]
    assert len(set(expected)) == 4
    assert SCORERS["clip"](candidates, model) == pytest.approx(expected, abs=1e-5)
    assert SCORERS["clip"](candidates[1:2], model) == [-1.0]
    with pytest.raises(ValueError, match="loaded without CLIP"):
        SCORERS["clip"](candidates, trained)


def test_an_encoder_that_cannot_score_is_refused_before_anything_is_drawn(tiny_config, vocabulary, tmp_path):
    path = tmp_path / "encoder"
    config = dataclasses.replace(
        tiny_config,
        sampling=dataclasses.replace(tiny_config.sampling, scorer="clip"),
        encoder=ClipConfig(path=str(path)),
    )
    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(1, {"parameters": {"x": np.zeros(1)}}, {})
    with pytest.raises(UserError, match=r"no encoder at .*: run `cm3leon train-encoder` first"):
        load_model(config, tmp_path)
    document = Document((TextSegment("a word"), ImageSegment(encode_png(np.zeros((8, 8, 3), np.uint8)))))
    fit_documents([document], dim=64, side=2, resolution=8).save(path)
    with pytest.raises(UserError, match=r"scorer is 'clip', but the encoder at .* is none"):
        load_model(config, tmp_path)
    # CLIP is taken, and what misses next is the run's.
    random_encoder(vocabulary, tmp_path).save(path)
    with pytest.raises(UserError, match="no vocabulary at"):
        load_model(dataclasses.replace(config, vocabulary=VocabularyConfig(path=str(tmp_path / "no"))), tmp_path)


def test_every_scorer_of_the_config_is_there(tiny_config):
    for name in SCORERS:
        dataclasses.replace(tiny_config.sampling, scorer=name)


def test_the_best_come_first():
    assert best([-3.0, -1.0, -2.0, -1.0], 3) == [1, 3, 2]
    assert best([-3.0], 1) == [0]
