"""The vectors of a corpus's documents, shard by shard beside its tokens.

    CORPUS/retrieval/TASK/SPLIT/vectors-00000.npy   float16 [documents, 2, dim]: of the text, of the images
    CORPUS/retrieval/TASK/SPLIT/queries-00000.npy   the same, each without a share of its tokens and patches
    CORPUS/retrieval/TASK/SPLIT/vectors-00000.json  the checksums of both

A document's own vector is the mean of the two, with unit norm (arXiv 2309.02591, section 2.1.2); a document that lacks
text or images has zeros in its place.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float16, Float32, Int64
from tqdm import tqdm

from cm3leon_jax import counter_random
from cm3leon_jax.data.corpus.array_files import open_arrays, save_arrays
from cm3leon_jax.data.corpus.document_tokenizer import DecodedDocument, DocumentTokenizer
from cm3leon_jax.data.corpus.shard_writer import read_shard_record, shard_metadata_file
from cm3leon_jax.data.sources.reading import ShardSlice, SkippedExample, TaskReader
from cm3leon_jax.distributed import is_coordinator
from cm3leon_jax.documents import Document
from cm3leon_jax.encoders.base import Encoder, l2_normalize
from cm3leon_jax.errors import UserError

# Documents encoded at a time.
_BLOCK = 256


def vectors_file(folder: Path, shard: int) -> Path:
    """Where the vectors of a shard's documents lie."""
    return folder / f"vectors-{shard:05d}.npy"


def queries_file(folder: Path, shard: int) -> Path:
    """Where the vectors lie that are searched for."""
    return folder / f"queries-{shard:05d}.npy"


def vectors_record(folder: Path, shard: int) -> Path:
    """Where the record of a shard's vectors lies."""
    return folder / f"vectors-{shard:05d}.json"


def open_vectors(folder: Path, shard: int) -> tuple[Float16[np.ndarray, "n 2 dim"], Float16[np.ndarray, "n 2 dim"]]:
    """The vectors and the queries of a shard, memory-mapped after they were checked."""
    names = vectors_file(folder, shard).name, queries_file(folder, shard).name
    fix = "delete that file and run `cm3leon prepare` again, which writes it anew"
    vectors, queries = open_arrays(vectors_record(folder, shard), names, fix)
    return vectors, queries


def document_embeddings(parts: Float16[np.ndarray, "n 2 dim"]) -> Float32[np.ndarray, "n dim"]:
    """Each document's own vector: the mean of its text's and its images', unit norm again."""
    return l2_normalize(parts.astype(np.float32).sum(axis=1))


def write_vectors(
    task: TaskReader,
    split: str,
    num_shards: int,
    tokens: DocumentTokenizer,
    shards: Path,
    folder: Path,
    encoder: Encoder,
    dropout: float,
    seed: int,
    size: int,
    turn: int,
) -> None:
    """Writes this process's share of the vectors of a task and split, in one more pass over the raw documents.

    Args:
      task: reads the documents.
      split: which of them.
      num_shards: of the token shards.
      tokens: says, as it did for the tokens, which documents are left out.
      shards: folder of the token shards.
      folder: of the vectors.
      encoder: makes the vectors.
      dropout: share of the queries' tokens and patches that is left out, chosen by `seed` and each document's place.
      seed: of the dropout.
      size: examples of a shard.
      turn: from which process on the shards are dealt out.

    Raises:
      UserError: if the raw documents are no longer those of the token shards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records = [read_shard_record(shard_metadata_file(shards, shard)) for shard in range(num_shards)]
    first_document = np.cumsum([0, *(record["num_documents"] for record in records)])
    step = jax.process_count()
    own = range((jax.process_index() - turn) % step, num_shards, step)
    missing = [shard for shard in own if not vectors_record(folder, shard).exists()]
    if not missing:
        return
    # One pass for all of them: to open the documents at a later one reads all before it.
    numbered = (
        (index // size, document)
        for index, document in task.numbered(split, ShardSlice(size, missing[0], step))
        if index // size in missing
    )
    runs = itertools.groupby(numbered, key=operator.itemgetter(0))
    for shard in missing:
        record, start = records[shard], int(first_document[shard])
        _, run = next(runs, (shard, iter(())))
        examples = (document for _, document in itertools.islice(run, record["num_examples"]))
        vectors = np.zeros((record["num_documents"], 2, encoder.dim), np.float16)
        queries = np.zeros_like(vectors)
        done = 0
        with tqdm(
            total=len(vectors),
            l2_normalize=" documents",
            desc=f"vectors {task.name} {split} {shard}",
            disable=None if is_coordinator() else True,
        ) as progress:
            for block in _blocks(_opened(tokens, examples)):
                place = slice(done, done + len(block))
                done += len(block)
                if done > len(vectors):
                    break
                keys = counter_random.hash64(seed, np.arange(start + place.start, start + place.stop)).view(np.int64)
                vectors[place] = _encoded(block, encoder, 0.0, keys)
                queries[place] = _encoded(block, encoder, dropout, keys)
                progress.update(len(block))
        if done != len(vectors):
            raise UserError(
                f"the task {task.name} has other documents in {split!r} now than when {shards} was prepared: "
                "delete the corpus and run `cm3leon prepare` again"
            )
        names = vectors_file(folder, shard).name, queries_file(folder, shard).name
        save_arrays(vectors_record(folder, shard), dict(zip(names, (vectors, queries), strict=True)))


def _opened(
    tokens: DocumentTokenizer, examples: Iterable[Document | SkippedExample]
) -> Iterator[tuple[str, DecodedDocument]]:
    """The text and the images of each document that has tokens."""
    for document in examples:
        opened = tokens.decode(document)
        if isinstance(document, Document) and isinstance(opened, DecodedDocument):
            yield document.text, opened


def _blocks(documents: Iterator[tuple[str, DecodedDocument]]) -> Iterator[list[tuple[str, DecodedDocument]]]:
    while block := list(itertools.islice(documents, _BLOCK)):
        yield block


def _encoded(
    block: list[tuple[str, DecodedDocument]], encoder: Encoder, dropout: float, keys: Int64[np.ndarray, "n"]
) -> Float32[np.ndarray, "n 2 dim"]:
    vectors = np.zeros((len(block), 2, encoder.dim), np.float32)
    vectors[:, 0] = encoder.encode_texts([text for text, _ in block], dropout, keys)
    owner = np.repeat(np.arange(len(block)), [len(document.images) for _, document in block])
    if len(owner):
        images = np.stack([image for _, document in block for image in document.images])
        # Each image of a document loses patches of its own.
        image_keys = counter_random.hash64(keys[owner], np.arange(len(owner)) - np.searchsorted(owner, owner))
        np.add.at(vectors[:, 1], owner, encoder.encode_images(images, dropout, image_keys.view(np.int64)))
        vectors[:, 1] = l2_normalize(vectors[:, 1])
    return vectors
