"""Neighbors of a folder of captioned images: what is found, what never is, interruption, refusals."""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cm3leon_jax.commands import prepare
from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.array_files import read_files_record, save_arrays
from cm3leon_jax.data.corpus.config import CorpusConfig, VocabularyConfig
from cm3leon_jax.data.corpus.neighbors import NONE, NeighborLists
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.data.sources.reading import read_documents
from cm3leon_jax.encoders.base import l2_normalize
from cm3leon_jax.encoders.tfidf import fit_documents
from cm3leon_jax.encoders.tfidf_config import TfidfConfig
from cm3leon_jax.errors import UserError
from cm3leon_jax.images import encode_png
from cm3leon_jax.retrieval import neighbor_search
from cm3leon_jax.retrieval.config import RetrievalConfig
from cm3leon_jax.retrieval.datastore import Datastore
from cm3leon_jax.retrieval.list_writer import ListWriter
from cm3leon_jax.retrieval.retriever import Retriever
from cm3leon_jax.retrieval.vectors import open_vectors

WORDS = ("seven", "nine", "zero")
NUM_IMAGES = 45
RETRIEVAL = RetrievalConfig(enabled=True, min_similarity=0.15)


def image_of(index: int, noise: int = 0) -> np.ndarray:
    """Bright on the side that its word says, with noise of its own."""
    rng = np.random.default_rng(1000 * noise + index)
    pixels = rng.integers(0, 90, (8, 8, 1)).astype(np.uint8)
    pixels[:, 2 * (index % 3) : 2 * (index % 3) + 4] += 150
    return pixels


def write_pair(folder: Path, name: str, pixels: np.ndarray, caption: str) -> None:
    (folder / f"{name}.png").write_bytes(encode_png(pixels))
    (folder / f"{name}.txt").write_text(caption)


def caption_of(index: int) -> str:
    return f"the {WORDS[index % 3]} number {index}"


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(NUM_IMAGES):
        write_pair(folder, f"{index:02d}", image_of(index), caption_of(index))
    return folder


@pytest.fixture
def config(folder, tmp_path, vocabulary, image_tokenizer) -> Config:
    vocabulary.save(tmp_path / "vocabulary")
    image_tokenizer.save(tmp_path / "image_tokenizer")
    config = Config(
        corpus=CorpusConfig(
            path=str(tmp_path / "corpus"), mixture=f"folder:{folder}", examples_per_shard=16, encode_batch_size=8
        ),
        vocabulary=VocabularyConfig(path=str(tmp_path / "vocabulary")),
        image_tokenizer=replace(image_tokenizer.config, path=str(tmp_path / "image_tokenizer")),
        encoder=TfidfConfig(path=str(tmp_path / "encoder"), embedding_dim=512, resolution=8),
        retrieval=RETRIEVAL,
    )
    save_encoder(config)
    return config


def save_encoder(config: Config, most: int | None = None) -> None:
    fit_documents(read_documents(config.corpus, "train"), 512, 8, 8, most).save(config.encoder.path)


def run(config: Config) -> int:
    return prepare.run(config, Path(), argparse.Namespace(dry_run=None))


def opened(config: Config) -> tuple[PreparedCorpus, NeighborLists]:
    corpus = PreparedCorpus.open(config.corpus.path)
    return corpus, NeighborLists.open(corpus, config.retrieval, "train")


def number_in(tokens: np.ndarray, vocabulary) -> int:
    return int(vocabulary.decode_text(tokens.tolist()).split()[-1])


def test_neighbors_are_near_and_none_is_the_document_itself(config, vocabulary, capsys):
    assert run(config) == 0
    assert "neighbors per document" in capsys.readouterr().out
    corpus, lists = opened(config)
    (task,) = corpus.manifest["tasks"]
    assert corpus.manifest["tasks"][task]["splits"]["train"]["num_shards"] > 1
    for split in ("train", "validation"):
        documents = corpus.task_split(task, split)
        places, scores = lists.of_split(task, split)
        assert places.shape == (documents.num_documents, 4)
        for index, mine in enumerate(places.tolist()):
            found = [place for place in mine if place != NONE]
            assert len(set(found)) == len(found) > 0
            own = number_in(documents.document(index), vocabulary)
            others = [number_in(lists.documents.document(place), vocabulary) for place in found]
            assert own not in others
            # Words and images go by threes.
            assert all((other - own) % 3 == 0 for other in others)
        assert ((scores >= 0.15) | (places == NONE)).all() and scores.max() <= 0.9


def test_a_copy_of_a_held_out_document_is_never_retrieved(config, folder, vocabulary, capsys):
    run(config)
    corpus, _ = opened(config)
    (task,) = corpus.manifest["tasks"]
    (held_out,) = {number_in(corpus.task_split(task, "validation").document(0), vocabulary)}
    # A copy with a word more and other noise in a few pixels, in the training split of a new corpus.
    copied = image_of(held_out)
    copied[0, :3] += 5
    write_pair(folder, "copy of it", copied, f"{caption_of(held_out)}!")
    copies = replace(config, corpus=replace(config.corpus, path=config.corpus.path + "_with_copy"))
    run(copies)
    corpus, lists = opened(copies)
    task_split = corpus.task_split(task, "validation")
    assert number_in(task_split.document(0), vocabulary) == held_out
    train = corpus.task_split(task, "train")
    (place,) = [i for i in range(train.num_documents) if "!" in vocabulary.decode_text(train.document(i).tolist())]
    # It is in the datastore, and the nearest by far.
    datastore = Datastore.open(corpus.path / "retrieval")
    own = open_vectors(corpus.path / "retrieval" / task / "validation", 0)[0].astype(np.float32)
    nearest = (l2_normalize(own[0].sum(axis=0)) @ datastore.vectors.astype(np.float32).T).argmax()
    assert datastore.documents[nearest] == place
    places, _ = lists.of_split(task, "validation")
    assert place not in places and (places[0] != NONE).any()


@pytest.mark.slow
def test_only_the_training_split_of_the_named_tasks_is_searched(config):
    run(config)
    corpus, lists = opened(config)
    (task,) = corpus.manifest["tasks"]
    assert len(lists.documents) == corpus.task_split(task, "train").num_documents
    with pytest.raises(UserError, match="datastore_tasks names 'else'"):
        run(replace(config, retrieval=replace(RETRIEVAL, datastore_tasks=("else",))))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vectors", "lists"])
def test_an_interrupted_search_ends_as_an_uninterrupted_one(config, monkeypatch, stage):
    run(config)
    retrieval = Path(config.corpus.path) / "retrieval"
    expected = {file.relative_to(retrieval): file.read_bytes() for file in retrieval.rglob("*-*.npy")}
    assert len(expected) > 8
    again = replace(config, corpus=replace(config.corpus, path=config.corpus.path + "_again"))
    owner, name = {"vectors": (neighbor_search, "write_vectors"), "lists": (ListWriter, "_neighbors")}[stage]
    original, calls = getattr(owner, name), []

    def stop(*args, **kwargs):
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, stop)
    with pytest.raises(KeyboardInterrupt):
        run(again)
    monkeypatch.setattr(owner, name, original)
    assert run(again) == 0
    retrieval = Path(again.corpus.path) / "retrieval"
    assert {file.relative_to(retrieval): file.read_bytes() for file in retrieval.rglob("*-*.npy")} == expected


def test_what_is_complete_is_left_alone_and_another_encoder_or_setting_is_refused(config, capsys):
    run(config)
    capsys.readouterr()
    assert run(config) == 0
    assert "complete: nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"found with config.retrieval.num_by_text = 2, now it is 1"):
        run(replace(config, retrieval=replace(RETRIEVAL, num_by_text=1)))
    save_encoder(config, most=5)
    with pytest.raises(UserError, match="found with another encoder"):
        run(config)
    corpus, _ = opened(config)
    with pytest.raises(UserError, match=r"datastore .* was built with another encoder"):
        Retriever.open(config, corpus)


def test_a_missing_encoder_is_said_before_tokens_are_written(config, tmp_path):
    absent = replace(config, encoder=replace(config.encoder, path=str(tmp_path / "absent")))
    with pytest.raises(UserError, match="no encoder at"):
        run(absent)
    assert not Path(config.corpus.path).exists()


def test_a_datastore_without_documents_of_both_modalities_is_said(config, monkeypatch):
    original = neighbor_search.write_vectors

    def without_images(corpus, *args, **kwargs):
        original(corpus, *args, **kwargs)
        for record in (corpus.path / "retrieval").rglob("vectors-*.json"):
            arrays = {name: np.load(record.with_name(name)) for name in read_files_record(record, "")}
            for vectors in arrays.values():
                vectors[:, 1] = 0
            save_arrays(record, arrays)

    monkeypatch.setattr(neighbor_search, "write_vectors", without_images)
    with pytest.raises(UserError, match=r"the datastore is empty: .*both_modalities"):
        run(config)


def test_a_retriever_finds_by_text_and_by_image_what_the_lists_would_hold(config, vocabulary):
    run(config)
    corpus, _ = opened(config)
    retriever = Retriever.open(config, corpus)
    (by_text,) = retriever.by_text(["the seven number"], 3)
    assert len(by_text) == 3 and by_text[0].score >= by_text[1].score >= by_text[2].score
    assert all("seven" in vocabulary.decode_text(neighbor.tokens.tolist()) for neighbor in by_text)
    (by_image,) = retriever.by_image(image_of(1, noise=1)[None], 2)
    assert all("nine" in vocabulary.decode_text(neighbor.tokens.tolist()) for neighbor in by_image)
    assert retriever.by_text(["qqq", ""], 2) == [[], []]


@pytest.mark.slow
def test_a_file_that_was_deleted_is_written_again_and_nothing_else(config, capsys):
    run(config)
    folder = Path(config.corpus.path)
    whole = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    for pattern in (
        *("tokens-00001.bin", "offsets-00000.npy", "checksums-00000.npy", "shard-00000.json", "manifest.json"),
        *("vectors-00000.npy", "queries-00000.npy", "neighbors-00000.npy", "scores-00000.npy", "lists-00000.json"),
        *("datastore.npy", "documents.npy", "datastore.json"),
    ):
        file = next(folder.rglob(pattern))
        before = {file: file.stat().st_mtime_ns for file in folder.rglob("tokens-*.bin")}
        file.unlink()
        assert run(config) == 0, file
        found = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        assert {name for name in whole if found.get(name) != whole[name]} == set() and found.keys() == whole.keys(), (
            file
        )
        after = {file: file.stat().st_mtime_ns for file in folder.rglob("tokens-*.bin")}
        assert sum(before[file] != after[file] for file in before) <= 1
    tokens = next(folder.rglob("tokens-00000.bin"))
    tokens.write_bytes(tokens.read_bytes()[:-2])
    capsys.readouterr()
    assert run(config) == 0 and f"{tokens} is missing or cut" in capsys.readouterr().out
    assert tokens.read_bytes() == whole[tokens]
