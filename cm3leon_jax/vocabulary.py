"""One id space for text and images: text tokens, image codes, and the marks of the CM3 objective.

    0..3                    <s> <pad> </s> <unk>
    4..4+T                  text tokens: a byte-level BPE, so any string can be written
    4+T..4+T+K              image codes <image:0> .. <image:K-1>
    4+T+K                   <break>, between two segments of a document
    4+T+K+1                 <eoss>, the end of an infilled span
    4+T+K+2..               <mask:0> <mask:1> ..

On disk it is one `tokenizer.json` of the `tokenizers` library.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Bool, Int
from tokenizers import decoders, models, pre_tokenizers, trainers

from cm3leon_jax.errors import UserError
from cm3leon_jax.files import atomic_write

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
NUM_SPECIAL = len(SPECIAL_TOKENS)
_PADDED_TO = 128

# NumPy's on a host, JAX's in a compiled function.
Ids = Int[Any, "..."]
Mask = Bool[Any, "..."]


def padded_size(num_text_tokens: int, num_image_codes: int, num_masks: int) -> int:
    """Rows of the embedding table: all ids, rounded up to a multiple of 128 so that it shards and tiles well."""
    size = NUM_SPECIAL + num_text_tokens + num_image_codes + 2 + num_masks
    return -(-size // _PADDED_TO) * _PADDED_TO


class Vocabulary:
    """Encodes text and image codes to ids and back."""

    start, pad, end, unknown = range(NUM_SPECIAL)

    def __init__(self, tokenizer_json: str) -> None:
        self._json = tokenizer_json
        self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        # A text that spells "<break>" must stay text.
        self._tokenizer.encode_special_tokens = True
        names = [token["content"] for token in json.loads(tokenizer_json)["added_tokens"]]
        self.num_image_codes = sum(bool(re.fullmatch(r"<image:\d+>", name)) for name in names)
        self.num_masks = sum(bool(re.fullmatch(r"<mask:\d+>", name)) for name in names)
        self.first_image_code = self._id("<image:0>")
        self.num_text_tokens = self.first_image_code - NUM_SPECIAL
        self.break_ = self._id("<break>")
        self.eoss = self._id("<eoss>")
        self.first_mask = self._id("<mask:0>")
        self.size = padded_size(self.num_text_tokens, self.num_image_codes, self.num_masks)
        self._check_places()

    def _check_places(self) -> None:
        """Ids are told apart by where they lie, so a file in which one lies elsewhere is no vocabulary."""
        places = dict(enumerate(SPECIAL_TOKENS))
        places |= {self.first_image_code + code: f"<image:{code}>" for code in range(self.num_image_codes)}
        places[self.first_image_code + self.num_image_codes] = "<break>"
        places[self.break_ + 1] = "<eoss>"
        places |= {self.break_ + 2 + index: f"<mask:{index}>" for index in range(self.num_masks)}
        for place, name in places.items():
            if self._tokenizer.token_to_id(name) != place:
                raise UserError(f"the vocabulary has {name} at id {self._tokenizer.token_to_id(name)}, not {place}")
        if (found := self._tokenizer.get_vocab_size()) != self.first_mask + self.num_masks:
            raise UserError(f"the vocabulary has {found} tokens for {self.first_mask + self.num_masks} ids")

    def _id(self, token: str) -> int:
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise UserError(f"the vocabulary has no {token}: it was not made by `cm3leon train-text-tokenizer`")
        return token_id

    @classmethod
    def train(
        cls, texts: Iterable[str], num_text_tokens: int, num_image_codes: int, num_masks: int, progress: bool = True
    ) -> Vocabulary:
        """Learns a byte-level BPE from `texts` and lays the other ids behind it."""
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.train_from_iterator(
            texts,
            trainers.BpeTrainer(
                vocab_size=NUM_SPECIAL + num_text_tokens,
                special_tokens=list(SPECIAL_TOKENS),
                initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
                show_progress=progress,
            ),
        )
        return cls.around(json.loads(tokenizer.to_str()), num_text_tokens, num_image_codes, num_masks)

    @classmethod
    def around(
        cls, text_tokenizer: dict[str, Any], num_text_tokens: int, num_image_codes: int, num_masks: int
    ) -> Vocabulary:
        """Lays the other ids behind those of a byte-level BPE, given as the JSON object of its `tokenizer.json`.

        Its first ids must be `SPECIAL_TOKENS`. What it marks as special beyond them stays a name of its id, but is read
        out of no text.
        """
        state = {
            **text_tokenizer,
            "model": {**text_tokenizer["model"], "vocab": dict(text_tokenizer["model"]["vocab"])},
        }
        vocab, added = state["model"]["vocab"], state["added_tokens"]
        vocab |= {token["content"]: token["id"] for token in added}
        # A small corpus yields fewer merges than asked for; the id space keeps its size all the same, so that the
        # shape of the model follows from the config alone.
        taken = set(vocab.values())
        for index in range(NUM_SPECIAL + num_text_tokens):
            if index not in taken:
                vocab[f"<unused:{index}>"] = index
        marks = (
            [f"<image:{code}>" for code in range(num_image_codes)]
            + ["<break>", "<eoss>"]
            + [f"<mask:{i}>" for i in range(num_masks)]
        )
        names = [*enumerate(SPECIAL_TOKENS), *enumerate(marks, start=NUM_SPECIAL + num_text_tokens)]
        plain = [token for token in added if not token["special"] and token["id"] >= NUM_SPECIAL]
        state["added_tokens"] = [
            {
                "id": index,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for index, name in names
        ]
        state["added_tokens"] = sorted(plain + state["added_tokens"], key=lambda token: token["id"])
        # A text is never cut, and no marks are put around it: the layouts of documents say where marks stand.
        state |= {"truncation": None, "padding": None, "post_processor": None}
        return cls(json.dumps(state, ensure_ascii=False, sort_keys=True))

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Reads `path`/tokenizer.json."""
        file = Path(path) / "tokenizer.json"
        try:
            return cls(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"no vocabulary at {file}: run `cm3leon train-text-tokenizer` first") from None
        except Exception as error:  # The library raises a bare Exception for a file that it cannot parse.
            raise UserError(f"the vocabulary {file} is damaged ({error}): make it again") from None

    def save(self, path: str | Path) -> None:
        """Writes `path`/tokenizer.json."""
        with atomic_write(Path(path) / "tokenizer.json") as temporary:
            temporary.write_text(self._json, encoding="utf-8")

    @property
    def fingerprint(self) -> str:
        """Equal for equal id spaces; stored in every prepared corpus and every checkpoint."""
        canonical = json.dumps(json.loads(self._json), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def mask(self, index: int) -> int:
        """The id of `<mask:index>`."""
        return self.first_mask + index

    def encode_text(self, text: str) -> list[int]:
        """Ids of a text; nothing in it is read as a mark."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode_text(self, ids: Sequence[int]) -> str:
        """The text of the text tokens among `ids`; marks and image codes are left out."""
        found = np.asarray(ids, np.int64)
        return self._tokenizer.decode(found[self.is_text(found)].tolist(), skip_special_tokens=True)

    def name(self, token: int) -> str:
        """One id as a person reads it."""
        return self._tokenizer.id_to_token(token) or f"<id:{token}>"

    def encode_image(self, codes: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        """Ids of the image tokenizer's codes."""
        return codes.astype(np.int32) + self.first_image_code

    def decode_image(self, ids: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        """The image tokenizer's codes of image ids."""
        return ids.astype(np.int32) - self.first_image_code

    def is_image(self, ids: Ids) -> Mask:
        """Which ids are image codes."""
        return (ids >= self.first_image_code) & (ids < self.first_image_code + self.num_image_codes)

    def is_text(self, ids: Ids) -> Mask:
        """Which ids are text tokens (marks are not)."""
        return (ids >= NUM_SPECIAL) & (ids < self.first_image_code)

    def check_fingerprint(self, found: str, what: str) -> None:
        """Refuses something that was made with another vocabulary."""
        if found != self.fingerprint:
            raise UserError(
                f"{what} was made with another vocabulary (fingerprint {found}, this one is {self.fingerprint}): "
                "point config.vocabulary.path to the vocabulary it was made with, or make it anew with this one"
            )
