"""Turns raw documents into a prepared corpus: token shards and, for retrieval, vectors and neighbor lists.

Each stage goes on where an interrupted run of it stopped, and leaves alone what is complete. Several processes on one
file system divide the work; the files are the same as those of one.
"""

from __future__ import annotations

import argparse
import functools
import logging
from collections.abc import Callable
from pathlib import Path

from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.row_fit import longest_document, row_losses
from cm3leon_jax.data.corpus.document_tokenizer import DocumentTokenizer
from cm3leon_jax.data.corpus.dry_run import estimate_corpus
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.data.corpus.tokenizing import summary, write_token_shards
from cm3leon_jax.data.sources.reading import changes_since
from cm3leon_jax.distributed import clear_partial_files, is_coordinator
from cm3leon_jax.encoders.base import Encoder, load_encoder
from cm3leon_jax.files import read_json
from cm3leon_jax.image_tokenizers.base import load_image_tokenizer
from cm3leon_jax.lock import lock
from cm3leon_jax.models.sharding import make_mesh
from cm3leon_jax.ranges import Range, whole_number
from cm3leon_jax.retrieval.neighbor_search import find_neighbors, neighbor_summary
from cm3leon_jax.vocabulary import Vocabulary

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run",
        nargs="?",
        type=whole_number("--dry-run", Range(at_least=1)),
        const=1000,
        metavar="N",
        help="read N examples (default: 1,000), and say what the corpus would be and how long it would take",
    )


def run(config: Config, workdir: Path, arguments: argparse.Namespace) -> int:
    if arguments.dry_run:
        if is_coordinator():
            log.info(estimate_corpus(config.corpus, _tokens(config), arguments.dry_run, _encoder_loader(config)))
        return 0
    with lock(config.corpus.path, "prepare"):
        _prepare(config)
    return 0


def _log_older_states(config: Config, sources: dict[str, dict[str, str]]) -> None:
    """Says which of the tokenizers and encoders were made from another state of the documents."""
    encoder = Path(config.encoder.path)
    records = {
        "the vocabulary": Path(config.vocabulary.path) / "trained_on.json",
        "the image tokenizer": Path(config.image_tokenizer.path) / "sample" / "sample.json",
        "the encoder": encoder / "sample" / "sample.json",
        "the word statistics": encoder / "trained_on.json",
    }
    for what, file in records.items():
        if file.exists() and (changes := changes_since(read_json(file, f"the record of {what}"), sources)):
            log.info(f"{what} was made from an older state of the documents ({changes}); it goes on being used")


def _tokens(config: Config) -> DocumentTokenizer:
    return DocumentTokenizer(
        Vocabulary.load(config.vocabulary.path),
        load_image_tokenizer(config.image_tokenizer.path),
        config.corpus.encode_batch_size,
        config.corpus.max_document_length or longest_document(config.batch),
        config.corpus.squaring,
    )


def _encoder_loader(config: Config) -> Callable[[], Encoder]:
    """What loads the encoder of retrieval, which may also score captions, at most once."""
    return functools.cache(lambda: load_encoder(config.encoder.path))


def _prepare(config: Config) -> None:
    tokens = _tokens(config)
    # What is missing shows before the hours that tokens may take.
    encoder_loader = _encoder_loader(config)
    encoder = encoder_loader() if config.retrieval.enabled else None
    clear_partial_files(config.corpus.path)
    manifest = write_token_shards(config.corpus, tokens, encoder_loader)
    if is_coordinator():
        corpus = PreparedCorpus.open(config.corpus.path)
        log.info(summary(manifest))
        log.info(row_losses(corpus, tokens.vocabulary, config.batch, config.corpus.train_split))
        _log_older_states(config, {name: task["source"] for name, task in manifest["tasks"].items()})
    if encoder is not None:
        corpus, mesh = PreparedCorpus.open(config.corpus.path), make_mesh(config.mesh)
        found = find_neighbors(config.retrieval, config.corpus, corpus, tokens, encoder, mesh)
        if is_coordinator():
            log.info(neighbor_summary(found))
