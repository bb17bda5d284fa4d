"""One id space for text and images: text tokens, image codes, and the special tokens of the CM3 objective.

`IdSpace` says which ids are which, wherever a layout has them; docs/ids.md shows our own layout. On disk it is one
`tokenizer.json` of the `tokenizers` library, whose names of special tokens tell the layout.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
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
# Around the codes of an image, in layouts that have them.
IMAGE_FRAME = ("<image:begin>", "<image:end>")
_PADDED_TO = 128

# NumPy's on a host, JAX's in a compiled function.
Ids = Int[Any, "..."]
Mask = Bool[Any, "..."]


@dataclass(frozen=True)
class IdSpace:
    """Which ids are text tokens, image codes and special tokens, in any layout."""

    text: tuple[range, ...]
    # The id of each image code.
    image: range | tuple[int, ...]
    masks: range
    start: int
    pad: int
    end: int
    unknown: int
    break_: int
    eoss: int
    # Rows of the embedding table.
    size: int
    # What stands before and after the codes of every image; nothing in our own layout.
    begin_image: tuple[int, ...] = ()
    end_image: tuple[int, ...] = ()

    @classmethod
    def of_names(cls, names: Mapping[str, int]) -> IdSpace:
        """The layout of a tokenizer, by the names of its special tokens; all other ids are text.

        Raises a `UserError` if a special token is missing, or the ids are not 0, 1, 2, ...
        """
        special = (*SPECIAL_TOKENS, "<break>", "<eoss>")
        if missing := [name for name in (*special, "<image:0>", "<mask:0>") if name not in names]:
            raise UserError(
                f"the vocabulary has no {missing[0]}: it was made neither by `cm3leon train-text-tokenizer` nor by "
                "`cm3leon import`"
            )
        if sorted(names.values()) != list(range(len(names))):
            raise UserError(f"the ids of the vocabulary's {len(names):,} tokens are not 0 .. {len(names) - 1:,}")
        frame = [names[name] for name in IMAGE_FRAME if name in names]
        if len(frame) == 1:
            raise UserError(f"the vocabulary has only one of {' and '.join(IMAGE_FRAME)}: images need both or none")
        image_ids, mask_ids = _numbered(names, "image"), _numbered(names, "mask")
        masks = range(mask_ids[0], mask_ids[0] + len(mask_ids))
        if list(masks) != mask_ids:
            raise UserError("the ids of the vocabulary's <mask:0>, <mask:1>, .. do not follow each other")
        taken = {*image_ids, *mask_ids, *frame, *(names[name] for name in special)}
        contiguous = range(image_ids[0], image_ids[0] + len(image_ids))
        start, pad, end, unknown = (names[name] for name in SPECIAL_TOKENS)
        return cls(
            text=tuple(_ranges(index for index in range(len(names)) if index not in taken)),
            image=contiguous if list(contiguous) == image_ids else tuple(image_ids),
            masks=masks,
            start=start,
            pad=pad,
            end=end,
            unknown=unknown,
            break_=names["<break>"],
            eoss=names["<eoss>"],
            size=-(-len(names) // _PADDED_TO) * _PADDED_TO,
            begin_image=tuple(frame[:1]),
            end_image=tuple(frame[1:]),
        )

    @cached_property
    def _image_ranges(self) -> tuple[range, ...]:
        return (self.image,) if isinstance(self.image, range) else tuple(_ranges(sorted(self.image)))

    def is_text(self, ids: Ids) -> Mask:
        """Which ids are text tokens; special tokens are not."""
        return _is_within(ids, self.text)

    def is_image(self, ids: Ids) -> Mask:
        return _is_within(ids, self._image_ranges)

    @property
    def ranges_by_modality(self) -> dict[str, list[tuple[int, int]]]:
        """The ids that a text or an image is sampled of, as (start, stop); a text is ended by `<eoss>` or `</s>`."""
        text = sorted([*itertools.chain(*self.text), self.end, self.eoss])
        found = {"image": _ranges(sorted(self.image)), "text": _ranges(text)}
        return {name: [(each.start, each.stop) for each in ranges] for name, ranges in found.items()}

    def image_segment_length(self, image_length: int) -> int:
        """Ids of an image of so many codes in a document."""
        return len(self.begin_image) + image_length + len(self.end_image)

    def encode_codes(self, codes: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        """Ids of the image tokenizer's codes."""
        if isinstance(self.image, range):
            return codes.astype(np.int32) + self.image.start
        return np.asarray(self.image, np.int32)[codes]

    def encode_image(self, codes: Int[np.ndarray, "... n"]) -> Int[np.ndarray, "... m"]:
        """Ids of images as a document has them: of their codes, and what stands around these."""
        ids = self.encode_codes(codes)
        if not self.begin_image:
            return ids
        frame = (np.array(part, np.int32) for part in (self.begin_image, self.end_image))
        before, after = (np.broadcast_to(part, (*ids.shape[:-1], 1)) for part in frame)
        return np.concatenate([before, ids, after], axis=-1)

    def image_of_segment(self, segment: Int[np.ndarray, "n"]) -> Int[np.ndarray, "codes"] | None:
        """The codes of a segment of a document that is a whole image; None of any other."""
        codes = self.decode_image(segment[np.asarray(self.is_image(segment))])
        return codes if len(codes) and np.array_equal(self.encode_image(codes), segment) else None

    def decode_image(self, ids: Int[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
        """The image tokenizer's codes of ids that are image codes."""
        if isinstance(self.image, range):
            return ids.astype(np.int32) - self.image.start
        order = np.argsort(self.image).astype(np.int32)
        return order[np.searchsorted(np.asarray(self.image)[order], ids)]


def _numbered(names: Mapping[str, int], kind: str) -> list[int]:
    """The ids of `<kind:0>`, `<kind:1>`, .."""
    count = sum(re.fullmatch(rf"<{kind}:\d+>", name) is not None for name in names)
    wanted = [f"<{kind}:{index}>" for index in range(count)]
    if missing := [name for name in wanted if name not in names]:
        raise UserError(f"the vocabulary has no {missing[0]}, but {count} of its kind")
    return [names[name] for name in wanted]


def _ranges(ids: Iterable[int]) -> list[range]:
    found: list[range] = []
    for index in ids:
        if found and found[-1].stop == index:
            found[-1] = range(found[-1].start, index + 1)
        else:
            found.append(range(index, index + 1))
    return found


def _is_within(ids: Ids, ranges: Sequence[range]) -> Mask:
    return reduce(lambda found, each: found | each, ((ids >= each.start) & (ids < each.stop) for each in ranges))


def padded_size(num_text_tokens: int, num_image_codes: int, num_masks: int) -> int:
    """Rows of the embedding table: all ids, rounded up to a multiple of 128 so that it shards and tiles well."""
    size = NUM_SPECIAL + num_text_tokens + num_image_codes + 2 + num_masks
    return -(-size // _PADDED_TO) * _PADDED_TO


class Vocabulary:
    """Encodes text and image codes to ids and back."""

    def __init__(self, tokenizer_json: str) -> None:
        self._json = tokenizer_json
        self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        # A text that spells "<break>" must stay text.
        self._tokenizer.encode_special_tokens = True
        self.ids = IdSpace.of_names(self._tokenizer.get_vocab(with_added_tokens=True))
        self.start, self.pad, self.end, self.unknown = self.ids.start, self.ids.pad, self.ids.end, self.ids.unknown
        self.break_, self.eoss, self.first_mask = self.ids.break_, self.ids.eoss, self.ids.masks.start
        self.num_text_tokens = sum(map(len, self.ids.text))
        self.num_image_codes, self.num_masks = len(self.ids.image), len(self.ids.masks)
        self.first_image_code = self.ids.image[0]
        self.size = self.ids.size
        self.is_text, self.is_image = self.ids.is_text, self.ids.is_image
        self.begin_image, self.end_image = self.ids.begin_image, self.ids.end_image
        self.encode_image, self.decode_image = self.ids.encode_image, self.ids.decode_image
        self.image_of_segment, self.image_segment_length = self.ids.image_of_segment, self.ids.image_segment_length

    @classmethod
    def train(
        cls, texts: Iterable[str], num_text_tokens: int, num_image_codes: int, num_masks: int, progress: bool = True
    ) -> Vocabulary:
        """Learns a byte-level BPE from `texts`; the other ids follow its own."""
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
        return cls.around(json.loads(tokenizer.to_str()), NUM_SPECIAL + num_text_tokens, num_image_codes, num_masks)

    @classmethod
    def around(
        cls,
        text_tokenizer: dict[str, Any],
        num_ids: int,
        num_image_codes: int,
        num_masks: int,
        roles: Mapping[str, int] | None = None,
    ) -> Vocabulary:
        """Adds the other ids after the first `num_ids`, those of a BPE, given as the JSON object of `tokenizer.json`.

        `roles` are those of its tokens that get one of our names, by that name; of ours, the ones that it lacks follow,
        those in `SPECIAL_TOKENS` first. What it has as special beyond them stays a name of its id, but no text is
        encoded to it.
        """
        state = copy.deepcopy(text_tokenizer)
        added = state["added_tokens"]
        theirs = state["model"]["vocab"] | {token["content"]: token["id"] for token in added}
        names = {index: name for name, index in theirs.items()}
        # A small corpus yields fewer merges than wanted; the id space keeps its size all the same, so that the
        # shape of the model follows from the config alone.
        names |= {index: f"<unused:{index}>" for index in range(num_ids) if index not in names}
        ids = {name: index for index, name in names.items()}
        for role, index in (roles or {}).items():
            name, other = names[index], ids.get(role)
            names[index], ids[role] = role, index
            if other is None:
                del ids[name]
            else:
                # What has the name already gets that of the token which takes it.
                names[other], ids[name] = name, other
        state["model"]["vocab"] = ids
        if (unknown := theirs.get(state["model"].get("unk_token"))) is not None:
            state["model"]["unk_token"] = names[unknown]
        own = [name for name in (*SPECIAL_TOKENS, *(roles or {})) if name in ids]
        wanted = [
            *SPECIAL_TOKENS,
            *(f"<image:{code}>" for code in range(num_image_codes)),
            *("<break>", "<eoss>"),
            *(f"<mask:{index}>" for index in range(num_masks)),
        ]
        special = [name for name in wanted if name not in set(own)]
        if taken_names := [name for name in (*special, *IMAGE_FRAME) if name in ids and name not in own]:
            raise UserError(f"the tokenizer has a token {taken_names[0]} already, which is to be one of ours")
        ours = {ids[name]: name for name in own} | dict(enumerate(special, start=num_ids))
        as_they_are = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        entries = [{"id": index, "content": name, "special": True, **as_they_are} for index, name in ours.items()]
        plain = [token for token in added if not token["special"] and token["id"] not in ours]
        state["added_tokens"] = sorted(plain + entries, key=lambda token: token["id"])
        # A text is never truncated, and no special tokens are put around it: the layouts of documents add them.
        state |= {"truncation": None, "padding": None, "post_processor": None}
        return cls(json.dumps(state, ensure_ascii=False, sort_keys=True))

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        file = Path(path) / "tokenizer.json"
        try:
            return cls(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"no vocabulary at {file}: run `cm3leon train-text-tokenizer` first") from None
        except Exception as error:  # The library raises a bare Exception for a file that it cannot parse.
            raise UserError(f"the vocabulary {file} is damaged ({error}): make it again") from None

    def save(self, path: str | Path) -> None:
        with atomic_write(Path(path) / "tokenizer.json") as temporary:
            temporary.write_text(self._json, encoding="utf-8")

    @property
    def fingerprint(self) -> str:
        """Equal for equal id spaces; stored in every prepared corpus and every checkpoint."""
        canonical = json.dumps(json.loads(self._json), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def mask(self, index: int) -> int:
        return self.first_mask + index

    def encode_text(self, text: str) -> list[int]:
        """Ids of a text; nothing in it is read as a special token."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_pieces(self, text: str, longest: int) -> list[list[int]]:
        """Ids of a text in pieces of at most `longest`, cut before words, or else between characters."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids, starts = encoding.ids, [start for start, _ in encoding.offsets]
        pieces = list[list[int]]()
        first = 0
        while len(ids) - first > longest:
            # Tokens of one character begin at the same offset.
            cuts = [at for at in range(first + 1, first + longest + 1) if starts[at] != starts[at - 1]]
            words = [at for at in cuts if text[starts[at]].isspace() or text[starts[at] - 1].isspace()]
            stop = (words or cuts or [first + longest])[-1]
            pieces.append(ids[first:stop])
            first = stop
        return [*pieces, ids[first:]]

    def decode_text(self, ids: Sequence[int]) -> str:
        """The text of the text tokens among `ids`; special tokens and image codes are skipped."""
        found = np.asarray(ids, np.int64)
        return self._tokenizer.decode(found[self.is_text(found)].tolist(), skip_special_tokens=True)

    def name(self, token: int) -> str:
        """One id as a person reads it."""
        return self._tokenizer.id_to_token(token) or f"<id:{token}>"

    def check_fingerprint(self, found: str, what: str) -> None:
        """Refuses something that was made with another vocabulary."""
        if found != self.fingerprint:
            raise UserError(
                f"{what} was made with another vocabulary (fingerprint {found}, this one is {self.fingerprint}): "
                "point config.vocabulary.path to the vocabulary it was made with, or make it again with this one"
            )
