"""Learns the vocabulary from the texts of the mixture's training split."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cm3leon_jax.data.corpus.config import CorpusConfig, VocabularyConfig
from cm3leon_jax.data.corpus.manifest import OfVocabulary
from cm3leon_jax.data.sources.reading import current_changes, provenance_of
from cm3leon_jax.data.templates import TEMPLATES
from cm3leon_jax.data.templates.template import Template
from cm3leon_jax.documents import Document, TextSegment
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import read_json, write_json
from cm3leon_jax.records import read_record
from cm3leon_jax.vocabulary import NUM_SPECIAL, Vocabulary

log = logging.getLogger(__name__)

# Bytes per token are measured on this many texts.
_NUM_MEASURED = 10_000


def train_text_tokenizer(corpus: CorpusConfig, config: VocabularyConfig, num_image_codes: int) -> None:
    """Writes the vocabulary, unless one that fits the config is there.

    Raises:
      UserError: if the mixture has no texts, or a prepared corpus needs the vocabulary that would be replaced.
    """
    path = Path(config.path)
    if (path / "tokenizer.json").exists():
        old, record = Vocabulary.load(path), _record(path)
        changed = _changed(old, record, corpus, config, num_image_codes)
        if not changed:
            log.info(f"the vocabulary {path} is there already ({_sizes(old)}): nothing to do")
            if changes := current_changes(corpus, record):
                log.info(f"it is of an older state of the documents ({changes}); delete {path} to learn it again")
            return
        difference = ", ".join(f"{name} was {was}, is {wanted} now" for name, (was, wanted) in changed.items())
        _check_not_needed(corpus, old, path, difference)
        log.info(f"the vocabulary {path} is learned again: {difference}")
    _train(corpus, config, num_image_codes, path)


def _train(corpus: CorpusConfig, config: VocabularyConfig, num_image_codes: int, path: Path) -> None:
    sources = provenance_of(corpus)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        # The BPE trainer pulls texts from a thread of its own, whose stack is too small for TensorFlow.
        num_texts = 0
        for text in _texts(corpus, config.num_documents):
            file.write(json.dumps(text) + "\n")
            num_texts += 1
        if not num_texts:
            raise UserError(
                f"config.corpus.mixture {corpus.mixture!r} has no text in its split {corpus.train_split!r}: the "
                "vocabulary is learned from text"
            )

        def texts() -> Iterator[str]:
            file.seek(0)
            return map(json.loads, file)

        vocabulary = Vocabulary.train(
            texts(), config.num_text_tokens, num_image_codes, config.num_masks, progress=False
        )
        measured = list(islice(texts(), _NUM_MEASURED))
    vocabulary.save(path)
    write_json(path / "trained_on.json", {**_origin(corpus, config), "num_texts": num_texts, "sources": sources})
    merges = len(read_json(path / "tokenizer.json", "the vocabulary")["model"]["merges"])
    num_tokens = sum(len(vocabulary.encode_text(text)) for text in measured)
    num_bytes = sum(len(text.encode()) for text in measured)
    log.info(f"vocabulary: {_sizes(vocabulary)}")
    log.info(f"learned {merges:,} merges of {config.num_text_tokens - 256:,} wanted, from {num_texts:,} texts")
    log.info(f"{num_bytes / num_tokens:.2f} bytes per token over the first {len(measured):,} texts")
    log.info(f"written to {path}")


def _texts(corpus: CorpusConfig, num_documents: int) -> Iterator[str]:
    from cm3leon_jax.data.sources.reading import read_documents

    documents = islice(read_documents(corpus, corpus.train_split), num_documents)
    for number, document in enumerate(tqdm(documents, unit=" documents", desc="texts", disable=None)):
        if (text := _text(document, number)).strip():
            yield text


def _text(document: Document, number: int) -> str:
    """The text of a document; of an instruction in one of its wordings, each as often, as batches will have it."""
    if not document.template:
        return document.text
    template: Template = TEMPLATES.load(document.template)
    if template.fields_of(len(document.segments)) is None:
        # `prepare` skips it.
        return ""
    values = [segment.text if isinstance(segment, TextSegment) else "" for segment in document.segments]
    return template.text(values, number % len(template.wordings))


def _origin(corpus: CorpusConfig, config: VocabularyConfig) -> dict[str, Any]:
    return {"mixture": corpus.mixture, "split": corpus.train_split, "num_documents": config.num_documents}


def _record(path: Path) -> dict[str, Any]:
    # A vocabulary that was brought along has no record of what it was learned from.
    file = path / "trained_on.json"
    return read_json(file, "the vocabulary's record") if file.exists() else {}


def _changed(
    old: Vocabulary, record: dict[str, Any], corpus: CorpusConfig, config: VocabularyConfig, num_image_codes: int
) -> dict[str, tuple[Any, Any]]:
    """Sizes and origin that differ from the config's: what they are, and what is wanted."""
    sizes = {
        "num_text_tokens": config.num_text_tokens,
        "num_image_codes": num_image_codes,
        "num_masks": config.num_masks,
    }
    was = record | {name: getattr(old, name) for name in sizes}
    wanted = sizes | _origin(corpus, config)
    return {name: (was[name], value) for name, value in wanted.items() if was.get(name, value) != value}


def _check_not_needed(corpus: CorpusConfig, old: Vocabulary, path: Path, difference: str) -> None:
    """Checks that no prepared corpus would be left without its vocabulary."""
    for name in ("manifest.json", "plan.json"):
        file = Path(corpus.path) / name
        if not file.exists():
            continue
        stored = read_record(file, "the corpus", OfVocabulary, f"delete {corpus.path} and prepare it again")
        if stored["vocabulary"]["fingerprint"] == old.fingerprint:
            raise UserError(
                f"the corpus {corpus.path} was prepared with the vocabulary {path}, which does not fit the config any "
                f"more ({difference}): delete that corpus, or choose another config.vocabulary.path"
            )


def _sizes(vocabulary: Vocabulary) -> str:
    return (
        f"{vocabulary.size} ids: {NUM_SPECIAL} special, {vocabulary.num_text_tokens} text tokens, "
        f"{vocabulary.num_image_codes} image codes, {vocabulary.num_masks} masks, `<break>`, `<eoss>` and padding"
    )
