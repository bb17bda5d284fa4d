"""The images for the image tokenizer and the pairs for the encoder: taken once, in a process of their own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cm3leon_jax.data.corpus import training_samples
from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.corpus.training_samples import (
    PairSample,
    SampleSpec,
    load_image_sample,
    load_pair_sample,
    take_sample,
)
from cm3leon_jax.data.sources import reading
from cm3leon_jax.documents import Document, ImageSegment, TextSegment
from cm3leon_jax.errors import UserError
from cm3leon_jax.images import encode_png

CORPUS = CorpusConfig(mixture="documents")


def image(value: int, side: int = 8) -> ImageSegment:
    return ImageSegment(encode_png(np.full((side, side, 3), value, np.uint8)))


def taken(folder: Path, documents: list[tuple], monkeypatch: pytest.MonkeyPatch) -> PairSample:
    """The pairs of these documents, without a process of its own."""
    found = [Document(segments) for segments in documents]
    monkeypatch.setattr(reading, "read_documents", lambda corpus, split: iter(found))
    monkeypatch.setattr(training_samples, "provenance_of", lambda corpus: {"documents": {"from": "a test"}})
    take_sample(CORPUS, folder, SampleSpec("documents", "train", 0, 4, 3, with_texts=True))
    return load_pair_sample(CORPUS, folder, 0, 4)


def test_a_pair_is_a_text_and_its_only_image(tmp_path, monkeypatch):
    documents = [
        (TextSegment("one"), image(10)),
        (image(20), TextSegment("two\u2028lines\nof it")),
        (TextSegment("no image"),),
        (image(30),),
        (TextSegment("  "), image(40)),
        (TextSegment("two images"), image(50), image(60)),
        (TextSegment("broken"), ImageSegment(b"no image")),
        # The same image with another text is another pair, the same pair again is none.
        (TextSegment("a first"), image(10), TextSegment("and a last")),
        (TextSegment("one"), image(10)),
    ]
    sample = taken(tmp_path, documents, monkeypatch)
    assert sample.texts == ["one", "two\u2028lines\nof it", "a first\nand a last"]
    assert isinstance(sample.images, np.memmap) and sample.images.shape == (3, 4, 4, 3)
    assert sample.images[:, 0, 0].tolist() == [[10] * 3, [20] * 3, [10] * 3]
    record = json.loads((tmp_path / "sample.json").read_text())
    assert (record["count"], record["unreadable"]) == (3, 1)


def test_a_mixture_without_pairs_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no documents of a text and one readable image"):
        taken(tmp_path, [(TextSegment("alone"),)], monkeypatch)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_pairs_are_taken_once_and_again_only_for_another_sample(tmp_path):
    for index in range(12):
        (tmp_path / f"{index}.png").write_bytes(image(20 * index).encoded)
        (tmp_path / f"{index}.txt").write_text(f"text {index}")
    corpus, folder = CorpusConfig(mixture=f"folder:{tmp_path}"), tmp_path / "encoder" / "sample"
    sample = load_pair_sample(corpus, folder, 0, 4)
    assert len(sample.texts) == len(sample.images) >= 8
    for text, pixels in zip(sample.texts, sample.images, strict=True):
        assert text == f"text {pixels[0, 0, 0] // 20}"

    file = folder / "images.npy"
    before = file.stat().st_mtime_ns
    assert load_pair_sample(corpus, folder, 0, 4).texts == sample.texts
    assert file.stat().st_mtime_ns == before
    fewer = load_pair_sample(corpus, folder, 3, 4)
    assert fewer.texts == sample.texts[:3]
    np.testing.assert_array_equal(fewer.images, sample.images[:3])


@pytest.mark.slow
def test_images_are_taken_once_and_again_only_for_another_sample(tmp_path):
    for index in range(12):
        pixels = np.full((8, 8, 1), 10 * (index // 2), np.uint8)
        (tmp_path / f"{index}.png").write_bytes(b"no image" if index == 11 else encode_png(pixels))
        (tmp_path / f"{index}.txt").write_text("text")
    corpus, sample_folder = CorpusConfig(mixture=f"folder:{tmp_path}"), tmp_path / "vq" / "sample"
    sample = load_image_sample(corpus, sample_folder, 0, 4, 1)
    assert isinstance(sample, np.memmap) and sample.dtype == np.uint8 and sample.shape[1:] == (4, 4, 1)
    values = sample[:, 0, 0, 0].tolist()
    assert len(values) == len(set(values)) and set(values) <= set(range(0, 60, 10))
    record = json.loads((sample_folder / "sample.json").read_text())
    assert record["count"] == len(sample) and record["unreadable"] <= 1

    file = sample_folder / "images.npy"
    drawn = file.stat().st_mtime_ns
    np.testing.assert_array_equal(load_image_sample(corpus, sample_folder, 0, 4, 1), sample)
    assert file.stat().st_mtime_ns == drawn

    np.testing.assert_array_equal(load_image_sample(corpus, sample_folder, 3, 4, 1), sample[:3])
    with pytest.raises(UserError, match="no folder of images at /nowhere"):
        load_image_sample(replace(corpus, mixture="folder:/nowhere"), sample_folder, 0, 4, 1)
