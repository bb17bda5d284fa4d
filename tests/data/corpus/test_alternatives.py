"""Of an image with several captions every epoch takes one: each image once, all captions in time, any batch alone."""

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.commands import prepare
from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.config import BatchConfig, ObjectiveConfig
from cm3leon_jax.data.batches.order import SHUFFLE_BLOCK, DocumentOrder
from cm3leon_jax.data.batches.source import BatchSource
from cm3leon_jax.data.corpus.alternatives import Alternatives
from cm3leon_jax.data.corpus.config import CorpusConfig, VocabularyConfig
from cm3leon_jax.data.corpus.neighbors import DatastoreDocuments
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.data.curation.config import CurationConfig
from cm3leon_jax.data.sources.caption_groups import grouped
from cm3leon_jax.data.sources.config import FolderConfig, RowsConfig
from cm3leon_jax.data.sources.reading import SkippedExample
from cm3leon_jax.documents import Document
from cm3leon_jax.errors import UserError
from tests.data.sources.published import IMAGE, cell, write_images, write_table

GROUPS = st.lists(st.integers(1, 5), min_size=1, max_size=40)


@given(GROUPS, st.lists(st.integers(0, 200), max_size=4))
@settings(max_examples=100, deadline=None)
def test_groups_are_the_same_however_shards_cut_them(sizes, cuts):
    groups = np.repeat(np.cumsum([0, *sizes[:-1]]), sizes).astype(np.int64)
    found = Alternatives.joined(np.split(groups, sorted({cut for cut in cuts if cut < len(groups)})))
    assert found.starts.tolist() == [0, *np.cumsum(sizes).tolist()] and len(found) == len(sizes)


def test_documents_without_a_group_stand_alone():
    found = Alternatives.joined([np.array([-1, -1, 2, 2]), np.array([2, -1, -1, 7])])
    assert found.starts.tolist() == [0, 1, 2, 5, 6, 7, 8]


@given(GROUPS, st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_an_epoch_takes_one_document_of_each_group(sizes, seed):
    starts = np.cumsum([0, *sizes])
    groups = Alternatives(starts)
    order = DocumentOrder({"task": len(sizes)}, {"task": 1.0}, seed, {"task": groups})
    block = order.block(1)
    taken = np.searchsorted(starts, block.document, "right") - 1
    # Whole epochs of the block.
    whole = [epoch for epoch, count in Counter(block.epoch.tolist()).items() if count == len(sizes)]
    assert len(whole) >= SHUFFLE_BLOCK // len(sizes) - 2
    for epoch in whole[:20]:
        assert sorted(taken[block.epoch == epoch]) == list(range(len(sizes)))
    # In so many epochs each alternative comes.
    assert set(block.document.tolist()) == set(range(starts[-1]))
    # The order of the groups is that of documents without alternatives.
    plain = DocumentOrder({"task": len(sizes)}, {"task": 1.0}, seed).block(1)
    assert (taken == plain.document).all() and (block.epoch == plain.epoch).all()


def test_alternatives_come_equally_often():
    order = DocumentOrder({"task": 4}, {"task": 1.0}, 0, {"task": Alternatives(np.array([0, 4, 8, 12, 16]))})
    counts = np.bincount(order.block(0).document, minlength=16)
    # 1,024 of each, with a deviation of 31.
    assert abs(counts - SHUFFLE_BLOCK / 16).max() < 150


@pytest.mark.parametrize("start", range(7))
def test_a_range_of_documents_has_the_groups_of_all(start):
    names = ["a", "a", "b", "c", "c", "c", "b"]
    documents = [Document(()) if number != 4 else SkippedExample("no") for number in range(7)]
    whole = list(grouped(documents, names.__getitem__, 0))
    assert [each.group for each in whole if isinstance(each, Document)] == [0, 0, 2, 3, 3, 6]
    assert list(grouped(documents[start:], names.__getitem__, start)) == whole[start:]


CAPTIONS = [["fox", "hare", "elk"], ["owl"], ["a cat", "a dog", "x", "a cow"], ["one", "two"]]


@pytest.fixture
def config(tmp_path, vocabulary, image_tokenizer) -> Config:
    vocabulary.save(tmp_path / "vocabulary")
    image_tokenizer.save(tmp_path / "image_tokenizer")
    rows = [{"image": cell(40 * number), "captions": texts} for number, texts in enumerate(CAPTIONS)]
    write_table(tmp_path / "data/train.parquet", rows, {"image": IMAGE, "captions": pa.list_(pa.string())})
    held_out = [{"image": cell(250), "captions": ["a", "b"]}]
    write_table(tmp_path / "data/validation.parquet", held_out, {"image": IMAGE, "captions": pa.list_(pa.string())})
    return Config(
        corpus=CorpusConfig(
            path=str(tmp_path / "corpus"), mixture=f"parquet:{tmp_path}/data", examples_per_shard=4,
            rows=RowsConfig(captions="sampled"),
        ),
        vocabulary=VocabularyConfig(path=str(tmp_path / "vocabulary")),
        image_tokenizer=replace(image_tokenizer.config, path=str(tmp_path / "image_tokenizer")),
    )  # fmt: skip


def run(config: Config, **corpus) -> PreparedCorpus:
    config = replace(config, corpus=replace(config.corpus, **corpus))
    prepare.run(config, Path(), argparse.Namespace(dry_run=None))
    return PreparedCorpus.open(config.corpus.path)


def test_a_prepared_corpus_knows_its_groups(config, vocabulary):
    corpus = run(config)
    (task,) = corpus.manifest["tasks"]
    train = corpus.task_split(task, "train")
    assert train.num_documents == 10 and train.num_in_epoch == 4
    assert train.alternatives is not None and train.alternatives.starts.tolist() == [0, 3, 4, 8, 10]
    assert corpus.identity["tasks"][task]["train groups"] is True
    # None of a group is a neighbor of another: they have one image.
    groups = DatastoreDocuments(corpus, (task,), "train").groups(task, np.arange(10))
    assert groups.tolist() == [[0, 3]] * 3 + [[3, 4]] + [[4, 8]] * 4 + [[8, 10]] * 2
    # Killed between shards, the rest is written alike.
    folder = Path(config.corpus.path)
    before = {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    next(folder.rglob("train/groups-00001.npy")).unlink()
    run(config)
    assert {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    damaged = next(folder.rglob("train/groups-00000.npy"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\\7")
    with pytest.raises(UserError, match=r"groups-00000\.npy is damaged"):
        PreparedCorpus.open(folder).task_split(task, "train")


def test_captions_that_are_not_taken_leave_the_groups_of_the_others(config):
    corpus = run(config, curation=CurationConfig(min_text_length=2))
    (task,) = corpus.manifest["tasks"]
    found = corpus.task_split(task, "train").alternatives
    assert found is not None and found.starts.tolist() == [0, 3, 4, 7, 9]


def test_all_captions_and_sampled_ones_are_not_the_same_corpus(config):
    run(config)
    with pytest.raises(UserError, match="prepared with another sampled captions"):
        run(config, rows=RowsConfig())
    corpus = run(config, rows=RowsConfig(), path=f"{config.corpus.path}_all")
    (task,) = corpus.manifest["tasks"]
    assert corpus.task_split(task, "train").num_in_epoch == 10 and not list(corpus.path.rglob("groups-*"))
    assert set(corpus.identity["tasks"][task]) == {"rate", "train", "validation"}


def test_batches_have_each_image_once_an_epoch(config, vocabulary):
    corpus = run(config)
    batch = BatchConfig(batch_size=1, sequence_length=4 * (corpus.image_length + 12), seed=3)
    source = BatchSource(corpus, vocabulary, ObjectiveConfig(span_count="none"), batch)
    seen = Counter[str]()
    for step in range(60):
        tokens = source[step].tokens[0]
        texts = vocabulary.decode_text(tokens[~vocabulary.is_image(tokens)].tolist())
        seen.update({name for texts_of in CAPTIONS for name in texts_of if name in texts.split() or name in texts})
    assert min(seen[name] for texts in CAPTIONS for name in texts) > 0
    # Any batch is the same alone.
    again = BatchSource(corpus, vocabulary, ObjectiveConfig(span_count="none"), batch)
    assert (again[37].tokens == source[37].tokens).all()


def test_metadata_of_folders(config, tmp_path):
    write_images(tmp_path / "images", "train/0.png", "train/1.png", "validation/2.png")
    lines = [{"file_name": f"{name}.png", "text": [f"{name} {n}" for n in range(3)]} for name in ("0", "1")]
    (tmp_path / "images/train/metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "images/validation/2.txt").write_text("two")
    corpus = run(config, mixture=f"folder:{tmp_path}/images", folder=FolderConfig())
    (task,) = corpus.manifest["tasks"]
    found = corpus.task_split(task, "train").alternatives
    assert found is not None and found.starts.tolist() == [0, 3, 6]
