"""From a folder of captioned images to a prepared corpus: round trip, skipped documents, interruption, refusals."""

import argparse
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from cm3leon_jax.commands import prepare
from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus import tokenizing
from cm3leon_jax.data.corpus.config import CorpusConfig, VocabularyConfig
from cm3leon_jax.data.corpus.document_tokenizer import DocumentTokenizer
from cm3leon_jax.data.corpus.dropped import DroppedExamples
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.data.corpus.shard_writer import ShardWriter
from cm3leon_jax.data.sources.folder_documents import FolderDocuments
from cm3leon_jax.data.sources.reading import TaskReader, open_mixture
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import write_json
from cm3leon_jax.image_tokenizers.base import load_image_tokenizer
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig
from cm3leon_jax.image_tokenizers.vqgan.model import VQGAN
from cm3leon_jax.image_tokenizers.vqgan.tokenizer import VQGANTokenizer
from cm3leon_jax.images import decode_image, encode_png
from cm3leon_jax.named_parameters import parameters
from cm3leon_jax.vocabulary import Vocabulary

NUM_IMAGES = 40
IMAGE_TOKENIZER = VQGANConfig(
    resolution=8, in_channels=1, base_channels=8, channel_multipliers=(1, 2), num_res_blocks=1, latent_channels=8,
    embedding_dim=4, codebook_size=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Captioned images, two of them unreadable."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(NUM_IMAGES):
        file = folder / f"{index:02d}.png"
        pixels = rng.integers(0, 256, (8, 8, 1)).astype(np.uint8)
        file.write_bytes(encode_png(pixels)[: 30 if index in (7, 20) else None])
        file.with_suffix(".txt").write_text("a " + "very " * (index % 5) + f"small image {index} <break>")
    return folder


@pytest.fixture(scope="module")
def image_tokenizer(tmp_path_factory):
    """One folder for all tests, so that the encoder is compiled once."""
    path = tmp_path_factory.mktemp("image_tokenizer")
    VQGANTokenizer(IMAGE_TOKENIZER, parameters(VQGAN(IMAGE_TOKENIZER, nnx.Rngs(0)))).save(path)
    return load_image_tokenizer(path)


@pytest.fixture
def config(folder, tmp_path, vocabulary, image_tokenizer):
    vocabulary.save(tmp_path / "vocabulary")
    return Config(
        corpus=CorpusConfig(
            path=str(tmp_path / "corpus"), mixture=f"folder:{folder}", examples_per_shard=14, encode_batch_size=8,
            num_sample_images=5,
        ),
        vocabulary=VocabularyConfig(path=str(tmp_path / "vocabulary")),
        image_tokenizer=image_tokenizer.config,
    )  # fmt: skip


def run(config):
    return prepare.run(config, Path(), argparse.Namespace(dry_run=None))


def test_an_image_with_several_captions_is_encoded_once(config, tmp_path, vocabulary, image_tokenizer, monkeypatch):
    folder = tmp_path / "captioned"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for index in range(14):
        (folder / f"{index:02d}.png").write_bytes(encode_png(rng.integers(0, 256, (8, 8, 1)).astype(np.uint8)))
        # More than a batch of one image, too.
        number = 11 if index == 3 else 1 + index % 3
        rows = [{"file_name": f"{index:02d}.png", "text": [f"image {index}, caption {each}" for each in range(number)]}]
        with (folder / "metadata.jsonl").open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    rows = replace(config.corpus.rows, captions="all")
    corpus = replace(config.corpus, mixture=f"folder:{folder}", rows=rows, examples_per_shard=100)
    encoded = []
    encode = DocumentTokenizer.encode
    monkeypatch.setattr(
        DocumentTokenizer, "encode", lambda self, images: encoded.append(len(images)) or encode(self, images)
    )
    assert run(replace(config, corpus=corpus)) == 0
    prepared = PreparedCorpus.open(corpus.path, vocabulary)
    (task,) = open_mixture(corpus)
    num_documents = 0
    for split in ("train", "validation"):
        stored = prepared.task_split(task.name, split)
        for index, document in enumerate(task.documents(split)):
            pixels = decode_image(document.segments[1].encoded, 8, 1)
            codes = image_tokenizer.encode(pixels[None], config.corpus.encode_batch_size)[0]
            np.testing.assert_array_equal(vocabulary.decode_image(stored.document(index)[-len(codes) :]), codes)
            num_documents += 1
        assert stored.num_documents == index + 1
    assert num_documents > 30 and sum(encoded) == 14


def files(path):
    """Content of every file below a folder."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in path.rglob("*")
        if file.is_file()
    }


def test_documents_are_read_back_as_they_were(config, vocabulary, image_tokenizer, capsys):
    assert run(config) == 0
    corpus = PreparedCorpus.open(config.corpus.path, vocabulary)
    assert corpus.image_length == 16
    (task,) = open_mixture(config.corpus)
    for split in ("train", "validation"):
        stored = corpus.task_split(task.name, split)
        readable = [d for d in task.documents(split) if d.segments[1].encoded[-4:] == b"\xaeB`\x82"]
        entry = corpus.manifest["tasks"][task.name]["splits"][split]
        assert stored.num_documents == entry["num_documents"] == len(readable)
        assert entry["num_tokens"] == stored.lengths.sum()
        assert entry["num_tokens"] == entry["num_text_tokens"] + entry["num_image_tokens"] + len(readable)
        for index, document in enumerate(readable):
            ids = stored.document(index)
            (break_,) = np.flatnonzero(ids == vocabulary.break_)
            assert vocabulary.decode_text(ids[:break_].tolist()) == document.segments[0].text
            pixels = decode_image(document.segments[1].encoded, 8, 1)
            codes = image_tokenizer.encode(pixels[None], config.corpus.encode_batch_size)[0]
            np.testing.assert_array_equal(vocabulary.decode_image(ids[break_ + 1 :]), codes)
            if split == "train" and index < 5:
                sample = Image.open(f"{config.corpus.path}/{task.name}/train/samples/{index:05d}.png")
                np.testing.assert_array_equal(np.asarray(sample)[..., None], pixels)
    assert corpus.manifest["tasks"][task.name]["splits"]["train"]["num_shards"] > 2

    capsys.readouterr()
    before = files(tmp := PreparedCorpus.open(config.corpus.path).path)
    assert run(config) == 0
    assert "is complete: nothing to do" in capsys.readouterr().out
    assert files(tmp) == before


def test_unreadable_images_are_skipped_counted_and_listed(config, capsys):
    run(config)
    assert "skipped 2 (2 for unreadable image)" in capsys.readouterr().out
    corpus = PreparedCorpus.open(config.corpus.path)
    (task,) = corpus.manifest["tasks"].values()
    skipped = [entry["skipped"] for entry in task["splits"].values()]
    assert sum(entry["total"] for entry in skipped) == 2
    assert sum(entry["by_reason"].get("unreadable image", 0) for entry in skipped) == 2
    listed = [one for entry in skipped for one in entry["first"]]
    assert len(listed) == 2 and all(one["reason"].startswith("unreadable image: segment 1: ") for one in listed)
    (reader,) = open_mixture(config.corpus)
    train = list(reader.documents("train"))
    for one in task["splits"]["train"]["skipped"]["first"]:
        assert any(f"image {index} " in train[one["index"]].text for index in (7, 20))


@pytest.mark.parametrize("examples_before", [3, 20])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(config, tmp_path, monkeypatch, examples_before):
    run(config)
    whole = files(tmp_path / "corpus")

    again = replace(config, corpus=replace(config.corpus, path=str(tmp_path / "again")))
    taken = 0

    def add(self, index, document, where):
        nonlocal taken
        taken += 1
        if taken > examples_before:
            raise KeyboardInterrupt
        original(self, index, document, where)

    original = ShardWriter.add
    monkeypatch.setattr(ShardWriter, "add", add)
    with pytest.raises(KeyboardInterrupt):
        run(again)
    assert not (tmp_path / "again" / "manifest.json").exists()
    monkeypatch.setattr(ShardWriter, "add", original)
    # What a killed process leaves behind.
    (split,) = (tmp_path / "again").glob("*/train")
    (split / ".tokens-00009.bin.1.partial").write_bytes(b"half")
    run(again)
    assert files(tmp_path / "again") == whole


def test_a_corpus_of_other_parts_is_refused(config, vocabulary, tmp_path):
    run(config)
    other = replace(config, corpus=replace(config.corpus, mixture="digits", modules=("examples.digits.tasks",)))
    with pytest.raises(UserError, match=r"prepared with another mixture .*digits.*delete that folder"):
        run(other)
    Vocabulary.train(["other words"] * 3, 288, 32, 8, progress=False).save(tmp_path / "vocabulary")
    with pytest.raises(UserError, match="prepared with another vocabulary"):
        run(config)
    Vocabulary.train(["other words"] * 3, 288, 64, 8, progress=False).save(tmp_path / "vocabulary")
    with pytest.raises(UserError, match="the vocabulary has 64 image codes, the image tokenizer 32"):
        run(config)


@pytest.mark.parametrize(
    ("field", "split", "message"),
    [
        ("held_out_split", "validaton", "has no such split: its splits are train, validation"),
        ("train_split", "trian", "has no such split: its splits are train, validation"),
        ("held_out_split", "train", "which is also config.corpus.train_split"),
    ],
)
def test_splits_that_hold_nothing_out_are_refused(config, field, split, message):
    with pytest.raises(UserError, match=rf"config\.corpus\.{field} is '{split}'.*{message}"):
        run(replace(config, corpus=replace(config.corpus, **{field: split})))
    assert not Path(config.corpus.path, "plan.json").exists()


def test_more_skipped_documents_than_allowed_are_refused_and_nothing_is_lost(config, capsys):
    strict = replace(config, corpus=replace(config.corpus, max_skipped_fraction=0.04))
    with pytest.raises(UserError, match=r"2 had to be skipped.*2 for unreadable image; .*\.png: unreadable image"):
        run(strict)
    shards = {name: found for name, found in files(Path(config.corpus.path)).items() if "shard" in name}
    assert run(config) == 0
    assert shards.items() <= files(Path(config.corpus.path)).items()


def _one_more(folder):
    (folder / "new.png").write_bytes((folder / "00.png").read_bytes())
    (folder / "new.txt").write_text("one more")


def _corrected(folder):
    (folder / "01.txt").write_text("a corrected caption")


@pytest.mark.parametrize("edit", [_one_more, _corrected])
@pytest.mark.parametrize("is_complete", [True, False])
def test_a_folder_that_was_edited_is_refused(config, folder, tmp_path, edit, is_complete):
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    config = replace(config, corpus=replace(config.corpus, mixture=f"folder:{copy}"))
    run(config)
    if not is_complete:
        Path(config.corpus.path, "manifest.json").unlink()
    before = files(Path(config.corpus.path))
    edit(copy)
    with pytest.raises(UserError, match=r"from another state of the task .*captions: .*changed since then: .*delete"):
        run(config)
    assert files(Path(config.corpus.path)) == before


def test_an_edit_while_prepare_runs_is_told_and_not_mixed_in(config, folder, tmp_path, monkeypatch, capsys):
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    config = replace(config, corpus=replace(config.corpus, mixture=f"folder:{copy}"))
    write_splits = tokenizing._write_splits

    def edited(*arguments):
        _one_more(copy)
        (copy / "02.png").write_bytes(b"another")
        return write_splits(*arguments)

    monkeypatch.setattr(tokenizing, "_write_splits", edited)
    run(config)
    out = capsys.readouterr().out
    assert "skipped 3 (1 for image that was edited meanwhile, 2 for unreadable image)" in out
    assert "3 files were changed while this ran (02.png, new.png, new.txt)" in out
    (task,) = PreparedCorpus.open(config.corpus.path).manifest["tasks"].values()
    listed = [one for entry in task["splits"].values() for one in entry["skipped"]["first"]]
    assert {one["where"] for one in listed} == {"02.png", "07.png", "20.png"}


def test_parts_made_from_an_older_state_are_told(config, capsys):
    folders = ((config.vocabulary.path, "trained_on.json"), (config.image_tokenizer.path, "sample/sample.json"))
    run(config)
    assert "older state" not in capsys.readouterr().out
    (task,) = open_mixture(config.corpus)
    files = [Path(folder, name) for folder, name in folders]
    for file in files:
        write_json(file, {"sources": {task.name: {**task.provenance(), "captions": "others"}}})
    run(config)
    lines = [line for line in capsys.readouterr().out.splitlines() if "older state" in line]
    assert [line.split(" was")[0] for line in lines] == ["the vocabulary", "the image tokenizer"]
    assert all("captions: others, now " in line and "images:" not in line for line in lines)
    for file in files:
        file.unlink()


def test_a_mixture_without_readable_documents_is_refused(config, tmp_path):
    (tmp_path / "broken").mkdir()
    for index in range(3):
        (tmp_path / "broken" / f"{index}.png").write_bytes(b"no image")
        (tmp_path / "broken" / f"{index}.txt").write_text("text")
    with pytest.raises(UserError, match="has no readable documents"):
        run(replace(config, corpus=replace(config.corpus, mixture=f"folder:{tmp_path / 'broken'}")))
    record = json.loads(next((tmp_path / "corpus").glob("*/train/shard-00000.json")).read_text())
    assert record["skipped"]["by_reason"] == {"unreadable image": 2}


def test_what_a_task_follows_from_is_noted_and_binds_the_corpus(config, folder, monkeypatch):
    def provenance(self):
        return {"font": font}

    font = "first"
    monkeypatch.setattr(TaskReader, "provenance", provenance)
    run(config)
    (task,) = open_mixture(config.corpus)
    manifest = json.loads(Path(config.corpus.path, "manifest.json").read_text())
    assert manifest["tasks"][task.name]["source"] == {"font": "first"}
    assert "sources" not in manifest
    run(config)
    font = "second"
    before = files(Path(config.corpus.path))
    message = rf"prepared from another state of the task {task.name} \(font: first, now second.*\): delete that folder"
    with pytest.raises(UserError, match=message):
        run(config)
    Path(config.corpus.path, "manifest.json").unlink()
    with pytest.raises(UserError, match=message):
        run(config)
    del before[Path("manifest.json").name]
    assert files(Path(config.corpus.path)) == before


def test_a_task_that_follows_from_its_name_alone_has_no_source(config, monkeypatch):
    monkeypatch.setattr(FolderDocuments, "provenance", lambda self: {})
    run(config)
    (task,) = open_mixture(config.corpus)
    assert task.provenance() == {}
    manifest = json.loads(Path(config.corpus.path, "manifest.json").read_text())
    assert manifest["tasks"][task.name]["source"] == {}


@pytest.mark.parametrize("num_documents", [0, 10, 12])
def test_processes_that_write_in_turns_write_what_one_does(
    config, vocabulary, image_tokenizer, tmp_path, monkeypatch, num_documents
):
    """A source of unknown length, whose last shard is empty, short or full."""
    import seqio
    import tensorflow as tf

    from cm3leon_jax.data.sources import OUTPUT_FEATURES

    image = encode_png(np.full((8, 8, 1), 90, np.uint8))
    counts = {"train": 9, "validation": num_documents}
    signature = {"segments": tf.TensorSpec((None,), tf.string), "is_image": tf.TensorSpec((None,), tf.bool)}

    def read(split, shuffle_files, seed=None):
        examples = ({"segments": [f"text {i}", image], "is_image": [False, True]} for i in range(counts[split]))
        return tf.data.Dataset.from_generator(lambda: examples, output_signature=signature)

    name = f"unknown_length_{num_documents}"
    source = seqio.FunctionDataSource(read, splits=list(counts))
    seqio.TaskRegistry.add(name, source=source, preprocessors=[], output_features=OUTPUT_FEATURES)
    corpus = replace(config.corpus, mixture=name, examples_per_shard=4)
    (task,) = open_mixture(corpus)
    tokens = DocumentTokenizer(
        Vocabulary.load(config.vocabulary.path), load_image_tokenizer(config.image_tokenizer.path), 8
    )

    def written(folder, processes):
        for process in processes:
            monkeypatch.setattr(tokenizing.jax, "process_index", lambda process=process: process)
            monkeypatch.setattr(tokenizing.jax, "process_count", lambda: len(processes))
            none = DroppedExamples(None, {})
            tokenizing._write_own_shards(task, "validation", tmp_path / folder, tokens, corpus, first=1, dropped=none)
        return files(tmp_path / folder)

    whole = written("one", [0])
    assert sum("tokens" in name for name in whole) == max(1, -(-num_documents // 4))
    assert written("two", [1, 0]) == whole
    assert written("three", [0, 2, 1]) == whole
    # Any one of three has died, and two others go on.
    for number in range(3):
        for file in (tmp_path / "three").glob(f"*-{number:05d}.*"):
            file.unlink()
        assert written("three", [0, 1]) == whole
