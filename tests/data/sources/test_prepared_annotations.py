"""From data sets as published to a prepared corpus."""

import numpy as np
import pytest

from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.corpus.document_tokenizer import DocumentTokenizer
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.data.corpus.tokenizing import write_token_shards
from cm3leon_jax.data.sources.config import FolderConfig
from cm3leon_jax.data.templates.tokenized import load_template
from cm3leon_jax.errors import UserError
from tests.data.sources.published import write_images, write_json, write_table
from tests.data.sources.test_magicbrush import SCHEMA, turn


def no_encoder():
    raise AssertionError("nothing is scored")


def prepared(mixture: str, path, vocabulary, image_tokenizer) -> PreparedCorpus:
    corpus = CorpusConfig(
        path=str(path),
        mixture=mixture,
        examples_per_shard=2,
        max_skipped_fraction=0.5,
        folder=FolderConfig(held_out_fraction=0.0),
    )
    write_token_shards(corpus, DocumentTokenizer(vocabulary, image_tokenizer, 4), no_encoder)
    return PreparedCorpus.open(path, vocabulary)


def test_sessions_of_edits(tmp_path, vocabulary, image_tokenizer):
    rows = [turn("1", 1, 10, 11), turn("1", 2, 11, 12), turn("2", 1, 20, 21), turn("3", 1, 30, 31)]
    rows += [turn("4", 1, 40, 41), turn("4", 2, 40, 42), turn("5", 1, 50, 51), turn("6", 1, 60, 61, " ")]
    write_table(tmp_path / "data/train-00000-of-00001.parquet", rows, SCHEMA)
    corpus = prepared(f"magicbrush:{tmp_path}/data", tmp_path / "corpus", vocabulary, image_tokenizer)
    (task,) = corpus.manifest["tasks"].values()
    assert task["splits"]["train"]["num_shards"] == 3 and task["splits"]["train"]["num_documents"] == 4
    assert task["skipped"]["by_reason"] == {"empty field: instruction": 1}
    (skipped,) = task["splits"]["train"]["skipped"]["first"]
    assert skipped["where"] == "train-00000-of-00001.parquet:4" and skipped["reason"].startswith("turn that does not")
    assert set(corpus.templates()) == {"edit", "edits"}
    stored = corpus.task_split("magicbrush_data", "train")
    fields = [[field.tolist() for field in stored.fields(index)] for index in range(4)]
    template = load_template("edits", vocabulary)
    assert [template.num_turns(len(each)) for each in fields] == [2, 1, 1, 1]
    images = image_tokenizer.encode(np.array([10, 11, 12], np.uint8).reshape(-1, 1, 1, 1).repeat(8, 1).repeat(8, 2), 4)
    assert [fields[0][n] for n in (0, 2, 4)] == vocabulary.encode_image(images).tolist()

    write_table(tmp_path / "data/train-00000-of-00001.parquet", rows[:3], SCHEMA)
    with pytest.raises(UserError, match="was prepared from another state of the task magicbrush_data"):
        prepared(f"magicbrush:{tmp_path}/data", tmp_path / "corpus", vocabulary, image_tokenizer)


def test_conversations_with_and_without_images(tmp_path, vocabulary, image_tokenizer):
    write_images(tmp_path / "data", "a.png")
    said = [{"from": "human", "value": "<image>\nthe digit?"}, {"from": "gpt", "value": "seven"}]
    alone = [{"from": "human", "value": "three and four?"}, {"from": "gpt", "value": "seven"}] * 2
    entries = [{"id": "1", "image": "a.png", "conversations": said}, {"id": "2", "conversations": alone}]
    write_json(tmp_path / "data/entries.json", entries)
    corpus = prepared(f"llava:{tmp_path}/data", tmp_path / "corpus", vocabulary, image_tokenizer)
    stored = corpus.task_split("llava_data", "train")
    texts = set()
    for index in range(2):
        ids = stored.document(index)
        texts.add(vocabulary.decode_text(ids[~vocabulary.is_image(ids) & (ids != vocabulary.break_)].tolist()))
    once = "Question: three and four? Answer: seven"
    assert texts == {"Question: the digit? Answer: seven", once + once}
    assert sum(len(stored.document(n)) for n in (0, 1)) == stored.lengths.sum()
