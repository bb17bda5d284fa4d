"""The pairs for the encoder: drawn once, each pair once, in a process of their own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus import pair_sample
from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.corpus.pair_sample import load_pair_sample
from cm3leon_jax.data.sources import reading
from cm3leon_jax.documents import Document, ImageSegment, TextSegment
from cm3leon_jax.encoders.clip.config import ClipConfig, ClipTrainingConfig
from cm3leon_jax.errors import UserError
from cm3leon_jax.images import encode_png


def image(value: int, side: int = 8) -> ImageSegment:
    return ImageSegment(encode_png(np.full((side, side, 3), value, np.uint8)))


@pytest.fixture
def config(tmp_path) -> Config:
    return Config(
        corpus=CorpusConfig(mixture="documents"),
        encoder=ClipConfig(
            path=str(tmp_path / "encoder"), resolution=4, patch_size=2, training=ClipTrainingConfig(num_pairs=0)
        ),
    )


def drawn(config: Config, documents: list[tuple], monkeypatch: pytest.MonkeyPatch) -> pair_sample.PairSample:
    """What is drawn from these documents, without a process of its own."""
    found = [Document(segments) for segments in documents]
    monkeypatch.setattr(reading, "read_documents", lambda corpus, split: iter(found))
    monkeypatch.setattr(pair_sample, "provenance_of", lambda corpus: {"documents": {"from": "a test"}})
    folder = Path(config.encoder.path) / "sample"
    pair_sample._draw(config, folder, pair_sample._provenance(config))
    return load_pair_sample(config)


def test_a_pair_is_a_text_and_its_only_image(config, monkeypatch):
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
    sample = drawn(config, documents, monkeypatch)
    assert sample.texts == ["one", "two\u2028lines\nof it", "a first\nand a last"]
    assert isinstance(sample.images, np.memmap) and sample.images.shape == (3, 4, 4, 3)
    assert sample.images[:, 0, 0].tolist() == [[10] * 3, [20] * 3, [10] * 3]
    record = json.loads((Path(config.encoder.path) / "sample" / "sample.json").read_text())
    assert (record["count"], record["unreadable"]) == (3, 1)


def test_a_mixture_without_pairs_is_refused_and_leaves_nothing(config, monkeypatch):
    with pytest.raises(UserError, match="no documents of a text and one readable image"):
        drawn(config, [(TextSegment("alone"),)], monkeypatch)
    assert not list((Path(config.encoder.path) / "sample").iterdir())


@pytest.mark.slow
def test_pairs_are_drawn_once_and_again_only_for_another_sample(config, tmp_path):
    for index in range(12):
        (tmp_path / f"{index}.png").write_bytes(image(20 * index).encoded)
        (tmp_path / f"{index}.txt").write_text(f"text {index}")
    config = replace(config, corpus=CorpusConfig(mixture=f"folder:{tmp_path}"))
    sample = load_pair_sample(config)
    assert len(sample.texts) == len(sample.images) >= 8
    for text, pixels in zip(sample.texts, sample.images, strict=True):
        assert text == f"text {pixels[0, 0, 0] // 20}"

    file = Path(config.encoder.path) / "sample" / "images.npy"
    before = file.stat().st_mtime_ns
    assert load_pair_sample(config).texts == sample.texts
    assert file.stat().st_mtime_ns == before
    fewer = load_pair_sample(replace(config, encoder=replace(config.encoder, training=ClipTrainingConfig(num_pairs=3))))
    assert fewer.texts == sample.texts[:3]
    np.testing.assert_array_equal(fewer.images, sample.images[:3])
