"""Corpora of what a config wants: bounds of rows and documents, twins within and across splits, interruptions."""

import argparse
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from cm3leon_jax.commands import prepare
from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus import duplicates, pair_scores
from cm3leon_jax.data.corpus.config import CorpusConfig, VocabularyConfig
from cm3leon_jax.data.curation.config import CurationConfig, DuplicatesConfig
from cm3leon_jax.data.sources import reading
from cm3leon_jax.data.sources.config import FolderConfig
from cm3leon_jax.encoders.base import Encoder
from cm3leon_jax.errors import UserError
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig
from cm3leon_jax.image_tokenizers.vqgan.model import VQGAN
from cm3leon_jax.image_tokenizers.vqgan.tokenizer import VQGANTokenizer
from cm3leon_jax.named_parameters import parameters
from cm3leon_jax.retrieval.config import RetrievalConfig
from cm3leon_jax.squaring import Squaring
from tests.data.sources.published import write_tar

IMAGE_TOKENIZER = VQGANConfig(
    resolution=8, in_channels=1, base_channels=8, channel_multipliers=(1, 2), num_res_blocks=1, latent_channels=8,
    embedding_dim=4, codebook_size=32,
)  # fmt: skip


@pytest.fixture
def config(tmp_path, vocabulary):
    vocabulary.save(tmp_path / "vocabulary")
    tokenizer = VQGANTokenizer(IMAGE_TOKENIZER, parameters(VQGAN(IMAGE_TOKENIZER, nnx.Rngs(0))))
    tokenizer.save(tmp_path / "image_tokenizer")
    return Config(
        corpus=CorpusConfig(
            path=str(tmp_path / "corpus"), mixture=f"webdataset:{tmp_path}/tars", examples_per_shard=3,
            num_sample_images=0, folder=FolderConfig(held_out_fraction=0.0),
        ),
        vocabulary=VocabularyConfig(path=str(tmp_path / "vocabulary")),
        image_tokenizer=replace(IMAGE_TOKENIZER, path=str(tmp_path / "image_tokenizer")),
    )  # fmt: skip


def image(seed: int, width: int = 40, height: int = 40, quality: int = 90) -> bytes:
    """A JPEG of smooth noise, which a seed tells from others."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write(folder: Path, name: str, *samples: tuple[bytes, str, dict]) -> None:
    members = []
    for number, (encoded, text, row) in enumerate(samples):
        key = f"{name}{number}"
        files = (("jpg", encoded), ("txt", text.encode()), ("json", json.dumps({"key": key, **row}).encode()))
        members += [(f"{key}.{suffix}", content) for suffix, content in files]
    write_tar(folder / f"tars/{name}.tar", members)


def run(config, **corpus):
    config = replace(config, corpus=replace(config.corpus, **corpus))
    prepare.run(config, Path(), argparse.Namespace(dry_run=None))
    manifest = json.loads(Path(config.corpus.path, "manifest.json").read_text())
    (task,) = manifest["tasks"].values()
    return task


def first(entry):
    return {each["where"]: each["reason"] for each in entry["skipped"]["first"]}


def test_what_is_not_wanted_is_counted_with_examples_and_is_no_fault(config, tmp_path):
    write(
        tmp_path, "train",
        (image(0), "a fox", {"pwatermark": 0.1}), (image(1), "a hare", {"pwatermark": 0.9}), (image(2), "a cat", {}),
        (image(3, 20, 40), "a dog", {"pwatermark": 0.2}), (image(4), "owl", {"pwatermark": 0.3}),
        (image(5, 200, 40), "a wide fox", {"pwatermark": 0.3}), (b"<html>", "a page", {"pwatermark": 0.3}),
    )  # fmt: skip
    write(tmp_path, "val", (image(9), "an elk", {"pwatermark": 0.0}))
    curation = CurationConfig(min_side=32, max_aspect_ratio=2.0, min_text_length=4, at_most={"pwatermark": 0.5})
    with pytest.raises(UserError, match=r"has 2 documents, but 1 had to be skipped"):
        run(config, curation=curation, max_skipped_fraction=0.3)
    task = run(config, curation=curation, max_skipped_fraction=0.34)
    assert task["skipped"]["by_reason"] == {"pwatermark above 0.5": 1, "row without a number pwatermark": 1}
    assert task["skipped"]["first"][0] == {"where": "train.tar:train1 (0.9)", "reason": "pwatermark above 0.5"}
    train = task["splits"]["train"]
    assert train["num_documents"] == 1 and train["skipped"]["total"] == 4 and train["skipped"]["num_unwanted"] == 3
    assert {where: reason for where, reason in first(train).items() if "page" not in reason} == {
        "train.tar:train3": "image with a side of less than 32 pixels: 20 x 40",
        "train.tar:train4": "text of less than 4 characters: 3",
        "train.tar:train5": "image longer than 2 times its shorter side: 200 x 40",
        "train.tar:train6": "unreadable image: segment 1: none of "
        + first(train)["train.tar:train6"].partition("none of ")[2],
    }
    with pytest.raises(UserError, match="prepared with another curation"):
        run(config, max_skipped_fraction=0.34)


def test_images_become_squares_as_the_config_says(config, tmp_path):
    write(tmp_path, "train", (image(0, 80, 40), "a fox", {}))
    write(tmp_path, "val", (image(1, 40, 80), "a hare", {}))
    tokens = {}
    for squaring in (Squaring(), Squaring("pad", "black"), Squaring("pad", "white")):
        path = tmp_path / f"{squaring.method}_{squaring.background}"
        run(config, path=str(path), squaring=squaring)
        tokens[squaring] = next(path.glob("*/train/tokens-*.bin")).read_bytes()
    assert len(set(tokens.values())) == 3
    with pytest.raises(UserError, match=r"prepared with another squaring \(pad, on white, now it is pad, on black\)"):
        run(config, path=str(path), squaring=Squaring("pad", "black"))
    # A corpus of before there was a choice has none in its plan.
    path = tmp_path / "crop_white"
    plan = json.loads((path / "plan.json").read_text())
    assert plan.pop("squaring") == ""
    (path / "plan.json").write_text(json.dumps(plan))
    run(config, path=str(path), squaring=Squaring())


TWINS = [
    (image(0), "a fox"), (image(0), "a red fox"), (image(1), "a hare"), (image(0), "a fox"), (image(2), "an elk"),
    (image(1, quality=60), "a hare"), (image(7, 80, 80), "an owl"),
]  # fmt: skip
HELD_OUT = [(image(2), "a big elk"), (image(7), "an owl"), (image(2), "a big elk")]


DOCUMENT, IMAGE, HELD = "duplicate document", "duplicate image", "image that is held out, too"


@pytest.mark.parametrize(
    ("options", "dropped"),
    [
        (
            {"drop": "images"},
            {
                "train1": (IMAGE, "train0"), "train3": (IMAGE, "train0"), "train4": (IMAGE, "val0"),
                "val2": (IMAGE, "val0"),
            },
        ),
        ({"drop": "documents"}, {"train3": (DOCUMENT, "train0"), "val2": (DOCUMENT, "val0")}),
        ({"drop_held_out": True}, {"train4": (HELD, "val0")}),
        ({"drop_held_out": True, "max_distance": 4}, {"train4": (HELD, "val0"), "train6": (HELD, "val1")}),
        (
            {"drop": "documents", "drop_held_out": True, "max_distance": 4},
            {
                "train3": (DOCUMENT, "train0"), "train4": (HELD, "val0"), "train5": (DOCUMENT, "train2"),
                "train6": (HELD, "val1"), "val2": (DOCUMENT, "val0"),
            },
        ),
    ],
)  # fmt: skip
def test_twins(config, tmp_path, options, dropped):
    write(tmp_path, "train", *((*each, {}) for each in TWINS))
    write(tmp_path, "val", *((*each, {}) for each in HELD_OUT))
    splits = run(config, duplicates=DuplicatesConfig(**options))["splits"]
    found = {}
    for where, reason in (first(splits["train"]) | first(splits["validation"])).items():
        kind, _, twin = reason.partition(": ")
        found[where.rpartition(":")[2]] = (kind, twin.rpartition(":")[2])
    assert found == dropped
    assert splits["train"]["num_documents"] == len(TWINS) - sum(key.startswith("train") for key in dropped)


def test_interrupted_anywhere_the_corpus_is_the_same(config, tmp_path, monkeypatch):
    write(tmp_path, "train", *((*each, {}) for each in TWINS))
    write(tmp_path, "val", *((*each, {}) for each in HELD_OUT))
    options = DuplicatesConfig(drop="documents", drop_held_out=True, max_distance=4)
    whole = run(config, duplicates=options)
    expected = {file.name: file.read_bytes() for file in (tmp_path / "corpus").rglob("*.bin")}
    assert expected
    save = duplicates.save_array
    for stop in range(6):
        calls = []

        def failing(file, array, stop=stop, calls=calls):
            if len(calls) == stop:
                raise KeyboardInterrupt
            calls.append(file)
            return save(file, array)

        other = {"path": str(tmp_path / f"again{stop}"), "duplicates": options}
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(duplicates, "save_array", failing)
            run(config, **other)
        assert run(config, **other) == whole
        found = {file.name: file.read_bytes() for file in (tmp_path / f"again{stop}").rglob("*.bin")}
        assert found == expected


def test_a_dry_run_says_what_the_corpus_would_be(config, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(reading, "_SPREAD_BLOCK", 4)
    caplog.set_level("INFO")
    write(tmp_path, "train", *((image(n % 40, 20 if n % 5 == 0 else 40), "a fox", {}) for n in range(200)))
    write(tmp_path, "val", *((image(n), "a hare", {}) for n in range(20)))
    config = replace(config, corpus=replace(config.corpus, curation=CurationConfig(min_side=32)))
    assert prepare.run(config, Path(), argparse.Namespace(dry_run=100)) == 0
    assert [each.name for each in (tmp_path / "corpus").iterdir()] == ["index"]
    said = caplog.text
    rows = {tuple(line.split()[:2]): line.split()[2:] for line in said.splitlines() if "webdataset_tars" in line}
    examples, read, documents, *tokens = rows["webdataset_tars", "train"][:5]
    assert (examples, read) == ("200", "91") and 150 <= int(documents) <= 170
    assert int(tokens[1].replace(",", "")) == pytest.approx(16 * 160, rel=0.05)
    assert rows["webdataset_tars", "validation"][:3] == ["20", "16", "20"]
    assert "x image with a side of less than 32 pixels: train.tar:train0 (20 x 40), " in said
    assert "of 107 examples that were read" in said and "hours of this process" in said
    # The estimate is close to what is made.
    made = run(config)["splits"]["train"]
    assert made["num_documents"] == 160


def test_a_dry_run_without_a_document_is_one_line(config, tmp_path):
    write(tmp_path, "train", (b"<html>", "a fox", {}), (image(1), "a hare", {}))
    write(tmp_path, "val", (b"<html>", "a fox", {}))
    config = replace(config, corpus=replace(config.corpus, curation=CurationConfig(min_side=99)))
    with pytest.raises(UserError, match=r"none of the first examples .* is a document .*1 x unreadable image"):
        prepare.run(config, Path(), argparse.Namespace(dry_run=10))


class WordedImages(Encoder):
    """An encoder of gray images and of texts that name a gray value: its vectors lie on a quarter of a circle."""

    family, dim = "worded", 2

    def __init__(self, is_joint: bool = True) -> None:
        super().__init__({"is_joint": is_joint})
        self.is_joint = is_joint
        self.num_images = 0

    def encode_texts(self, texts, dropout=0.0, keys=None):
        values = [float(text.split()[-1]) if text.split()[-1].isdecimal() else np.nan for text in texts]
        return np.nan_to_num(_on_circle(np.array(values)))

    def encode_images(self, images, dropout=0.0, keys=None):
        self.num_images += len(images)
        return _on_circle(images.mean(axis=(1, 2, 3)))


def _on_circle(values):
    angles = np.asarray(values, np.float64) / 255 * np.pi / 2
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@pytest.fixture
def encoder(monkeypatch):
    found = WordedImages()
    monkeypatch.setattr(prepare, "load_encoder", lambda path: found)
    return found


def gray(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (16, 16), value).save(buffer, "PNG")
    return buffer.getvalue()


PAIRS = [
    (gray(10), "gray 10"), (gray(10), "gray 200"), (gray(90), "no number"), (gray(240), "gray 250"),
    (b"no image", "x 1"), (gray(10), "gray 10"), (gray(128), "gray 0"), (gray(128), "gray 120"),
]  # fmt: skip
FLOOR = CurationConfig(min_clip_score=0.9)


def test_captions_that_do_not_fit_their_images_are_dropped_and_counted(config, tmp_path, encoder):
    write(tmp_path, "train", *((*each, {}) for each in PAIRS))
    write(tmp_path, "val", (gray(0), "gray 0", {}), (gray(0), "gray 255", {}))
    task = run(config, curation=FLOOR, max_skipped_fraction=0.2)
    train, held_out = task["splits"]["train"], task["splits"]["validation"]
    assert train["skipped"]["by_reason"] == {"CLIP score below 0.9": 2, "unreadable image": 1}
    assert train["skipped"]["num_unwanted"] == 2 and held_out["skipped"]["by_reason"] == {"CLIP score below 0.9": 1}
    reasons = first(train)
    assert reasons["train.tar:train1"].startswith("CLIP score below 0.9: 0.3")
    # What the encoder reads nothing of, and what is no document, has no score.
    scores = np.concatenate([np.load(file) for file in sorted((tmp_path / "corpus").glob("*/train/scores-*.npy"))])
    assert scores.dtype == np.float32 and np.isnan(scores).tolist() == [n in (2, 4) for n in range(8)]
    assert scores[0] == pytest.approx(1, abs=1e-3) and scores[6] == pytest.approx(np.cos(np.pi / 4), abs=0.02)
    with pytest.raises(UserError, match="prepared with another curation"):
        run(config, curation=CurationConfig(min_clip_score=0.8), max_skipped_fraction=0.2)
    encoder.fingerprint = "another"
    with pytest.raises(UserError, match="prepared with another curation"):
        run(config, curation=FLOOR, max_skipped_fraction=0.2)


def test_what_is_below_the_floor_repeats_nothing_and_is_repeated_by_nothing(config, tmp_path, encoder):
    write(tmp_path, "train", (gray(10), "gray 200", {}), (gray(10), "gray 10", {}), (gray(10), "gray 9", {}))
    write(tmp_path, "val", (gray(0), "gray 0", {}))
    task = run(config, curation=FLOOR, duplicates=DuplicatesConfig(drop="images"))
    assert first(task["splits"]["train"]) == {
        "train.tar:train0": first(task["splits"]["train"])["train.tar:train0"],
        "train.tar:train2": "duplicate image: webdataset_tars train 1 train.tar:train1",
    }


def test_interrupted_anywhere_nothing_is_scored_twice(config, tmp_path, encoder, monkeypatch):
    write(tmp_path, "train", *((*each, {}) for each in PAIRS))
    write(tmp_path, "val", (gray(0), "gray 0", {}))
    options = {"curation": FLOOR, "max_skipped_fraction": 0.2, "duplicates": DuplicatesConfig(drop="documents")}
    whole, num_images = run(config, **options), encoder.num_images
    expected = {file.name: file.read_bytes() for file in (tmp_path / "corpus").rglob("*-*.[bn]*")}
    save = pair_scores.save_array
    for stop in range(4):
        other, calls = {"path": str(tmp_path / f"again{stop}"), **options}, []

        def failing(file, array, stop=stop, calls=calls):
            if len(calls) == stop:
                raise KeyboardInterrupt
            calls.append(file)
            return save(file, array)

        encoder.num_images = 0
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(pair_scores, "save_array", failing)
            run(config, **other)
        assert run(config, **other) == whole
        # But for the shard that was being scored.
        assert num_images <= encoder.num_images <= num_images + 3
        assert {file.name: file.read_bytes() for file in (tmp_path / f"again{stop}").rglob("*-*.[bn]*")} == expected


def test_an_encoder_that_compares_no_texts_with_images_is_refused(config, tmp_path, monkeypatch):
    write(tmp_path, "train", (gray(0), "gray 0", {}))
    write(tmp_path, "val", (gray(0), "gray 0", {}))
    monkeypatch.setattr(prepare, "load_encoder", lambda path: WordedImages(is_joint=False))
    with pytest.raises(UserError, match=r"min_clip_score compares texts with images"):
        run(config, curation=FLOOR)
    assert not list((tmp_path / "corpus").rglob("*.json"))
    with pytest.raises(UserError, match=r"min_clip_score compares texts with images"):
        dry_run(config, curation=FLOOR)


def test_without_an_encoder_there_is_one_line(config, tmp_path):
    write(tmp_path, "train", (gray(0), "gray 0", {}))
    write(tmp_path, "val", (gray(0), "gray 0", {}))
    config = replace(config, encoder=replace(config.encoder, path=str(tmp_path / "encoder")))
    with pytest.raises(UserError, match="no encoder at"):
        run(config, curation=FLOOR)


def dry_run(config, **corpus):
    config = replace(config, corpus=replace(config.corpus, **corpus))
    return prepare.run(config, Path(), argparse.Namespace(dry_run=100))


def test_a_dry_run_asks_the_encoder_too(config, tmp_path, encoder, caplog):
    caplog.set_level("INFO")
    write(tmp_path, "train", *((*each, {}) for each in PAIRS))
    write(tmp_path, "val", (gray(0), "gray 0", {}))
    assert dry_run(config, curation=FLOOR) == 0
    assert "2 x CLIP score below 0.9: train.tar:train1 (0.3" in caplog.text


@pytest.mark.parametrize(("curation", "drop"), [(FLOOR, "none"), (CurationConfig(), "images"), (FLOOR, "images")])
def test_neighbors_are_those_of_the_documents_that_are_left(config, tmp_path, encoder, curation, drop):
    write(tmp_path, "train", *((gray(10 * n % 200), f"gray {10 * n % 130}", {}) for n in range(40)))
    write(tmp_path, "val", (gray(0), "gray 0", {}), (gray(0), "gray 255", {}))
    config = replace(config, retrieval=RetrievalConfig(enabled=True, num_candidates=8, max_similarity=1.0))
    train = run(config, curation=curation, duplicates=DuplicatesConfig(drop))["splits"]["train"]
    assert 0 < train["skipped"]["total"] < 40
    vectors = [np.load(file) for file in sorted((tmp_path / "corpus/retrieval").glob("*/train/vectors-*.npy"))]
    assert sum(map(len, vectors)) == train["num_documents"] == 40 - train["skipped"]["total"]
