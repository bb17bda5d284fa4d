"""Images drawn while training, to be looked at."""

from __future__ import annotations

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
from cm3leon_jax.generation.decoder import Decoder
from cm3leon_jax.generation.drawing import draw_images, image_grid
from cm3leon_jax.generation.prompts import text_to_image
from cm3leon_jax.image_tokenizers.base import load_image_tokenizer
from cm3leon_jax.images import encode_png
from cm3leon_jax.vocabulary import Vocabulary

_MOST_PROMPTS, _PER_PROMPT = 10, 6
# Of the held-out texts, where the config names no prompts.
_MOST_TEXTS = 8


class SampleImages:
    """Draws the first prompts of `config.evaluate` into WORKDIR/samples/, one row a prompt.

    Without prompts it draws the first held-out texts; `note` says so, or why it draws nothing.
    """

    def __init__(
        self, config: Config, workdir: Path, vocabulary: Vocabulary, corpus: PreparedCorpus, mesh: Mesh
    ) -> None:
        self._config, self._folder, self._vocabulary = config, workdir / "samples", vocabulary
        self._decoder = Decoder(config.model, vocabulary, config.batch.sequence_length, mesh)
        self._texts: list[str] = []
        self.note = ""
        prompts, split = config.evaluate.prompts[:_MOST_PROMPTS], config.corpus.held_out_split
        if prompts:
            # What is missing or too long shows before the first step, not hours later.
            self._get_ready(prompts)
            return
        try:
            held_out = captioned_images(corpus, split, _MOST_TEXTS, config.batch.sequence_length, vocabulary)
            self._get_ready(tuple(dict.fromkeys(held_out.texts)))
            self.note = f"of the first texts of the split {split!r}, since config.evaluate.prompts is empty"
        except UserError as nothing:
            self.note = f"none, since config.evaluate.prompts is empty and {nothing}"

    def _get_ready(self, prompts: tuple[str, ...]) -> None:
        self._image_tokenizer = load_image_tokenizer(self._config.image_tokenizer.path)
        length = self._image_tokenizer.config.image_length
        self._decoder.check_fits_sequence([text_to_image(text, length, self._vocabulary) for text in prompts])
        self._texts = [text for text in prompts for _ in range(_PER_PROMPT)]

    def __call__(self, step: int, parameters: Any) -> UInt8[np.ndarray, "height width C"] | None:
        """The grid, as the first process writes it to samples/step_0000STEP.png; None where there is nothing to draw.

        All processes of the run call this.
        """
        if not self._texts:
            return None
        self._decoder.load(parameters)
        images = draw_images(self._texts, self._decoder, self._image_tokenizer, self._vocabulary, self._config.sampling)
        self._decoder.load(None)
        grid = image_grid(images, columns=_PER_PROMPT)
        if is_coordinator():
            with atomic_write(self._folder / f"step_{step:08d}.png") as temporary:
                temporary.write_bytes(encode_png(grid))
        return grid
