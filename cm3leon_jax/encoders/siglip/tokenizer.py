"""What SigLIP reads of a text: a row of ids of one length, by SentencePiece or by a tokenizer of `tokenizers`."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32, Int64
from tokenizers import normalizers

from cm3leon_jax.encoders.base import dropped
from cm3leon_jax.encoders.clip.inputs import row_key
from cm3leon_jax.errors import UserError

SENTENCEPIECE_FILE, TOKENIZER_FILE = "spiece.model", "tokenizer.json"
# SentencePiece's sign for a space.
_SPACE = "\u2581"
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)

# Ids of texts, and whether each says anything.
Split = Callable[[Sequence[str]], list[tuple[list[int], bool]]]


@dataclass(frozen=True)
class TextFormat:
    """How a text becomes a row of ids."""

    # The tokenizer, by the name of its file: "spiece.model" or "tokenizer.json".
    file: str
    # Ids around a text, and the id that fills the row, at its end or at its beginning.
    before: tuple[int, ...]
    after: tuple[int, ...]
    pad: int
    pads_left: bool = False
    lower_case: bool = True
    # Of SentencePiece: a text that is put before each, so that its first word is one in the middle, and cut off again.
    unknown: str = "<unk>"


class SiglipTokenizer:
    """Texts to ids of one length."""

    def __init__(self, content: bytes, text_format: TextFormat, max_text_tokens: int) -> None:
        """Takes the content of the tokenizer's file. The libraries raise many things for one that they cannot parse."""
        self.content, self.format, self.max_text_tokens = content, text_format, max_text_tokens
        make = _sentencepiece if text_format.file == SENTENCEPIECE_FILE else _tokenizers
        self._split = make(content, text_format)

    def __call__(
        self, texts: Sequence[str], dropout: float = 0.0, keys: Int64[np.ndarray, "n"] | None = None
    ) -> tuple[Int32[np.ndarray, "n T"], Bool[np.ndarray, "n"]]:
        """Ids of texts, cut where they are too long, and which are not empty.

        A fraction `dropout` of a text's own tokens is left out; one key per text chooses which.
        """
        before, after = self.format.before, self.format.after
        room = self.max_text_tokens - len(before) - len(after)
        ids = np.full((len(texts), self.max_text_tokens), self.format.pad, np.int32)
        is_said = np.zeros(len(texts), bool)
        for row, (found, is_said[row]) in enumerate(self._split(texts)):
            tokens = np.array(found[:room], np.int32)
            if dropout:
                tokens = tokens[~dropped(len(tokens), dropout, row_key(keys, row))]
            whole = [*before, *tokens, *after]
            start = self.max_text_tokens - len(whole) if self.format.pads_left else 0
            ids[row, start : start + len(whole)] = whole
        return ids, is_said


def canonical(text: str, lower_case: bool) -> str:
    """A text without ASCII's punctuation and with single spaces, as the first SigLIP was trained."""
    lowered = text.lower() if lower_case else text
    return re.sub(r"\s+", " ", lowered.translate(_WITHOUT_PUNCTUATION)).strip()


def open_sentencepiece(content: bytes) -> Any:
    """A model of SentencePiece. Raises a `UserError` if the library is not there, and others for a damaged model."""
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        what = f"a {SENTENCEPIECE_FILE} needs sentencepiece ({error})"
        raise UserError(f"{what}: pip install 'cm3leon_jax[data]'") from None
    model = SentencePieceProcessor()
    model.LoadFromSerializedProto(content)
    return model


def _sentencepiece(content: bytes, text_format: TextFormat) -> Split:
    model, prefix = open_sentencepiece(content), text_format.unknown
    num_cut = len(model.encode(prefix))

    def split(texts: Sequence[str]) -> list[tuple[list[int], bool]]:
        # The sign is no ASCII and stays, before spaces that the text begins with, too.
        given = [canonical(_SPACE + text.replace(_SPACE, " "), text_format.lower_case) for text in texts]
        found = model.encode([prefix + text for text in given])
        return [
            (ids[num_cut:] if len(ids) >= num_cut else ids, bool(text.removeprefix(_SPACE).strip()))
            for ids, text in zip(found, given, strict=True)
        ]

    return split


def _tokenizers(content: bytes, text_format: TextFormat) -> Split:
    tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # A text that spells a special token must stay text.
    tokenizer.encode_special_tokens = True
    if text_format.lower_case:
        # SigLIP 2 was trained on lower case; not every published file says so.
        inner = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *inner])

    def split(texts: Sequence[str]) -> list[tuple[list[int], bool]]:
        found = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [(one.ids, bool(one.ids) and not text.isspace()) for one, text in zip(found, texts, strict=True)]

    return split
