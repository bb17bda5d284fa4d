"""Scores the candidates of a request; those with the highest scores are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from cm3leon_jax.generation import prompts
from cm3leon_jax.generation.load import TrainedModel
from cm3leon_jax.generation.prefill import rounded_up
from cm3leon_jax.generation.prompt import Prompt
from cm3leon_jax.generation.requests import Request
from cm3leon_jax.generation.sampler import Completion
from cm3leon_jax.models.sharding import batch_sharding
from cm3leon_jax.vocabulary import Vocabulary

# Captions scored side by side, in a pass that keeps the scores of all pairs of tokens; and the least length of a text.
_ROWS, _LEAST_TEXT = 16, 8


@dataclass(frozen=True)
class Candidate:
    """A completion of a request, decoded: an image (as codes), a text, or segments of both."""

    request: Request
    completion: Completion
    image: Int[np.ndarray, "codes"] | None = None
    text: str | None = None
    # The parts of an infilled text, one per blank.
    texts: tuple[str, ...] | None = None
    segments: tuple[str | Int[np.ndarray, "codes"], ...] | None = None


# The scores of some candidates, the higher the better; only those of one request are compared.
Scorer = Callable[[Sequence[Candidate], TrainedModel], list[float]]


def likelihood(candidates: Sequence[Candidate], _: TrainedModel) -> list[float]:
    """The mean log-likelihood of each completion's tokens, given its prompt."""
    return [candidate.completion.mean_logprob for candidate in candidates]


def caption(candidates: Sequence[Candidate], model: TrainedModel) -> list[float]:
    """How likely the prompt's text is as a caption of the image; `likelihood` for other tasks."""
    return _of_images(candidates, lambda texts, images: text_log_likelihoods(texts, images, model))


def clip(candidates: Sequence[Candidate], model: TrainedModel) -> list[float]:
    """CLIP's similarity of prompt and image (arXiv 2309.02591, section 3.2); `likelihood` for other tasks."""
    encoder = model.clip
    if encoder is None:
        raise ValueError("the model was loaded without CLIP: config.sampling.scorer has to be 'clip' when it is")

    def similarities(texts: Sequence[str], images: Int[np.ndarray, "n codes"]) -> Float[np.ndarray, "n"]:
        distinct = list(dict.fromkeys(texts))
        vectors = encoder.encode_texts(distinct)[[distinct.index(text) for text in texts]]
        return np.sum(vectors * encoder.encode_images(model.image_tokenizer.decode(images)), axis=1)

    return _of_images(candidates, similarities)


def _of_images(
    candidates: Sequence[Candidate],
    score: Callable[[Sequence[str], Int[np.ndarray, "n codes"]], Float[np.ndarray, "n"]],
) -> list[float]:
    """`score` of the texts and images of text-to-image; the likelihood of the others."""
    scores = [candidate.completion.mean_logprob for candidate in candidates]
    images = {i: c.image for i, c in enumerate(candidates) if is_captioned(c.request) and c.image is not None}
    if images:
        texts = [candidates[index].request.prompt for index in images]
        for index, found in zip(images, score(texts, np.stack(list(images.values()))), strict=True):
            scores[index] = float(found)
    return scores


# By the names of `config.sampling.scorer`.
SCORERS: dict[str, Scorer] = {"likelihood": likelihood, "caption": caption, "clip": clip}


def best(scores: Sequence[float], number: int) -> list[int]:
    """The indices of the highest scores, the highest first; of equal ones the first."""
    return sorted(range(len(scores)), key=lambda index: -scores[index])[:number]


def is_captioned(request: Request) -> bool:
    """Whether its completions are images that `caption` and `clip` score."""
    return request.task == "text_to_image"


def caption_prompt(text: str, image: Int[np.ndarray, "codes"], vocabulary: Vocabulary) -> Prompt:
    """Asks for the text of an image, with room for just this one."""
    return prompts.text_infill(prompts.BLANK, image, len(vocabulary.encode_text(text)), vocabulary)


def text_log_likelihoods(
    texts: Sequence[str], images: Int[np.ndarray, "n codes"], model: TrainedModel
) -> Float[np.ndarray, "n"]:
    """The mean log-likelihood of the tokens of each text, its end included, given its image, by infill.

    The texts and images must fit the model's positions.
    """
    num_parts = model.mesh.shape["replica"] * model.mesh.shape["fsdp"]
    rows = -(-min(_ROWS, rounded_up(len(texts))) // num_parts) * num_parts
    return np.concatenate(
        [
            _batch_log_likelihoods(texts[start : start + rows], images[start : start + rows], rows, model)
            for start in range(0, len(texts), rows)
        ]
    )


def _batch_log_likelihoods(
    texts: Sequence[str], images: Int[np.ndarray, "n codes"], num_rows: int, model: TrainedModel
) -> Float[np.ndarray, "n"]:
    v = model.vocabulary
    variants = [caption_prompt(text, image, v).variants[0] for text, image in zip(texts, images, strict=True)]
    targets = [[*v.encode_text(text), v.eoss] for text in texts]
    # Images have one length, so the texts begin at one position; the end is predicted and never an input.
    begin, longest = len(variants[0].tokens), max(map(len, targets))
    room = rounded_up(longest, _LEAST_TEXT)
    expected = np.full((num_rows, room), v.pad, np.int32)
    tokens, image_positions = np.zeros((2, num_rows, begin + room - 1), np.int32)
    for row, (variant, target) in enumerate(zip(variants, targets, strict=True)):
        expected[row, : len(target)] = target
        tokens[row, :begin], image_positions[row, :begin] = variant.tokens, variant.image_positions
        tokens[row, begin : begin + len(target) - 1] = target[:-1]
    # Padding has no position beyond those in use, which the model may not have.
    positions = np.broadcast_to(np.minimum(np.arange(tokens.shape[1]), begin + longest - 2), tokens.shape)
    arrays = jax.device_put((tokens, positions, image_positions, expected), batch_sharding(model.mesh))
    found = _mean_log_likelihoods(model.graph, model.parameters, *arrays, v.pad, mesh=model.mesh)
    return np.asarray(found)[: len(texts)]


@partial(jax.jit, static_argnames="mesh")
def _mean_log_likelihoods(
    graph: nnx.GraphDef,
    parameters: nnx.State,
    tokens: Int[Array, "B L"],
    positions: Int[Array, "B L"],
    image_positions: Int[Array, "B L"],
    expected: Int[Array, "B T"],
    pad: Int[Array, ""],
    mesh: Mesh,
) -> Float[Array, "B"]:
    """Of the tokens that the last T of each row are to predict; `pad` expects nothing."""
    model = nnx.merge(graph, parameters)
    hidden = model(tokens, positions, jnp.zeros_like(tokens), image_positions)
    log_probability = jax.nn.log_softmax(model.logits(hidden[:, -expected.shape[1] :]))
    found = jnp.take_along_axis(log_probability, expected[..., None], axis=-1)[..., 0]
    counts = expected != pad
    means = jnp.where(counts, found, 0).sum(axis=1) / jnp.maximum(counts.sum(axis=1), 1)
    return jax.lax.with_sharding_constraint(means, NamedSharding(mesh, PartitionSpec()))
