"""Selects held-out documents of one text and one image, for evaluation and samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from cm3leon_jax.data.batches.objective import segments
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.errors import UserError
from cm3leon_jax.vocabulary import Vocabulary

# Special tokens of an infill prompt beside the document: two ends, and two for each of a few spans.
_MOST_SPECIAL = 8


@dataclass(frozen=True)
class CaptionedImages:
    """Held-out documents of one text and one image."""

    texts: list[str]
    codes: Int[np.ndarray, "n codes"]


def captioned_images(
    corpus: PreparedCorpus, split: str, most: int, longest: int, vocabulary: Vocabulary
) -> CaptionedImages:
    """The first `most` (0: all) documents of a split that are one text and one image, each image once.

    Documents that leave no room for a completion in the `longest` positions of the model are skipped.
    """
    texts: list[str] = []
    codes: list[Int[np.ndarray, "codes"]] = []
    seen: set[bytes] = set()
    for documents in corpus.splits(split).values():
        for index in range(documents.num_documents):
            tokens = documents.document(index)
            parts = [tokens[start:stop] for start, stop in segments(tokens, vocabulary)]
            images = [part for part in parts if vocabulary.image_of_segment(part) is not None]
            words = [part for part in parts if not vocabulary.is_image(part).any()]
            # Room for the special tokens, and for as many codes as an infill can ask for.
            fits = len(tokens) + len(images[0] if images else ()) + _MOST_SPECIAL <= longest
            if len(images) != 1 or len(words) != 1 or len(parts) != 2 or not fits:
                continue
            if images[0].tobytes() not in seen:
                seen.add(images[0].tobytes())
                texts.append(vocabulary.decode_text(words[0].tolist()))
                codes.append(vocabulary.decode_image(images[0][vocabulary.is_image(images[0])]))
            if most and len(texts) == most:
                return CaptionedImages(texts, np.stack(codes))
    if not texts:
        raise UserError(
            f"the split {split!r} of {corpus.path} has no document of one text and one image that leaves room for "
            f"a completion within config.batch.sequence_length {longest}: point config.corpus.path to a corpus of "
            "captioned images, name another config.corpus.held_out_split, or shorten the captions"
        )
    return CaptionedImages(texts, np.stack(codes))
