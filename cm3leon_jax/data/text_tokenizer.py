"""Learns the vocabulary: a byte-level BPE from the texts of the mixture's training split.

Writes config.vocabulary.path/tokenizer.json, which also holds the ids of image codes and marks, and trained_on.json.
A vocabulary that is there already and fits the config is left alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cm3leon_jax.config import Config
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import read_json, write_json
from cm3leon_jax.vocabulary import NUM_SPECIAL, Vocabulary

# Bytes per token are measured on this many texts.
_NUM_MEASURED = 10_000


def run(config: Config, workdir: Path, arguments: argparse.Namespace) -> int:
    """The command `train-text-tokenizer`."""
    path = Path(config.vocabulary.path)
    if (path / "tokenizer.json").exists():
        old = Vocabulary.load(path)
        difference = _difference(config, old, path)
        if not difference:
            print(f"the vocabulary {path} is there already ({_sizes(old)}): nothing to do")
            return 0
        _refuse_to_orphan_corpus(config, old, difference)
        print(f"the vocabulary {path} is learned again: {difference}")
    texts = _Texts(config)
    vocabulary = Vocabulary.train(
        iter(texts), config.vocabulary.num_text_tokens, config.image_tokenizer.codebook_size, config.vocabulary.num_masks,
        progress=False,
    )  # fmt: skip
    if not texts.count:
        raise UserError(
            f"config.corpus.mixture {config.corpus.mixture!r} has no text in its split {config.corpus.train_split!r}: "
            "the vocabulary is learned from text"
        )
    vocabulary.save(path)
    write_json(path / "trained_on.json", {**_provenance(config), "num_texts": texts.count})
    merges = len(json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"])
    asked = config.vocabulary.num_text_tokens - 256
    print(f"vocabulary: {_sizes(vocabulary)}")
    print(f"learned {merges} merges of {asked} asked for, from {texts.count} texts")
    num_tokens = sum(len(vocabulary.encode_text(text)) for text in texts.first)
    num_bytes = sum(len(text.encode()) for text in texts.first)
    print(f"{num_bytes / max(num_tokens, 1):.2f} bytes per token over the first {len(texts.first)} texts")
    print(f"written to {path}")
    return 0


class _Texts:
    """The texts of the first documents, read once; remembers how many there were and the first of them."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.count = 0
        self.first: list[str] = []

    def __iter__(self) -> Iterator[str]:
        from cm3leon_jax.data.reading import read_documents

        corpus = self._config.corpus
        documents = read_documents(corpus, corpus.train_split)
        limited = islice(documents, self._config.vocabulary.num_documents)
        for document in tqdm(limited, unit=" documents", desc="texts", disable=None):
            if document.text:
                self.count += 1
                if len(self.first) < _NUM_MEASURED:
                    self.first.append(document.text)
                yield document.text


def _provenance(config: Config) -> dict[str, Any]:
    return {
        "mixture": config.corpus.mixture,
        "split": config.corpus.train_split,
        "num_documents": config.vocabulary.num_documents,
    }


def _difference(config: Config, old: Vocabulary, path: Path) -> str:
    """In what an existing vocabulary differs from the config; empty if in nothing."""
    sizes = {
        "num_text_tokens": (old.num_text_tokens, config.vocabulary.num_text_tokens),
        "num_image_codes": (old.num_image_codes, config.image_tokenizer.codebook_size),
        "num_masks": (old.num_masks, config.vocabulary.num_masks),
    }
    # A vocabulary that was brought along has no record of what it was learned from.
    record = (
        read_json(path / "trained_on.json", "the vocabulary's record") if (path / "trained_on.json").exists() else {}
    )
    origin = {name: (record[name], wanted) for name, wanted in _provenance(config).items() if name in record}
    changed = {name: pair for name, pair in {**sizes, **origin}.items() if pair[0] != pair[1]}
    return ", ".join(f"{name} was {was}, is {wanted} now" for name, (was, wanted) in changed.items())


def _refuse_to_orphan_corpus(config: Config, old: Vocabulary, difference: str) -> None:
    for name in ("manifest.json", "plan.json"):
        file = Path(config.corpus.path) / name
        if file.exists() and read_json(file, "the corpus")["vocabulary"]["fingerprint"] == old.fingerprint:
            raise UserError(
                f"the corpus {config.corpus.path} was prepared with the vocabulary {config.vocabulary.path}, which does "
                f"not fit the config any more ({difference}): delete that corpus, or choose another config.vocabulary.path"
            )


def _sizes(vocabulary: Vocabulary) -> str:
    return (
        f"{vocabulary.size} ids: {NUM_SPECIAL} special, {vocabulary.num_text_tokens} text tokens, "
        f"{vocabulary.num_image_codes} image codes, {vocabulary.num_masks} masks, 2 marks and padding"
    )
