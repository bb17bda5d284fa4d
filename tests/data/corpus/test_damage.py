"""Damaged files of a prepared corpus: one line that names the file, or the same data; never other data."""

import json
import shutil
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from cm3leon_jax.data.batches.config import BatchConfig
from cm3leon_jax.data.batches.row_fit import row_losses
from cm3leon_jax.data.corpus import prepared as corpus_module
from cm3leon_jax.data.corpus.check import check_corpus
from cm3leon_jax.data.corpus.neighbors import NeighborLists
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.errors import UserError
from cm3leon_jax.retrieval.config import RetrievalConfig
from tests.conftest import random_document, write_corpus, write_neighbors

RETRIEVAL = RetrievalConfig(enabled=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, vocabulary) -> dict[str, bytes]:
    """The files of a corpus with neighbor lists; all documents of a task have one length, so all offsets are alike."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("best_fit")
    document = random_document(vocabulary, rng)

    def another() -> np.ndarray:
        codes = vocabulary.encode_image(rng.integers(0, vocabulary.num_image_codes, 16))
        return np.concatenate([document[:-16], codes]).astype(np.int32)

    documents = {task: {"train": [another() for _ in range(6)]} for task in ("first", "second")}
    corpus = PreparedCorpus.open(write_corpus(folder, vocabulary, documents), vocabulary)
    kept = rng.integers(-1, 12, (12, RETRIEVAL.num_kept))
    write_neighbors(
        corpus, RETRIEVAL, ["first", "second"], {"first": {"train": kept[:6]}, "second": {"train": kept[6:]}}
    )
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def written(files: dict[str, bytes], folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(folder: Path, vocabulary) -> list:
    """All that training takes from a corpus."""
    corpus = PreparedCorpus.open(folder, vocabulary)
    lists = NeighborLists.open(corpus, RETRIEVAL, "train")
    found: list = [corpus.identity, corpus.rates(), corpus.image_length, lists.fingerprint]
    for task, documents in corpus.splits("train").items():
        found.append([documents.document(index).tolist() for index in range(documents.num_documents)])
        found += [part.tolist() for part in lists.of_split(task, "train")]
    return found


@st.composite
def damaged(draw, files: dict[str, bytes]) -> dict[str, bytes]:
    """The files after one of the things that happen to files."""
    name = draw(st.sampled_from(sorted(files)))
    data = bytearray(files[name])
    kind = draw(st.sampled_from(["flip", "swap", "cut", "extend", "zeros", "exchange", "absent", "value"]))
    place, other = (draw(st.integers(0, len(data) - 1)) for _ in range(2))
    result = dict(files)
    if kind == "flip":
        data[place] ^= 1 << draw(st.integers(0, 7))
    elif kind == "swap":
        data[place], data[other] = data[other], data[place]
    elif kind == "cut":
        del data[place:]
    elif kind == "extend":
        data += data[place:]
    elif kind == "zeros":
        data[place : place + 8] = bytes(len(data[place : place + 8]))
    elif kind == "exchange":
        kin = sorted(other for other in files if Path(other).suffix == Path(name).suffix)
        result[name], result[draw(st.sampled_from(kin))] = files[draw(st.sampled_from(kin))], files[name]
        return result
    elif kind == "absent":
        del result[name]
        return result
    elif name.endswith(".json"):
        data = bytearray(json.dumps(changed(draw, json.loads(data))).encode())
    result[name] = bytes(data)
    return result


def changed(draw, value):
    """A JSON value with another one somewhere in it."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        copy = value.copy()
        if draw(st.integers(0, 5)):
            copy[key] = changed(draw, value[key])
        else:
            del copy[key]
        return copy
    return draw(st.sampled_from([None, -1, 0, 1 << 70, 0.5, float("nan"), "", "text", [], {}, True, [[]]]))


@pytest.mark.parametrize("checked_whole", [0, pytest.param(1 << 28, marks=pytest.mark.slow)])
def test_damage_is_named_or_changes_nothing(whole, vocabulary, tmp_path, monkeypatch, checked_whole):
    monkeypatch.setattr(corpus_module, "_CHECKED_WHOLE", checked_whole)
    right = read(written(whole, tmp_path / "corpus"), vocabulary)

    @hypothesis.settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @hypothesis.given(files=damaged(whole))
    def check(files):
        folder = written(files, tmp_path / "corpus")
        try:
            found = read(folder, vocabulary)
        except UserError as error:
            assert str(folder) in str(error) and "\n" not in str(error)
        else:
            assert found == right

    check()


def test_the_full_check_names_the_shard(whole, vocabulary, tmp_path):
    folder = written(whole, tmp_path / "corpus")
    corpus = PreparedCorpus.open(folder, vocabulary)
    assert "as they were written" in check_corpus(corpus, vocabulary, "train")
    file = folder / "second" / "train" / "tokens-00001.bin"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    lists = folder / "retrieval" / "first" / "train" / "scores-00000.npy"
    lists.write_bytes(lists.read_bytes()[:-1])
    with pytest.raises(UserError) as faults:
        check_corpus(corpus, vocabulary, "train")
    assert (
        str(file) in str(faults.value) and str(lists) in str(faults.value) and "tokens-00000" not in str(faults.value)
    )


@pytest.mark.parametrize("front", ["text", "image"])
def test_images_that_no_row_holds_are_counted_and_refused(vocabulary, tmp_path, front):
    text = np.full(40, vocabulary.encode_text("a")[0])
    image, mark = vocabulary.encode_image(np.arange(16)), [vocabulary.break_]
    parts = [text, mark, image] if front == "text" else [image, mark, text]
    long, short = np.concatenate(parts), np.concatenate([text[:4], mark, image])
    path = write_corpus(
        tmp_path, vocabulary, {"task": {"train": [long.astype(np.int32)] * 6 + [short.astype(np.int32)] * 2}}
    )
    corpus = PreparedCorpus.open(path, vocabulary)
    losses = row_losses(corpus, vocabulary, BatchConfig(sequence_length=48), "train")
    assert (losses.num_documents, losses.num_cut, losses.num_images) == (8, 6, 8)
    assert losses.num_images_lost == (6 if front == "text" else 0)
    if front == "text":
        with pytest.raises(
            UserError, match=r"75% of the images .*sequence_length=58 holds .*packing='concat_then_split'"
        ):
            losses.check_most_images_fit()
    losses = row_losses(corpus, vocabulary, BatchConfig(sequence_length=58), "train")
    assert losses.num_cut == 0 and "all 8 documents fit" in str(losses)
    losses.check_most_images_fit()
    stream = row_losses(corpus, vocabulary, BatchConfig(sequence_length=48, packing="concat_then_split"), "train")
    assert stream.num_cut == 0
