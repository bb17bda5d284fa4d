"""From interleaved documents as published to a prepared corpus, and to what `inspect` shows of it."""

import argparse
import hashlib
import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cm3leon_jax.commands import inspect, prepare
from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.config import BatchConfig
from cm3leon_jax.data.corpus.config import CorpusConfig, VocabularyConfig
from cm3leon_jax.data.corpus.neighbors import NeighborLists
from cm3leon_jax.data.corpus.prepared import PreparedCorpus, TaskSplit
from cm3leon_jax.data.sources.config import InterleavedConfig
from cm3leon_jax.data.sources.reading import read_documents
from cm3leon_jax.encoders.tfidf import fit_documents
from cm3leon_jax.encoders.tfidf_config import TfidfConfig
from cm3leon_jax.errors import UserError
from cm3leon_jax.images import encode_png
from cm3leon_jax.retrieval.config import RetrievalConfig
from cm3leon_jax.vocabulary import Vocabulary
from tests.data.sources.published import png, write_table
from tests.data.sources.test_interleaved import LISTS, page, url, write_tars

WORDS = ("zero", "a handwritten seven", "the digit 3", "a photo of the number 9", "in pencil", "written by hand")
# Longer than a row, which holds two images; and one with a dead link and an image that cannot be decoded.
ROWS = [
    page(WORDS[0], 1, WORDS[1], 2, WORDS[2], 3, WORDS[3], 4, WORDS[4], 5, WORDS[5]),
    page(WORDS[5], 9, WORDS[4], 5, WORDS[3], 6, WORDS[2]),
    page(WORDS[1], 9),
    page(4, WORDS[1]),
]
# What the first is.
LONG = [WORDS[0], "<1>", WORDS[1], "<2>", WORDS[2], "<3>", WORDS[3], "<4>", WORDS[4], "<5>", WORDS[5]]


def noise(number: int) -> np.ndarray:
    """An image whose codes are those of no other."""
    return np.random.default_rng(number).integers(0, 256, (8, 8, 1)).astype(np.uint8)


@pytest.fixture
def config(tmp_path, vocabulary, image_tokenizer, tiny_images) -> Config:
    vocabulary.save(tmp_path / "vocabulary")
    image_tokenizer.save(tmp_path / "image_tokenizer")
    write_tars(tmp_path / "pages/images", image=lambda number: encode_png(noise(number)))
    name = hashlib.sha256(url(6).encode()).hexdigest()
    (tmp_path / f"pages/images/{name}.jpg").write_bytes(b"<html>404 Not Found</html>")
    write_table(tmp_path / "pages/train.parquet", ROWS, LISTS)
    write_table(tmp_path / "pages/val.parquet", ROWS[3:], LISTS)
    return Config(
        corpus=CorpusConfig(
            path=str(tmp_path / "corpus"),
            mixture=f"obelics:{tmp_path}/pages",
            examples_per_shard=2,
            encode_batch_size=4,
            max_skipped_fraction=0.0,
        ),
        vocabulary=VocabularyConfig(path=str(tmp_path / "vocabulary")),
        image_tokenizer=replace(tiny_images, path=str(tmp_path / "image_tokenizer")),
        batch=BatchConfig(batch_size=8, sequence_length=63),
    )


def run(config: Config) -> PreparedCorpus:
    assert prepare.run(config, Path(), argparse.Namespace(dry_run=0)) == 0
    return PreparedCorpus.open(config.corpus.path)


def names_of_images(vocabulary: Vocabulary, image_tokenizer) -> dict[tuple[int, ...], str]:
    """The ids of the images 1 .. 5, with names."""
    pixels = np.stack([noise(number) for number in range(1, 6)])
    codes = vocabulary.encode_image(image_tokenizer.encode(pixels, 4)).tolist()
    assert len({*map(tuple, codes)}) == 5
    return {tuple(each): f"<{number}>" for number, each in enumerate(codes, 1)}


def shown(stored: TaskSplit, index: int, vocabulary: Vocabulary, names: dict[tuple[int, ...], str]) -> list[str]:
    """The segments of a document."""
    ids = stored.document(index)
    found = np.split(ids, np.flatnonzero(ids == vocabulary.break_))
    segments = [tuple(each[each != vocabulary.break_].tolist()) for each in found]
    return [names.get(each, vocabulary.decode_text(each)) for each in segments]


def test_documents_keep_their_order_and_are_cut_to_rows(config, vocabulary, image_tokenizer, capsys):
    corpus = run(config)
    out = capsys.readouterr().out
    assert "rows: all 5 documents fit 63 tokens" in out
    assert "skipped 1 (1 for too few images)" in out
    assert "left out of documents 2 (1 for missing image, 1 for unreadable image); the first are listed" in out
    names = names_of_images(vocabulary, image_tokenizer)
    stored = corpus.task_split("obelics_pages", "train")
    found = [shown(stored, index, vocabulary, names) for index in range(stored.num_documents)]
    assert list(itertools.chain(*found[:-2])) == LONG
    assert len(found) == 5 and stored.lengths.max() <= 62
    assert found[-2:] == [[f"{WORDS[5]}\n{WORDS[4]}", "<5>", f"{WORDS[3]}\n{WORDS[2]}"], ["<4>", WORDS[1]]]
    entry = corpus.manifest["tasks"]["obelics_pages"]["splits"]["train"]
    assert entry["num_documents"] == 5 and entry["num_shards"] == 2
    assert entry["num_image_tokens"] == 16 * 7 and entry["num_tokens"] == stored.lengths.sum()
    assert [(each["where"], each["reason"].partition(":")[0]) for each in entry["omitted"]["first"]] == [
        ("train.parquet:1", "missing image"),
        ("train.parquet:1", "unreadable image"),
    ]
    # Dead links are no fault of the page.
    assert entry["skipped"]["num_unwanted"] == 1
    assert entry["skipped"]["first"] == [{"index": 2, "where": "train.parquet:2", "reason": "too few images"}]

    arguments = argparse.Namespace(check=False, split=None, count=5, html=None)
    workdir = Path(config.corpus.path).parent
    assert inspect.run(config, workdir, arguments) == 0
    out = capsys.readouterr().out
    texts = [re.escape(each) for each in WORDS]
    line = " <break> \\[image 4x4\\] <break> ".join(texts[:2])
    assert re.search(rf"    {line}", out), out
    assert "left out of documents 2" in out
    assert (workdir / "inspect.html").read_text().count("data:image/png") >= 7
    assert inspect.run(config, workdir, argparse.Namespace(check=True)) == 0


def test_longest_parts_are_of_the_config_and_of_the_plan(config, vocabulary, image_tokenizer):
    shorter = replace(config, corpus=replace(config.corpus, max_document_length=30))
    stored = run(shorter).task_split("obelics_pages", "train")
    assert stored.num_documents > 6 and 16 < stored.lengths.max() <= 30
    with pytest.raises(UserError, match=r"prepared with another max document length \(30, now it is 62\)"):
        run(config)
    with pytest.raises(UserError, match=r"at most 15 tokens, which hold no image of 16 codes: raise config"):
        run(replace(config, corpus=replace(config.corpus, max_document_length=15)))
    shutil.rmtree(config.corpus.path)
    uncut = run(replace(config, batch=replace(config.batch, packing="concat_then_split")))
    names = names_of_images(vocabulary, image_tokenizer)
    assert shown(uncut.task_split("obelics_pages", "train"), 0, vocabulary, names) == LONG


def test_other_images_or_settings_are_another_state(config):
    run(config)
    manifest = json.loads((Path(config.corpus.path) / "manifest.json").read_text())
    assert manifest["tasks"]["obelics_pages"]["source"]["min_images"] == "1"
    other = replace(config.corpus, interleaved=InterleavedConfig(min_images=2))
    with pytest.raises(UserError, match=r"another state of the task obelics_pages \(min_images: 1, now 2\)"):
        run(replace(config, corpus=other))
    folder = Path(config.corpus.mixture.removeprefix("obelics:")) / "images"
    (folder / f"{hashlib.md5(url(9).encode()).hexdigest()}.png").write_bytes(png(9))
    with pytest.raises(UserError, match=r"another state of the task obelics_pages \(images: .*changed since|images: "):
        run(config)


def test_shards_are_the_same_when_written_again_and_have_neighbors(config):
    encoder = TfidfConfig(path=str(Path(config.vocabulary.path).parent / "encoder"), embedding_dim=512, resolution=8)
    fit_documents(read_documents(config.corpus, "train"), 512, 8, 8, None).save(encoder.path)
    config = replace(config, encoder=encoder, retrieval=RetrievalConfig(enabled=True, num_retrieved=1))
    corpus = run(config)
    before = {file: file.read_bytes() for file in corpus.path.rglob("shard-*")}
    for record in (corpus.path / "obelics_pages/train/shard-00000.json", corpus.path / "manifest.json"):
        record.unlink()
    run(config)
    assert {file: file.read_bytes() for file in corpus.path.rglob("shard-*")} == before
    # Each part of a document has neighbors of its own.
    lists = NeighborLists.open(corpus, config.retrieval, "train")
    neighbors, _ = lists.of_split("obelics_pages", "train")
    assert len(neighbors) == corpus.task_split("obelics_pages", "train").num_documents == 5
