"""The command: what it learns, what it leaves alone, what it refuses; and the measure."""

from __future__ import annotations

import dataclasses
import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from cm3leon_jax.commands.train_encoder import run
from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.config import CorpusConfig, VocabularyConfig
from cm3leon_jax.data.corpus.training_samples import PairSample
from cm3leon_jax.data.sources import reading
from cm3leon_jax.documents import Document, ImageSegment, TextSegment
from cm3leon_jax.encoders import training as generic
from cm3leon_jax.encoders.base import Encoder, load_encoder
from cm3leon_jax.encoders.clip import training as clip_training
from cm3leon_jax.encoders.clip.config import ClipConfig, ClipTrainingConfig
from cm3leon_jax.encoders.tfidf import TfidfEncoder
from cm3leon_jax.encoders.tfidf_config import TfidfConfig
from cm3leon_jax.encoders.training import recall, split_pairs
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import write_json
from cm3leon_jax.images import encode_png
from cm3leon_jax.models.config import MeshConfig
from cm3leon_jax.vocabulary import Vocabulary

COLORS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (40, 40, 230),
    "yellow": (230, 220, 40),
    "black": (20, 20, 20),
    "white": (235, 235, 235),
    "pink": (240, 150, 200),
    "cyan": (40, 210, 220),
}
SIZES = {"small": 6, "large": 14}


def square(color: str, size: str, rng: np.random.Generator) -> np.ndarray:
    """A noisy square somewhere on a gray ground."""
    pixels = np.full((16, 16, 3), 128) + rng.integers(-20, 20, (16, 16, 3))
    side = SIZES[size]
    row, column = rng.integers(0, 16 - side, 2)
    pixels[row : row + side, column : column + side] = COLORS[color] + rng.integers(-20, 20, (side, side, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def sample(count: int, seed: int = 0) -> PairSample:
    rng = np.random.default_rng(seed)
    asked = [(rng.choice(list(COLORS)), rng.choice(list(SIZES))) for _ in range(count)]
    texts = [f"a {size} {color} square" for color, size in asked]
    return PairSample(texts, np.stack([square(*one, rng) for one in asked]))


@pytest.fixture
def config(tmp_path) -> Config:
    texts = sample(60).texts
    Vocabulary.train(texts, 288, 32, 8, progress=False).save(tmp_path / "vocabulary")
    return Config(
        corpus=CorpusConfig(path=str(tmp_path / "corpus"), mixture=f"folder:{tmp_path}/squares"),
        vocabulary=VocabularyConfig(path=str(tmp_path / "vocabulary"), num_text_tokens=288, num_masks=8),
        encoder=ClipConfig(
            path=str(tmp_path / "encoder"),
            embedding_dim=32,
            resolution=16,
            patch_size=8,
            image_layers=1,
            image_dim=32,
            image_heads=2,
            max_text_tokens=16,
            text_layers=1,
            text_dim=32,
            text_heads=2,
            training=ClipTrainingConfig(
                num_steps=2, batch_size=16, warmup_steps=1, peak_learning_rate=3e-3, log_every=1, save_every=50
            ),
        ),
        mesh=MeshConfig(replica=2, fsdp=4),
    )


def changed(config: Config, **values: object) -> Config:
    training = dataclasses.replace(config.encoder.training, **values)
    return dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, training=training))


def write_folder(folder: Path, pairs: PairSample) -> None:
    folder.mkdir()
    for index, (text, image) in enumerate(zip(pairs.texts, pairs.images, strict=True)):
        (folder / f"{index:03}.png").write_bytes(encode_png(image))
        (folder / f"{index:03}.txt").write_text(text)


@pytest.mark.slow
def test_squares_and_their_captions_find_each_other(config, tmp_path, capsys):
    """Through the whole command, from a folder of images."""
    write_folder(tmp_path / "squares", sample(240))
    config = changed(config, num_steps=150, batch_size=32, warmup_steps=10, log_every=50)
    assert run(config, tmp_path, Namespace()) == 0
    assert "held-out pairs recall@1" in capsys.readouterr().out
    found = recall(load_encoder(config.encoder.path), sample(32, seed=1))
    assert min(found.values()) > 0.9


@pytest.mark.slow
def test_a_finished_encoder_is_left_alone_and_goes_on_when_asked(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(clip_training, "load_pair_sample", lambda *_: sample(48))
    path = Path(config.encoder.path)
    assert run(config, tmp_path, Namespace()) == 0
    first = load_encoder(path).fingerprint
    stored = json.loads((path / "config.json").read_text())["training"]
    assert stored["mixture"] == config.corpus.mixture and stored["split"] == "train"
    assert stored["values"]["num_steps"] == 2 and stored["held_out"].keys() == {"text_to_image", "image_to_text"}
    capsys.readouterr()

    assert run(changed(config, log_every=2), tmp_path, Namespace()) == 0
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"values.weight_decay was 0.2 and is 0.1"):
        run(changed(config, weight_decay=0.1), tmp_path, Namespace())
    wider = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, text_dim=64))
    with pytest.raises(UserError, match=r"encoder.text_dim was 32 and is 64"):
        run(wider, tmp_path, Namespace())

    longer = changed(config, num_steps=3)
    manifest = Path(config.corpus.path) / "retrieval" / "manifest.json"
    write_json(manifest, {"encoder": first})
    with pytest.raises(UserError, match=r"neighbors in .* were found with the encoder .* would be replaced"):
        run(longer, tmp_path, Namespace())
    assert run(config, tmp_path, Namespace()) == 0
    write_json(manifest, {"encoder": "another"})
    assert run(longer, tmp_path, Namespace()) == 0
    assert load_encoder(path).fingerprint != first
    lines = [json.loads(line)["step"] for line in (tmp_path / f"{generic.LOG_NAME}_metrics.jsonl").open()]
    assert lines == [1, 2, 3]


def test_word_statistics_are_counted_once(config, tmp_path, monkeypatch, capsys):
    pairs = sample(20)
    documents = [
        Document((TextSegment(text), ImageSegment(encode_png(image))))
        for text, image in zip(pairs.texts, pairs.images, strict=True)
    ]
    monkeypatch.setattr(reading, "read_documents", lambda corpus, split: iter(documents))
    monkeypatch.setattr(reading, "provenance_of", lambda corpus: {})
    clip = config.encoder
    config = dataclasses.replace(config, encoder=TfidfConfig(path=clip.path, embedding_dim=256, resolution=4))
    assert run(config, tmp_path, Namespace()) == 0
    encoder = load_encoder(config.encoder.path)
    assert isinstance(encoder, TfidfEncoder) and "family tfidf" in capsys.readouterr().out
    monkeypatch.delattr(reading, "read_documents")
    assert run(config, tmp_path, Namespace()) == 0
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"mixture was .* and is 'other'"):
        run(dataclasses.replace(config, corpus=CorpusConfig(mixture="other")), tmp_path, Namespace())
    with pytest.raises(UserError, match=r"encoder.family was 'tfidf' and is 'clip'"):
        run(dataclasses.replace(config, encoder=clip), tmp_path, Namespace())


def test_an_encoder_from_elsewhere_is_not_overwritten(config, clip_encoder, tmp_path):
    clip_encoder.save(config.encoder.path)
    with pytest.raises(UserError, match="not trained by this command"):
        run(config, tmp_path, Namespace())


@pytest.mark.parametrize(
    ("values", "message"),
    [(dict(batch_size=12), "must be a multiple of the 8 parts"), (dict(batch_size=64), "at most the 32 pairs")],
)
def test_a_batch_that_cannot_be_is_refused(config, tmp_path, monkeypatch, values, message):
    monkeypatch.setattr(clip_training, "load_pair_sample", lambda *_: sample(48))
    with pytest.raises(UserError, match=message):
        run(changed(config, **values), tmp_path, Namespace())


def test_the_held_out_pairs_are_the_last_ones():
    pairs = PairSample([str(index) for index in range(2000)], np.zeros((2000, 1, 1, 3), np.uint8))
    kept, held_out = split_pairs(pairs)
    assert len(kept.texts) == len(kept.images) == 1960
    assert held_out.texts == pairs.texts[1960:] and len(held_out.images) == 40
    with pytest.raises(UserError, match="at least 32"):
        split_pairs(PairSample(pairs.texts[:31], pairs.images[:31]))


class Fixed(Encoder):
    """Vectors that are given."""

    family, dim = "fixed", 3

    def __init__(self, texts: np.ndarray, images: np.ndarray) -> None:
        super().__init__({})
        self.texts, self.images = texts.astype(np.float32), images.astype(np.float32)

    def encode_texts(self, texts, dropout=0.0, keys=None):
        return self.texts

    def encode_images(self, images, dropout=0.0, keys=None):
        return self.images


def test_recall_counts_what_is_found():
    different = np.arange(4 * 12, dtype=np.uint8).reshape(4, 2, 2, 3)
    axes = np.eye(4)
    pairs = PairSample(["a", "b", "c", "d"], different)
    assert recall(Fixed(axes, axes), pairs) == {"text_to_image": 1.0, "image_to_text": 1.0}
    # The images of the first two are exchanged.
    assert recall(Fixed(axes, axes[[1, 0, 2, 3]]), pairs) == {"text_to_image": 0.5, "image_to_text": 0.5}
    # Both texts find the first image; its own text is found by it, the other image finds one of the two.
    found = recall(Fixed(axes[[0, 0, 2, 3]], axes), pairs)
    assert found["text_to_image"] == 0.75
    for same in (
        PairSample(["a", "a", "c", "d"], different),
        PairSample(["a", "b", "c", "d"], different[[0, 0, 2, 3]]),
    ):
        assert recall(Fixed(axes, axes[[1, 0, 2, 3]]), same) == {"text_to_image": 1.0, "image_to_text": 1.0}
