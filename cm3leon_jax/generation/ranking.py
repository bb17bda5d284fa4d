"""Which of the candidates that were drawn for a request are kept: the ones that score best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from cm3leon_jax.generation import prompts
from cm3leon_jax.generation.decoder import Completion
from cm3leon_jax.generation.prefill import rounded_up
from cm3leon_jax.generation.requests import Request
from cm3leon_jax.generation.restoring import TrainedModel
from cm3leon_jax.models.sharding import batch_sharding
from cm3leon_jax.vocabulary import Vocabulary

# Captions scored side by side, in a pass that keeps the scores of all pairs of tokens; and the least length of a text.
_ROWS, _LEAST_TEXT = 16, 8


@dataclass(frozen=True)
class Candidate:
    """One answer to a request."""

    request: Request
    answer: Completion
    # Codes of the image, where the answer is one.
    image: Int[np.ndarray, "codes"] | None


# The scores of some candidates, the more the better; only those of one request are compared.
Scorer = Callable[[Sequence[Candidate], TrainedModel], list[float]]


def likelihood(candidates: Sequence[Candidate], _: TrainedModel) -> list[float]:
    """The mean log-likelihood of each answer's tokens, given its prompt."""
    return [candidate.answer.score for candidate in candidates]


def caption(candidates: Sequence[Candidate], model: TrainedModel) -> list[float]:
    """How likely the prompt's text is as a caption of the image; the likelihood of answers to other tasks."""
    return _of_drawings(candidates, lambda texts, images: text_log_likelihoods(texts, images, model))


def clip(candidates: Sequence[Candidate], model: TrainedModel) -> list[float]:
    """How near CLIP finds prompt and image (arXiv 2309.02591, section 3.2); the likelihood for other tasks.

    Raises:
      ValueError: if the model was restored without CLIP, which another scorer does not ask for.
    """
    encoder = model.clip
    if encoder is None:
        raise ValueError("the model was restored without CLIP: config.sampling.scorer has to be 'clip' when it is")

    def products(texts: Sequence[str], images: Int[np.ndarray, "n codes"]) -> Float[np.ndarray, "n"]:
        distinct = list(dict.fromkeys(texts))
        vectors = encoder.encode_texts(distinct)[[distinct.index(text) for text in texts]]
        return np.sum(vectors * encoder.encode_images(model.image_tokenizer.decode(images)), axis=1)

    return _of_drawings(candidates, products)


def _of_drawings(
    candidates: Sequence[Candidate],
    score: Callable[[Sequence[str], Int[np.ndarray, "n codes"]], Float[np.ndarray, "n"]],
) -> list[float]:
    """The likelihood of all, but for images drawn from a text `score` of the texts and images."""
    scores = [candidate.answer.score for candidate in candidates]
    drawn = [(index, c.request.prompt, c.image) for index, c in enumerate(candidates) if is_captioned(c.request)]
    texts, images = [text for _, text, _ in drawn], [codes for _, _, codes in drawn if codes is not None]
    if drawn:
        for (index, _, _), found in zip(drawn, score(texts, np.stack(images)), strict=True):
            scores[index] = float(found)
    return scores


# By the names of `config.sampling.scorer`.
SCORERS: dict[str, Scorer] = {"likelihood": likelihood, "caption": caption, "clip": clip}


def best(scores: Sequence[float], number: int) -> list[int]:
    """The indices of the highest scores, the highest first; of equal ones the first."""
    return sorted(range(len(scores)), key=lambda index: -scores[index])[:number]


def is_captioned(request: Request) -> bool:
    """Whether its answers are images that `caption` and `clip` score."""
    return request.task == "text_to_image"


def caption_prompt(text: str, image: Int[np.ndarray, "codes"], vocabulary: Vocabulary) -> prompts.Prompt:
    """Asks for the text of an image, with room for just this one."""
    return prompts.text_infill(prompts.BLANK, image, len(vocabulary.encode_text(text)), vocabulary)


def text_log_likelihoods(
    texts: Sequence[str], images: Int[np.ndarray, "n codes"], model: TrainedModel
) -> Float[np.ndarray, "n"]:
    """The mean log-likelihood of the tokens of each text, its end included, given its image, by infill.

    The texts and images must fit the model's positions.
    """
    ways = model.mesh.shape["replica"] * model.mesh.shape["fsdp"]
    rows = -(-min(_ROWS, rounded_up(len(texts))) // ways) * ways
    scores = []
    for start in range(0, len(texts), rows):
        chunk = slice(start, start + rows)
        scores.append(_batch(texts[chunk], images[chunk], rows, model))
    return np.concatenate(scores)


def _batch(
    texts: Sequence[str], images: Int[np.ndarray, "n codes"], num_rows: int, model: TrainedModel
) -> Float[np.ndarray, "n"]:
    v = model.vocabulary
    asked = [caption_prompt(text, image, v).variants[0] for text, image in zip(texts, images, strict=True)]
    answers = [[*v.encode_text(text), v.eoss] for text in texts]
    # Images have one length, so the texts begin side by side; the end is predicted and never read.
    begin, longest = len(asked[0].tokens), max(map(len, answers))
    room = rounded_up(longest, _LEAST_TEXT)
    expected = np.full((num_rows, room), v.pad, np.int32)
    tokens, image_positions = np.zeros((2, num_rows, begin + room - 1), np.int32)
    for row, (stream, answer) in enumerate(zip(asked, answers, strict=True)):
        expected[row, : len(answer)] = answer
        tokens[row, :begin], image_positions[row, :begin] = stream.tokens, stream.image_positions
        tokens[row, begin : begin + len(answer) - 1] = answer[:-1]
    # What fills up a row has no position beyond those in use, which the model may not have.
    positions = np.broadcast_to(np.minimum(np.arange(tokens.shape[1]), begin + longest - 2), tokens.shape)
    arrays = jax.device_put((tokens, positions, image_positions, expected), batch_sharding(model.mesh))
    return np.asarray(_mean_log_likelihoods(model.graph, model.parameters, *arrays, v.pad))[: len(texts)]


@jax.jit
def _mean_log_likelihoods(
    graph: nnx.GraphDef,
    parameters: nnx.State,
    tokens: Int[Array, "B L"],
    positions: Int[Array, "B L"],
    image_positions: Int[Array, "B L"],
    expected: Int[Array, "B T"],
    pad: Int[Array, ""],
) -> Float[Array, "B"]:
    """Of the tokens that the last T of each row are to predict; `pad` expects nothing."""
    model = nnx.merge(graph, parameters)
    hidden = model(tokens, positions, jnp.zeros_like(tokens), image_positions)
    log_probability = jax.nn.log_softmax(model.logits(hidden[:, -expected.shape[1] :]))
    found = jnp.take_along_axis(log_probability, expected[..., None], axis=-1)[..., 0]
    counts = expected != pad
    return jnp.where(counts, found, 0).sum(axis=1) / jnp.maximum(counts.sum(axis=1), 1)
