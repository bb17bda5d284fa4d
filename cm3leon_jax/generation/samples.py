"""Images from texts, grids of images, and the callback that generates both during training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.distributed import is_coordinator
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import atomic_write
from cm3leon_jax.generation.captioned import captioned_images
from cm3leon_jax.generation.config import SamplingConfig
from cm3leon_jax.generation.prompt import Retrieved
from cm3leon_jax.generation.prompts import text_to_image
from cm3leon_jax.generation.sampler import Sampler
from cm3leon_jax.image_tokenizers.base import ImageTokenizer, load_image_tokenizer
from cm3leon_jax.images import encode_png
from cm3leon_jax.vocabulary import Vocabulary

_MOST_PROMPTS, _PER_PROMPT = 10, 6
# Of the held-out texts, where the config names no prompts.
_MOST_TEXTS = 8


def generate_images(
    texts: Sequence[str],
    sampler: Sampler,
    image_tokenizer: ImageTokenizer,
    vocabulary: Vocabulary,
    sampling: SamplingConfig,
    retrieved: Sequence[Retrieved] = (),
    advance: Callable[[int], None] | None = None,
) -> UInt8[np.ndarray, "n R R C"]:
    """One image per text; `retrieved` are the documents before each, if any; `advance` is the sampler's."""
    length = image_tokenizer.config.image_length
    prompts = [
        text_to_image(text, length, vocabulary, documents)
        for text, documents in zip(texts, retrieved or [()] * len(texts), strict=True)
    ]
    completions = sampler(prompts, sampling, advance=advance)
    return image_tokenizer.decode(vocabulary.decode_image(np.array([each.tokens for each in completions])))


def image_grid(
    images: UInt8[np.ndarray, "n R R C"], columns: int, shortest_side: int = 48, gap: int = 4
) -> UInt8[np.ndarray, "height width C"]:
    """Images in rows on white, small ones magnified by a whole factor so that their pixels can be seen."""
    scale = max(1, -(-shortest_side // images.shape[1]))
    large = images.repeat(scale, axis=1).repeat(scale, axis=2)
    (num, side, _, channels), rows = large.shape, -(-len(images) // columns)
    grid = np.full((rows * (side + gap) + gap, columns * (side + gap) + gap, channels), 255, np.uint8)
    for index in range(num):
        top, left = (gap + (side + gap) * number for number in divmod(index, columns))
        grid[top : top + side, left : left + side] = large[index]
    return grid


class SampleImages:
    """Generates images for the first prompts of `config.evaluate` into WORKDIR/samples/, one row per prompt.

    Without prompts it takes the first held-out texts; `note` says so, or why it generates nothing.
    """

    def __init__(
        self, config: Config, workdir: Path, vocabulary: Vocabulary, corpus: PreparedCorpus, mesh: Mesh
    ) -> None:
        self._config, self._folder, self._vocabulary = config, workdir / "samples", vocabulary
        self._sampler = Sampler(
            config.model, vocabulary, config.batch.sequence_length, mesh, config.image_tokenizer.image_length
        )
        self._texts: list[str] = []
        self.note = ""
        prompts, split = config.evaluate.prompts[:_MOST_PROMPTS], config.corpus.held_out_split
        if prompts:
            # What is missing or too long shows before the first step, not hours later.
            self._prepare(prompts)
            return
        try:
            held_out = captioned_images(corpus, split, _MOST_TEXTS, config.batch.sequence_length, vocabulary)
            self._prepare(tuple(dict.fromkeys(held_out.texts)))
            self.note = f"of the first texts of the split {split!r}, since config.evaluate.prompts is empty"
        except UserError as error:
            self.note = f"none, since config.evaluate.prompts is empty and {error}"

    def _prepare(self, prompts: tuple[str, ...]) -> None:
        self._image_tokenizer = load_image_tokenizer(self._config.image_tokenizer.path)
        length = self._image_tokenizer.config.image_length
        self._sampler.check_fits_sequence([text_to_image(text, length, self._vocabulary) for text in prompts])
        self._texts = [text for text in prompts for _ in range(_PER_PROMPT)]

    def __call__(self, step: int, parameters: Any) -> UInt8[np.ndarray, "height width C"] | None:
        """The grid, which the first process writes to samples/step_0000STEP.png; None where there are no texts.

        All processes of the run call this.
        """
        if not self._texts:
            return None
        self._sampler.load(parameters)
        images = generate_images(
            self._texts, self._sampler, self._image_tokenizer, self._vocabulary, self._config.sampling
        )
        self._sampler.load(None)
        grid = image_grid(images, columns=_PER_PROMPT)
        if is_coordinator():
            with atomic_write(self._folder / f"step_{step:08d}.png") as temporary:
                temporary.write_bytes(encode_png(grid))
        return grid
