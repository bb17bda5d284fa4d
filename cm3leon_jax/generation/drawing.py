"""Images from texts, and grids of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from cm3leon_jax.generation.config import SamplingConfig
from cm3leon_jax.generation.decoder import Decoder
from cm3leon_jax.generation.prompts import Retrieved, text_to_image
from cm3leon_jax.image_tokenizers.base import ImageTokenizer
from cm3leon_jax.vocabulary import Vocabulary


def draw_images(
    texts: Sequence[str],
    decoder: Decoder,
    image_tokenizer: ImageTokenizer,
    vocabulary: Vocabulary,
    sampling: SamplingConfig,
    retrieved: Sequence[Retrieved] = (),
    advance: Callable[[int], None] | None = None,
) -> UInt8[np.ndarray, "n R R C"]:
    """One image per text; `retrieved` are the documents in front of each, if any; `advance` is the decoder's."""
    length = image_tokenizer.config.image_length
    fronts = retrieved or [()] * len(texts)
    asked = [text_to_image(text, length, vocabulary, front) for text, front in zip(texts, fronts, strict=True)]
    answers = decoder(asked, sampling, advance=advance)
    return image_tokenizer.decode(vocabulary.decode_image(np.array([answer.tokens for answer in answers])))


def image_grid(
    images: UInt8[np.ndarray, "n R R C"], columns: int, shortest_side: int = 48, gap: int = 4
) -> UInt8[np.ndarray, "height width C"]:
    """Images in rows on white, small ones magnified by a whole factor so that their pixels can be seen."""
    scale = max(1, -(-shortest_side // images.shape[1]))
    large = images.repeat(scale, axis=1).repeat(scale, axis=2)
    (num, side, _, channels), rows = large.shape, -(-len(images) // columns)
    grid = np.full((rows * (side + gap) + gap, columns * (side + gap) + gap, channels), 255, np.uint8)
    for index in range(num):
        top, left = (gap + (side + gap) * place for place in divmod(index, columns))
        grid[top : top + side, left : left + side] = large[index]
    return grid
