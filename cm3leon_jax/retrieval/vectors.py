"""Vectors of the documents of a corpus, shard by shard.

    CORPUS/retrieval/TASK/SPLIT/vectors-00000.npy   float16 [documents, 2, dim]: of the text, and of the images
    CORPUS/retrieval/TASK/SPLIT/queries-00000.npy   the same, after dropout of tokens and patches
    CORPUS/retrieval/TASK/SPLIT/vectors-00000.json  the checksums of both

The embedding of a whole document is the normalized mean of the two (arXiv 2309.02591, section 2.1.2). A document
without text, or without images, has zeros there.
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
from cm3leon_jax.data.corpus.dropped import DroppedExamples
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.data.corpus.shard_writer import read_shard_record, shard_metadata_file
from cm3leon_jax.data.sources.reading import ShardSlice, SkippedExample, TaskReader
from cm3leon_jax.distributed import is_coordinator
from cm3leon_jax.documents import Document
from cm3leon_jax.encoders.base import Encoder, l2_normalize
from cm3leon_jax.errors import UserError
from cm3leon_jax.retrieval.config import RetrievalConfig

# Documents per call of the encoder.
_BLOCK = 256


def num_shards(corpus: PreparedCorpus, task: str, split: str) -> int:
    return corpus.manifest["tasks"][task]["splits"][split]["num_shards"]


def vectors_record(folder: Path, shard: int) -> Path:
    return folder / f"vectors-{shard:05d}.json"


def _file_names(shard: int) -> tuple[str, str]:
    return f"vectors-{shard:05d}.npy", f"queries-{shard:05d}.npy"


def open_vectors(folder: Path, shard: int) -> tuple[Float16[np.ndarray, "n 2 dim"], Float16[np.ndarray, "n 2 dim"]]:
    """Memory-maps the vectors and the queries of a shard, after a check of both files."""
    fix = "delete that file and run `cm3leon prepare` again, which writes it again"
    vectors, queries = open_arrays(vectors_record(folder, shard), _file_names(shard), fix)
    return vectors, queries


def document_embeddings(vectors: Float16[np.ndarray, "n 2 dim"]) -> Float32[np.ndarray, "n dim"]:
    """Computes the embeddings of whole documents."""
    return l2_normalize(vectors.astype(np.float32).sum(axis=1))


def write_vectors(
    corpus: PreparedCorpus,
    task: TaskReader,
    split: str,
    dropped: DroppedExamples,
    tokenizer: DocumentTokenizer,
    encoder: Encoder,
    config: RetrievalConfig,
    first_process: int,
) -> None:
    """Writes the missing vectors of this process's shards: in turn, the first of them is `first_process`'s.

    Raises:
      UserError: if the raw documents are no longer those of the token shards.
    """
    token_folder, folder = corpus.path / task.name / split, corpus.path / "retrieval" / task.name / split
    folder.mkdir(parents=True, exist_ok=True)
    shards = range(num_shards(corpus, task.name, split))
    records = [read_shard_record(shard_metadata_file(token_folder, shard)) for shard in shards]
    first_document = np.cumsum([0, *(record["num_documents"] for record in records)])
    step = jax.process_count()
    own = range((jax.process_index() - first_process) % step, len(shards), step)
    missing = [shard for shard in own if not vectors_record(folder, shard).exists()]
    if not missing:
        return
    size = corpus.manifest["examples_per_shard"]
    # A single pass over all of them: opening a task at a later document reads all documents before it.
    examples = task.numbered(split, ShardSlice(size, missing[0], step))
    by_number = ((index // size, (index, example)) for index, example in examples)
    by_shard = itertools.groupby((pair for pair in by_number if pair[0] in missing), key=operator.itemgetter(0))
    for shard in missing:
        record = records[shard]
        _, group = next(by_shard, (shard, iter(())))
        found = (example for _, example in itertools.islice(group, record["num_examples"]))
        documents = _decoded(tokenizer, itertools.starmap(dropped.kept, found))
        keys = counter_random.hash64(config.seed, np.arange(first_document[shard], first_document[shard + 1]))
        what = f"vectors {task.name} {split} {shard}"
        num_found, arrays = _encode_shard(documents, encoder, config.query_dropout, keys.view(np.int64), what)
        if num_found != len(keys):
            raise UserError(
                f"the task {task.name} has other documents in {split!r} now than when {token_folder} was prepared: "
                "delete the corpus and run `cm3leon prepare` again"
            )
        save_arrays(vectors_record(folder, shard), dict(zip(_file_names(shard), arrays, strict=True)))


def _decoded(
    tokenizer: DocumentTokenizer, examples: Iterable[Document | SkippedExample]
) -> Iterator[tuple[str, DecodedDocument]]:
    """Yields text and decoded images of each example that became a document of the corpus."""
    for example in examples:
        decoded = tokenizer.decode(example)
        if isinstance(example, Document) and isinstance(decoded, DecodedDocument):
            parts = tokenizer.parts(decoded)
            yield from ((example.text if part is decoded else tokenizer.text(part), part) for part in parts)


def _encode_shard(
    documents: Iterator[tuple[str, DecodedDocument]],
    encoder: Encoder,
    dropout: float,
    keys: Int64[np.ndarray, "n"],
    what: str,
) -> tuple[int, tuple[Float16[np.ndarray, "n 2 dim"], Float16[np.ndarray, "n 2 dim"]]]:
    """Counts the documents, and encodes them without and with dropout, one key per document."""
    vectors = np.zeros((len(keys), 2, encoder.dim), np.float16)
    queries = np.zeros_like(vectors)
    done = 0
    disable = None if is_coordinator() else True
    with tqdm(total=len(keys), unit=" documents", desc=what, disable=disable) as progress:
        while block := list(itertools.islice(documents, _BLOCK)):
            rows = slice(done, done + len(block))
            done = rows.stop
            if done <= len(keys):
                vectors[rows] = _encode(block, encoder, 0.0, keys[rows])
                queries[rows] = _encode(block, encoder, dropout, keys[rows])
            progress.update(len(block))
    return done, (vectors, queries)


def _encode(
    block: list[tuple[str, DecodedDocument]], encoder: Encoder, dropout: float, keys: Int64[np.ndarray, "n"]
) -> Float32[np.ndarray, "n 2 dim"]:
    vectors = np.zeros((len(block), 2, encoder.dim), np.float32)
    vectors[:, 0] = encoder.encode_texts([text for text, _ in block], dropout, keys)
    owner = np.repeat(np.arange(len(block)), [len(document.images) for _, document in block])
    if len(owner):
        images = np.stack([image for _, document in block for image in document.images])
        # Each image of a document has a key of its own.
        image_keys = counter_random.hash64(keys[owner], np.arange(len(owner)) - np.searchsorted(owner, owner))
        np.add.at(vectors[:, 1], owner, encoder.encode_images(images, dropout, image_keys.view(np.int64)))
        vectors[:, 1] = l2_normalize(vectors[:, 1])
    return vectors
