"""How much of a batch is real tokens: packing policy, sequence length and number of neighbors, at the paper's sizes.

    python benchmarks/packing.py

Documents are one image of 1,024 codes with a caption of 9 tokens on average (340M pairs held 3B text tokens), each
with four neighbors of the same kind; the rows are those that training builds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from cm3leon_jax.data.batches.config import BatchConfig, ObjectiveConfig
from cm3leon_jax.data.batches.row_plan import open_retrieval
from cm3leon_jax.data.batches.source import BatchSource
from cm3leon_jax.data.corpus.array_files import read_files_record
from cm3leon_jax.data.corpus.neighbors import (
    RETRIEVAL_FORMAT,
    documents_identity,
    list_settings,
    lists_record,
    save_lists,
)
from cm3leon_jax.data.corpus.prepared import FORMAT_VERSION, PreparedCorpus, token_dtype
from cm3leon_jax.data.corpus.shard_writer import TokenFile
from cm3leon_jax.records import write_record
from cm3leon_jax.retrieval.config import RetrievalConfig
from cm3leon_jax.vocabulary import Vocabulary

IMAGE_LENGTH = 1024
MEAN_CAPTION = 8.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--rows", type=int, default=2_000)
    arguments = parser.parse_args()
    texts = [f"word {index}" for index in range(100)]
    vocabulary = Vocabulary.train(texts, num_text_tokens=512, num_image_codes=8192, num_masks=64, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        corpus = synthetic_corpus(Path(folder), vocabulary, arguments.documents)
        print("neighbors  packing           length   real tokens   examples a row   rows begun inside   neighbors kept")
        for num_retrieved, sampling in ((0, "fixed"), (2, "uniform"), (2, "fixed"), (3, "fixed")):
            for packing in ("concat_then_split", "best_fit"):
                for length in (4096, 4224):
                    _measure(corpus, vocabulary, num_retrieved, sampling, packing, length, arguments.rows)


def synthetic_corpus(path: Path, vocabulary: Vocabulary, num_documents: int) -> PreparedCorpus:
    """A prepared corpus of one task, `pairs`, whose documents have four random neighbors."""
    rng = np.random.default_rng(0)
    # Log-normal with the mean asked for; captions of the web have a long tail.
    captions = np.clip(np.rint(rng.lognormal(np.log(MEAN_CAPTION) - 0.5 * 0.6**2, 0.6, num_documents)), 1, 100)
    text, codes = vocabulary.encode_text("word")[0], np.arange(IMAGE_LENGTH) + vocabulary.first_image_code
    documents = [np.concatenate([np.full(int(n), text), [vocabulary.break_], codes]) for n in captions]
    folder = path / "pairs" / "train"
    folder.mkdir(parents=True)
    with TokenFile(folder, 0, token_dtype(vocabulary.size)) as file:
        for document in documents:
            file.add(document)
        files = file.close()
    split = {
        "num_documents": num_documents,
        "num_tokens": files["num_tokens"],
        "num_text_tokens": int(captions.sum()),
        "num_image_tokens": num_documents * IMAGE_LENGTH,
        "num_shards": 1,
        "shards": [files],
        "skipped": {"by_reason": {}, "first": []},
    }
    manifest = {
        "format_version": FORMAT_VERSION,
        "created_by": "a benchmark",
        "mixture": "pairs",
        "examples_per_shard": num_documents,
        "vocabulary": {"fingerprint": vocabulary.fingerprint, "size": vocabulary.size},
        "image_tokenizer": {"image_length": IMAGE_LENGTH, "fingerprint": "random"},
        "tasks": {"pairs": {"rate": 1.0, "splits": {"train": split}}},
    }
    write_record(path / "manifest.json", manifest)
    corpus = PreparedCorpus.open(path, vocabulary)
    folder = path / "retrieval" / "pairs" / "train"
    scores = np.zeros((num_documents, 4), np.float32)
    save_lists(folder, 0, rng.integers(0, num_documents, scores.shape), scores)
    lists = {
        "num_documents": num_documents,
        "num_without": 0,
        "num_neighbors": scores.size,
        "mean_score": 0.0,
        "shards": [read_files_record(lists_record(folder, 0), "")],
    }
    record = {
        "format_version": RETRIEVAL_FORMAT,
        "corpus": documents_identity(corpus),
        "settings": list_settings(RetrievalConfig()),
        "datastore": ["pairs"],
        "fingerprint": "random",
        "encoder": "none",
        "num_rows": 0,
        "neighbors": {"pairs/train": lists},
        "files": {},
    }
    write_record(path / "retrieval" / "manifest.json", record)
    return corpus


def _measure(
    corpus: PreparedCorpus,
    vocabulary: Vocabulary,
    num_retrieved: int,
    sampling: str,
    packing: str,
    length: int,
    rows: int,
) -> None:
    config = RetrievalConfig(enabled=True, num_retrieved=num_retrieved, sampling=sampling)
    batch = BatchConfig(batch_size=100, sequence_length=length, packing=packing)
    source = BatchSource(
        corpus, vocabulary, ObjectiveConfig(), batch, retrieval=open_retrieval(corpus, config, "train")
    )
    real = examples = begun = breaks = 0
    for step in range(rows // 100):
        found = source[step]
        real += int((found.tokens != vocabulary.pad).sum())
        # An example stands between two `</s>`.
        ends = int((found.tokens == vocabulary.end).sum() + (found.targets[:, -1] == vocabulary.end).sum())
        is_whole = (found.tokens != vocabulary.pad) & (found.positions == 0)
        examples += int(is_whole.sum()) if packing == "best_fit" else ends // 2
        begun += int((found.tokens[:, 0] != vocabulary.end).sum())
        breaks += int((found.targets == vocabulary.break_).sum())
    wanted = num_retrieved / 2 if sampling == "uniform" else num_retrieved
    # Beside the one of its own, a document has two breaks for each neighbor.
    kept = (breaks / examples - 1) / 2 / wanted if wanted and packing == "best_fit" else 1.0
    what = f"0 to {num_retrieved}" if sampling == "uniform" else f"{num_retrieved}"
    print(
        f"{what:<11} {packing:<17} {length:>6} {real / (rows * length):13.1%} {examples / rows:16.2f} "
        f"{begun / rows:18.1%} {kept:17.1%}"
    )


if __name__ == "__main__":
    main()
