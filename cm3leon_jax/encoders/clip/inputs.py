"""What CLIP is given: ids of texts between a start and an end token, and the normalized pixels of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jaxtyping import Array, Bool, Float, Int32, Int64, UInt8

from cm3leon_jax.encoders.base import dropped


@dataclass(frozen=True)
class SpecialTokenIds:
    """Ids of the special tokens around a text."""

    start: int
    end: int
    pad: int
    # A text's vector is the state at its first `end`, or at its highest id, as in the first published configs.
    ends_at_highest: bool = False

    @property
    def read_at(self) -> int | None:
        """What `clip.eos_positions` is asked for."""
        return None if self.ends_at_highest else self.end


@dataclass(frozen=True)
class ImageNormalization:
    """Mean and standard deviation of red, green and blue, 0 to 1; the defaults are those of the published CLIP."""

    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)


class ClipTokenizer:
    """Texts to ids of one length."""

    def __init__(self, tokenizer_json: str, special_tokens: SpecialTokenIds, max_text_tokens: int) -> None:
        """Takes the JSON of the `tokenizers` library; the special tokens that it may put around a text are left out."""
        self.json, self.special_tokens, self.max_text_tokens = tokenizer_json, special_tokens, max_text_tokens
        self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # A text that spells a special token must stay text.
        self._tokenizer.encode_special_tokens = True

    def __call__(
        self, texts: Sequence[str], dropout: float = 0.0, keys: Int64[np.ndarray, "n"] | None = None
    ) -> tuple[Int32[np.ndarray, "n T"], Bool[np.ndarray, "n"]]:
        """Ids of texts, cut where they are too long, and which are not empty.

        A fraction `dropout` of the tokens between the special ones is left out; one key per text chooses which.
        """
        ids = np.full((len(texts), self.max_text_tokens), self.special_tokens.pad, np.int32)
        ids[:, 0] = self.special_tokens.start
        is_said = np.zeros(len(texts), bool)
        for row, encoding in enumerate(self._tokenizer.encode_batch(list(texts), add_special_tokens=False)):
            tokens = np.array(encoding.ids[: self.max_text_tokens - 2], np.int32)
            is_said[row] = len(tokens) > 0 and not texts[row].isspace()
            if dropout:
                tokens = tokens[~dropped(len(tokens), dropout, row_key(keys, row))]
            ids[row, 1 : len(tokens) + 2] = [*tokens, self.special_tokens.end]
        return ids, is_said


def kept_patches(
    count: int, num_patches: int, dropout: float, keys: Int64[np.ndarray, "n"] | None
) -> Bool[np.ndarray, "n P"]:
    """Of `count` images the patches that are seen; `keys` choose the others, one key per image."""
    if not dropout:
        return np.ones((count, num_patches), bool)
    return np.stack([~dropped(num_patches, dropout, row_key(keys, row)) for row in range(count)])


def normalize_images(
    images: UInt8[Array, "B R R C"], resolution: int, normalization: ImageNormalization, method: str = "cubic"
) -> Float[Array, "B S S 3"]:
    """Gray repeated, resized as CLIP was trained (bicubic, antialiased, clipped), mean 0 and deviation 1 per color.

    `method` is another filter of `jax.image.resize`.
    """
    pixels = images.astype(jnp.float32) / 255
    if pixels.shape[1] != resolution:
        shape = (len(pixels), resolution, resolution, pixels.shape[-1])
        pixels = jnp.clip(jax.image.resize(pixels, shape, method, antialias=True), 0, 1)
    return (pixels - jnp.array(normalization.mean)) / jnp.array(normalization.std)


def row_key(keys: Int64[np.ndarray, "n"] | None, row: int) -> int:
    """The key of a row that something is left out of."""
    if keys is None:
        raise ValueError("dropout needs keys, one for each row")
    return int(keys[row])
