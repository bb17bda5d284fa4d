"""Documents of a prepared corpus for what a person asks: `cm3leon generate --retrieve=K`.

A picture that is yet to be drawn is looked for by its text alone, best documents first (arXiv 2309.02591, section 3.2);
what is asked about a picture, by that picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus import PreparedCorpus
from cm3leon_jax.documents import UnreadablePicture, open_picture
from cm3leon_jax.errors import UserError
from cm3leon_jax.generation.requests import Request
from cm3leon_jax.retrieval.retriever import Neighbour, Retriever
from cm3leon_jax.vocabulary import Vocabulary

BY_TEXT, BY_PICTURE = ("text_to_image", "infill"), ("caption", "vqa", "infill_text")

# Queries searched at a time.
_BLOCK = 64


def open_retriever(config: Config, vocabulary: Vocabulary, count: int) -> Retriever:
    """What finds neighbours in the run's corpus.

    Raises:
      UserError: if there are no neighbours to be found there, or `count` of them cannot stand in front of a picture.
    """
    image_length, length = config.image_tokenizer.image_length, config.batch.sequence_length
    # A text of one token and a break beside each picture.
    most = length // (image_length + 2) - 1
    if count > most:
        raise UserError(
            f"--retrieve={count} does not fit: beside a picture of {image_length} codes, config.batch.sequence_length "
            f"{length} has room for at most {max(0, most)} documents"
        )
    return Retriever.open(config, PreparedCorpus.open(config.corpus.path, vocabulary))


def retrieved_for(
    requests: Sequence[Request], retriever: Retriever, count: int, config: Config
) -> dict[int, list[Neighbour]]:
    """At most `count` documents for each request that can be searched for, by the request's number."""
    image = config.image_tokenizer

    def by_picture(asked: Sequence[Request]) -> dict[int, list[Neighbour]]:
        pixels = {}
        for request in asked:
            assert request.image is not None
            try:
                picture = open_picture(request.image.read_bytes(), image.resolution, image.in_channels)
            except (OSError, ValueError, UnreadablePicture):
                # Said when the request is answered.
                continue
            pixels[request.number] = picture
        found = retriever.by_picture(np.stack(list(pixels.values())), count) if pixels else []
        return dict(zip(pixels, found, strict=True))

    def by_text(asked: Sequence[Request]) -> dict[int, list[Neighbour]]:
        found = retriever.by_text([request.prompt for request in asked], count)
        return dict(zip((request.number for request in asked), found, strict=True))

    ways: Mapping[tuple[str, ...], Callable[[Sequence[Request]], dict[int, list[Neighbour]]]]
    ways = {BY_TEXT: by_text, BY_PICTURE: by_picture}
    result: dict[int, list[Neighbour]] = {}
    for tasks, way in ways.items():
        asked = [request for request in requests if request.task in tasks]
        for start in range(0, len(asked), _BLOCK):
            result |= way(asked[start : start + _BLOCK])
    return result
