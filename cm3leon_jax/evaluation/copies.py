"""How many generated images are copies of training images: by the nearest one in an encoder's space, and by pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float32, Float64, Int, Int64

from cm3leon_jax.data.batches.objective import segments
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.encoders.base import Encoder, load_encoder
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation import estimates
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.estimates import Estimate
from cm3leon_jax.evaluation.features import encoder_features
from cm3leon_jax.evaluation.image_arrays import CodedImages, ImageArray
from cm3leon_jax.evaluation.judge_files import JudgePath
from cm3leon_jax.ranges import Fraction, NonNegativeInt, PositiveInt
from cm3leon_jax.vocabulary import Vocabulary

# Levels by which a pixel of the same codes may differ: a decoder rounds by the size of its batch.
_SAME_PIXEL = 2
# Training images whose own nearest one is looked for.
_MOST_COMPARED = 4096
# Most similarities at a time.
_MOST_SIMILARITIES = 1 << 24


def corpus_codes(corpus: PreparedCorpus, split: str, most: int, vocabulary: Vocabulary) -> Int[np.ndarray, "n codes"]:
    """Codes of the first `most` different images of a split (0: of all), whatever documents they are in.

    Raises:
      UserError: if there are none.
    """
    found: dict[bytes, np.ndarray] = {}
    for documents in corpus.splits(split).values():
        for index in range(documents.num_documents):
            tokens = documents.document(index)
            for start, stop in segments(tokens, vocabulary):
                if (codes := vocabulary.image_of_segment(tokens[start:stop])) is not None:
                    found.setdefault(codes.tobytes(), codes)
                if most and len(found) == most:
                    return np.stack([*found.values()])
    if not found:
        raise UserError(f"the split {split!r} of {corpus.path} has no image that a copy could be of")
    return np.stack([*found.values()])


def nearest(
    queries: Float32[np.ndarray, "q dim"],
    vectors: Float32[np.ndarray, "n dim"],
    own: Int64[np.ndarray, "q"] | None = None,
) -> tuple[Int64[np.ndarray, "q"], Float32[np.ndarray, "q"]]:
    """The index of the most similar of `vectors` to each query, and the similarity.

    `own` are the indices of the queries where they are of the vectors: none is its own nearest.
    """
    index, similarity = np.empty(len(queries), np.int64), np.empty(len(queries), np.float32)
    size = max(1, _MOST_SIMILARITIES // len(vectors))
    for start in range(0, len(queries), size):
        rows = slice(start, start + size)
        products = queries[rows] @ vectors.T
        if own is not None:
            products[np.arange(len(products)), own[rows]] = -np.inf
        index[rows] = products.argmax(axis=1)
        similarity[rows] = products.max(axis=1)
    return index, similarity


def own_similarity(vectors: Float32[np.ndarray, "n dim"], fraction: float) -> float:
    """What the similarity of a training image to its nearest other exceeds for this fraction of them."""
    compared = np.linspace(0, len(vectors) - 1, min(len(vectors), _MOST_COMPARED)).astype(np.int64)
    return float(np.quantile(nearest(vectors[compared], vectors, compared)[1], 1 - fraction))


def same_pixels(images: ImageArray, others: ImageArray, batch_size: int) -> Float64[np.ndarray, "n"]:
    """1 where an image has the pixels of the other of its index, but for rounding, else 0."""
    found: list[np.ndarray] = []
    for start in range(0, len(images), batch_size):
        first, second = (array[start : start + batch_size] for array in (images, others))
        difference = np.abs(first.astype(np.int16) - second)
        found.append(difference.max(axis=(1, 2, 3)) <= _SAME_PIXEL)
    return np.concatenate(found).astype(np.float64)


@dataclass(frozen=True)
class Copies:
    """Fractions of generated images that are near-copies, or the same, as a training image.

    `near_copies`: nearer to a training image than all but `quantile` of the training images are to each other;
    a model that has not memorized has about this fraction, and `near_copies_real` is that of the real images of
    the set. `exact_copies`: of the same pixels.
    """

    tasks: ClassVar[tuple[str, ...]] = ("text_to_image",)

    # The folder of the encoder.
    encoder: JudgePath
    # The fraction of training images that are as near to another as a near-copy is.
    quantile: Fraction = 0.05
    # Training images that are searched, the first of the corpus; 0: all.
    num_training_images: NonNegativeInt = 100_000
    # The evaluation set whose prompts are sampled; empty: the prompts of the config.
    set: str = ""
    batch_size: PositiveInt = 64

    def __call__(self, evaluation: EvaluationContext) -> dict[str, float | Estimate]:
        encoder, model = load_encoder(self.encoder), evaluation.model

        training = evaluation.keep((self, "training"), lambda: self._training_images(evaluation, encoder))
        codes, vectors, threshold = training

        def nearest_to(images: ImageArray) -> tuple[Int64[np.ndarray, "n"], Float32[np.ndarray, "n"]]:
            return nearest(encoder_features(images, encoder, self.batch_size), vectors)

        samples = evaluation.sampled(self.set)
        index, similarity = nearest_to(samples.images)
        _, real = evaluation.keep((self, "real"), lambda: nearest_to(evaluation.real_images(self.set)))
        found = CodedImages(codes[index], model.image_tokenizer)
        return {
            "near_copies": estimates.mean((similarity > threshold).astype(np.float64), samples.ids),
            "near_copies_real": estimates.mean((real > threshold).astype(np.float64)),
            "exact_copies": estimates.mean(same_pixels(samples.images, found, self.batch_size), samples.ids),
            "copies_training_images": float(len(codes)),
        }

    def _training_images(
        self, evaluation: EvaluationContext, encoder: Encoder
    ) -> tuple[Int[np.ndarray, "n codes"], Float32[np.ndarray, "n dim"], float]:
        """Codes and vectors of the training images, and what the similarity of a near-copy exceeds."""
        model, split = evaluation.model, evaluation.config.corpus.train_split
        codes = corpus_codes(evaluation.corpus, split, self.num_training_images, model.vocabulary)
        if len(codes) < 2:
            raise UserError(f"a copies metric needs two training images to compare, and the split {split!r} has one")
        vectors = encoder_features(CodedImages(codes, model.image_tokenizer), encoder, self.batch_size)
        return codes, vectors, own_similarity(vectors, self.quantile)
