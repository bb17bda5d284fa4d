"""Documents of a prepared corpus for what a person asks: `cm3leon generate --retrieve=K`.

An image that is yet to be drawn is looked for by its text alone, best documents first (arXiv 2309.02591, section 3.2);
what is asked about an image, by that image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.errors import UserError
from cm3leon_jax.generation.requests import Request
from cm3leon_jax.images import UnreadableImage, decode_image
from cm3leon_jax.retrieval.retriever import Neighbor, Retriever
from cm3leon_jax.vocabulary import Vocabulary

BY_TEXT, BY_IMAGE = ("text_to_image", "infill"), ("caption", "vqa", "infill_text")

# Queries searched at a time.
_BLOCK = 64


def open_retriever(config: Config, vocabulary: Vocabulary, count: int) -> Retriever:
    """What finds neighbors in the run's corpus.

    Raises:
      UserError: if there are no neighbors to be found there, or `count` of them cannot stand in front of an image.
    """
    image_length, length = config.image_tokenizer.image_length, config.batch.sequence_length
    # A text of one token and a break beside each image.
    most = length // (image_length + 2) - 1
    if count > most:
        raise UserError(
            f"--retrieve={count} does not fit: beside an image of {image_length} codes, config.batch.sequence_length "
            f"{length} has room for at most {max(0, most)} documents"
        )
    return Retriever.open(config, PreparedCorpus.open(config.corpus.path, vocabulary))


def retrieved_for(
    requests: Sequence[Request], retriever: Retriever, count: int, config: Config
) -> dict[int, list[Neighbor]]:
    """At most `count` documents for each request that can be searched for, by the request's number."""
    tokenizer = config.image_tokenizer

    def by_image(asked: Sequence[Request]) -> dict[int, list[Neighbor]]:
        pixels = {}
        for request in asked:
            assert request.image is not None
            try:
                image = decode_image(request.image.read_bytes(), tokenizer.resolution, tokenizer.in_channels)
            except (OSError, ValueError, UnreadableImage):
                # Said when the request is answered.
                continue
            pixels[request.number] = image
        found = retriever.by_image(np.stack(list(pixels.values())), count) if pixels else []
        return dict(zip(pixels, found, strict=True))

    def by_text(asked: Sequence[Request]) -> dict[int, list[Neighbor]]:
        found = retriever.by_text([request.prompt for request in asked], count)
        return dict(zip((request.number for request in asked), found, strict=True))

    ways: Mapping[tuple[str, ...], Callable[[Sequence[Request]], dict[int, list[Neighbor]]]]
    ways = {BY_TEXT: by_text, BY_IMAGE: by_image}
    result: dict[int, list[Neighbor]] = {}
    for tasks, way in ways.items():
        asked = [request for request in requests if request.task in tasks]
        for start in range(0, len(asked), _BLOCK):
            result |= way(asked[start : start + _BLOCK])
    return result
