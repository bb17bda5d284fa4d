"""The command `inspect`: marks are visible, and parts of images find their place."""

import argparse
import shutil
from dataclasses import replace

import numpy as np
import pytest

from cm3leon_jax import cli
from cm3leon_jax.commands import inspect as inspection
from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.config import BatchConfig
from cm3leon_jax.data.corpus.config import CorpusConfig, VocabularyConfig
from cm3leon_jax.data.corpus.neighbors import NONE
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.errors import UserError
from cm3leon_jax.retrieval.config import RetrievalConfig
from cm3leon_jax.training.config import TrainConfig
from tests.conftest import write_neighbors

IMAGE_LENGTH = 16


def _pieces(vocabulary, *parts):
    return inspection.pieces(np.concatenate([np.atleast_1d(part) for part in parts]), vocabulary, IMAGE_LENGTH)


@pytest.fixture
def parts(vocabulary):
    text = np.array(vocabulary.encode_text("a seven"))
    image = vocabulary.encode_image(np.arange(IMAGE_LENGTH))
    return text, image


def test_a_document_is_split_into_text_marks_and_images(vocabulary, parts):
    text, image = parts
    found = _pieces(vocabulary, text, vocabulary.break_, image)
    assert [piece.text for piece in found] == ["a seven", "<break>", "[image 4x4]"]
    assert found[2].codes == tuple(range(IMAGE_LENGTH)) and found[2].offset == 0


def test_parts_of_a_masked_image_find_their_place(vocabulary, parts):
    text, image = parts
    mask, end, eoss = vocabulary.mask(0), vocabulary.end, vocabulary.eoss
    found = _pieces(
        vocabulary, end, text, vocabulary.break_, image[:5], mask, image[9:], end, mask, image[5:9], eoss
    )  # fmt: skip
    placed = [(piece.text, piece.offset) for piece in found if piece.kind == "image"]
    assert placed == [("[5 codes]", 0), ("[7 codes]", 9), ("[4 codes]", 5)]


def test_an_image_masked_from_its_start_and_a_single_code(vocabulary, parts):
    text, image = parts
    mask, end, eoss = vocabulary.mask(0), vocabulary.end, vocabulary.eoss
    found = _pieces(vocabulary, end, mask, image[15:], vocabulary.break_, text, end, mask, image[:15], eoss)
    placed = [(piece.text, piece.offset) for piece in found if piece.kind == "image"]
    assert placed == [("[1 code]", 15), ("[15 codes]", 0)]


def test_between_two_masks_the_place_is_unknown(vocabulary, parts):
    _, image = parts
    first, second = vocabulary.mask(0), vocabulary.mask(1)
    found = _pieces(vocabulary, vocabulary.end, image[:3], first, image[6:9], second, image[14:], vocabulary.end)
    assert [piece.offset for piece in found if piece.kind == "image"] == [0, None, 14]


def test_a_sequence_may_be_cut_inside_an_image_at_both_ends(vocabulary, parts):
    text, image = parts
    found = _pieces(vocabulary, image[6:], vocabulary.end, vocabulary.end, text, vocabulary.break_, image[:4])
    assert [piece.offset for piece in found if piece.kind == "image"] == [6, 0]
    assert [piece.offset for piece in _pieces(vocabulary, image[6:9])] == [None]


@pytest.fixture
def config(tmp_path, corpus, vocabulary, tiny_images):
    corpus.manifest.update(created_by="a test", mixture="two tasks")
    corpus.manifest["vocabulary"].update(num_image_codes=32, num_text_tokens=288)
    corpus.manifest["image_tokenizer"].update(resolution=8, fingerprint="none")
    for task in corpus.manifest["tasks"].values():
        for entry in task["splits"].values():
            entry.update(num_text_tokens=1, num_image_tokens=1, skipped={"total": 0, "by_reason": {}, "first": []})
    vocabulary.save(tmp_path / "vocabulary")
    return Config(
        corpus=CorpusConfig(path=str(corpus.path)),
        image_tokenizer=replace(tiny_images, path=str(tmp_path / "image_tokenizer")),
        vocabulary=VocabularyConfig(path=str(tmp_path / "vocabulary")),
        batch=BatchConfig(batch_size=2, sequence_length=64),
        train=TrainConfig(num_tokens=1e4),
    )


@pytest.mark.parametrize("packing", ["best_fit", "concat_then_split"])
def test_prints_and_writes_a_page(config, tmp_path, corpus, monkeypatch, capsys, packing):
    monkeypatch.setattr(inspection.PreparedCorpus, "open", lambda path, vocabulary: corpus)
    config = replace(config, batch=replace(config.batch, packing=packing))
    arguments = argparse.Namespace(check=False, split=None, count=3, html=None)
    assert inspection.run(config, tmp_path, arguments) == 0
    out = capsys.readouterr().out
    assert "<break> [image 4x4]" in out and "sequence 2, " in out and "the page has no images" in out
    page = (tmp_path / "inspect.html").read_text()
    assert "&lt;break&gt;" in page and "[image 4x4]" in page and "<script" not in page


@pytest.mark.parametrize("harmful", ["\x1b]0;title\x07", "\x1b[2J", "\u202e", "\r", "\x9b31m", "\u2028", "\0"])
def test_what_captions_hold_neither_steers_the_terminal_nor_hides(
    config, tmp_path, corpus, vocabulary, monkeypatch, capsys, harmful
):
    monkeypatch.setattr(inspection.PreparedCorpus, "open", lambda path, vocabulary: corpus)
    document = np.array(vocabulary.encode_text(f"red {harmful}cat"))
    shown = inspection.Shown("a title", inspection.pieces(document, vocabulary, IMAGE_LENGTH))
    monkeypatch.setattr(inspection, "_documents", lambda *arguments: iter([shown]))
    assert inspection.run(config, tmp_path, argparse.Namespace(check=False, split=None, count=1, html=None)) == 0
    out, page = capsys.readouterr().out, (tmp_path / "inspect.html").read_text()
    assert harmful not in out and harmful not in page
    assert harmful.encode("unicode_escape").decode() + "cat" in out


def test_neighbors_are_shown_with_scores_and_by_what_they_were_found(config, tmp_path, corpus, monkeypatch, capsys):
    retrieval = RetrievalConfig(enabled=True, num_by_text=2, num_by_image=2, num_retrieved=0)
    elsewhere = PreparedCorpus(tmp_path / "corpus", corpus.manifest)
    shutil.copytree(corpus.path, elsewhere.path)
    sizes = {
        name: {split: found["num_documents"] for split, found in task["splits"].items()}
        for name, task in corpus.manifest["tasks"].items()
    }
    kept = {
        task: {split: np.tile([3, NONE, 41, NONE], (n, 1)) for split, n in splits.items()}
        for task, splits in sizes.items()
    }
    kept["first"]["train"][1] = NONE
    write_neighbors(elsewhere, retrieval, ["first", "second"], kept)
    monkeypatch.setattr(inspection.PreparedCorpus, "open", lambda path, vocabulary: elsewhere)
    arguments = argparse.Namespace(check=False, split=None, count=4, html=None)
    assert inspection.run(replace(config, retrieval=retrieval), tmp_path, arguments) == 0
    out, page = capsys.readouterr().out, (tmp_path / "inspect.html").read_text()
    assert out.count("by text, 0.50, first 3: ") == out.count("by image, 0.50, second 1: ") == 3
    assert out.count("tokens, no neighbors") == 1
    assert page.count("by text, 0.50, first 3") == 3


def test_a_wrong_count_and_split_are_named(config, tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(inspection.PreparedCorpus, "open", lambda path, vocabulary: corpus)
    with pytest.raises(UserError, match="no documents in the split 'test'"):
        inspection.run(config, tmp_path, argparse.Namespace(check=False, split="test", count=1, html=None))


def test_help_explains_the_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["inspect", "--help"])
    assert "--html FILE" in capsys.readouterr().out
