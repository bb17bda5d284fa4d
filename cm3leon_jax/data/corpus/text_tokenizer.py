"""Learns the vocabulary: a byte-level BPE from the texts of the mixture's training split.

Writes config.vocabulary.path/tokenizer.json, which also holds the ids of image codes and marks, and trained_on.json.
A vocabulary that is there already and fits the config is left alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.manifest import OfVocabulary
from cm3leon_jax.data.sources.reading import folder_changes, provenance_of
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import read_json, write_json
from cm3leon_jax.lock import lock
from cm3leon_jax.records import read_record
from cm3leon_jax.vocabulary import NUM_SPECIAL, Vocabulary

# Bytes per token are measured on this many texts.
_NUM_MEASURED = 10_000


def run(config: Config, workdir: Path, arguments: argparse.Namespace) -> int:
    """The command `train-text-tokenizer`."""
    path = Path(config.vocabulary.path)
    with lock(path, "train-text-tokenizer"):
        return _run(config, path)


def _run(config: Config, path: Path) -> int:
    if (path / "tokenizer.json").exists():
        old = Vocabulary.load(path)
        difference = _difference(config, old, path)
        if not difference:
            print(f"the vocabulary {path} is there already ({_sizes(old)}): nothing to do")
            if changes := folder_changes(config.corpus, _record(path)):
                print(f"it is of an older state of the folder ({changes}); delete {path} to learn it again")
            return 0
        _refuse_to_orphan_corpus(config, old, difference)
        print(f"the vocabulary {path} is learned again: {difference}")
    _learn(config, path)
    return 0


def _learn(config: Config, path: Path) -> None:
    sources = provenance_of(config.corpus)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        # The BPE trainer pulls texts from a thread of its own, whose stack is too small for TensorFlow.
        for text in _texts(config):
            file.write(json.dumps(text) + "\n")

        def texts() -> Iterator[str]:
            file.seek(0)
            return map(json.loads, file)

        num_texts = sum(1 for _ in texts())
        if not num_texts:
            raise UserError(
                f"config.corpus.mixture {config.corpus.mixture!r} has no text in its split "
                f"{config.corpus.train_split!r}: the vocabulary is learned from text"
            )
        vocabulary = Vocabulary.train(
            texts(),
            config.vocabulary.num_text_tokens,
            config.image_tokenizer.codebook_size,
            config.vocabulary.num_masks,
            progress=False,
        )
        measured = list(islice(texts(), _NUM_MEASURED))
    vocabulary.save(path)
    write_json(path / "trained_on.json", {**_provenance(config), "num_texts": num_texts, "sources": sources})
    merges = len(read_json(path / "tokenizer.json", "the vocabulary")["model"]["merges"])
    num_tokens = sum(len(vocabulary.encode_text(text)) for text in measured)
    num_bytes = sum(len(text.encode()) for text in measured)
    print(f"vocabulary: {_sizes(vocabulary)}")
    print(
        f"learned {merges:,} merges of {config.vocabulary.num_text_tokens - 256:,} asked for, from {num_texts:,} texts"
    )
    print(f"{num_bytes / num_tokens:.2f} bytes per token over the first {len(measured):,} texts")
    print(f"written to {path}")


def _texts(config: Config) -> Iterator[str]:
    from cm3leon_jax.data.sources.reading import read_documents

    documents = islice(read_documents(config.corpus, config.corpus.train_split), config.vocabulary.num_documents)
    for document in tqdm(documents, unit=" documents", desc="texts", disable=None):
        if document.text.strip():
            yield document.text


def _provenance(config: Config) -> dict[str, Any]:
    return {
        "mixture": config.corpus.mixture,
        "split": config.corpus.train_split,
        "num_documents": config.vocabulary.num_documents,
    }


def _record(path: Path) -> dict[str, Any]:
    # A vocabulary that was brought along has no record of what it was learned from.
    file = path / "trained_on.json"
    return read_json(file, "the vocabulary's record") if file.exists() else {}


def _difference(config: Config, old: Vocabulary, path: Path) -> str:
    """In what an existing vocabulary differs from the config; empty if in nothing."""
    sizes = {
        "num_text_tokens": (old.num_text_tokens, config.vocabulary.num_text_tokens),
        "num_image_codes": (old.num_image_codes, config.image_tokenizer.codebook_size),
        "num_masks": (old.num_masks, config.vocabulary.num_masks),
    }
    record = _record(path)
    origin = {name: (record[name], wanted) for name, wanted in _provenance(config).items() if name in record}
    changed = {name: pair for name, pair in {**sizes, **origin}.items() if pair[0] != pair[1]}
    return ", ".join(f"{name} was {was}, is {wanted} now" for name, (was, wanted) in changed.items())


def _refuse_to_orphan_corpus(config: Config, old: Vocabulary, difference: str) -> None:
    for name in ("manifest.json", "plan.json"):
        file = Path(config.corpus.path) / name
        if not file.exists():
            continue
        stored = read_record(file, "the corpus", OfVocabulary, f"delete {config.corpus.path} and prepare it again")
        if stored["vocabulary"]["fingerprint"] == old.fingerprint:
            raise UserError(
                f"the corpus {config.corpus.path} was prepared with the vocabulary {config.vocabulary.path}, which "
                f"does not fit the config any more ({difference}): delete that corpus, or choose another "
                "config.vocabulary.path"
            )


def _sizes(vocabulary: Vocabulary) -> str:
    return (
        f"{vocabulary.size} ids: {NUM_SPECIAL} special, {vocabulary.num_text_tokens} text tokens, "
        f"{vocabulary.num_image_codes} image codes, {vocabulary.num_masks} masks, 2 marks and padding"
    )
