"""Tasks: folders of captioned images, TFDS builders, and what is wrong with them by name."""

import json
import re
from functools import cache

import numpy as np
import pytest

from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.sources.config import FolderConfig
from cm3leon_jax.data.sources.reading import open_mixture, skipped_report
from cm3leon_jax.documents import ImageSegment, TextSegment
from cm3leon_jax.errors import UserError
from cm3leon_jax.images import decode_image, encode_png

PNG = encode_png(np.full((8, 8, 3), 200, np.uint8))


@pytest.fixture
def folder(tmp_path):
    """Twelve captioned images, half of them in a folder below."""
    for index in range(12):
        image = tmp_path / ("below" if index % 2 else "") / f"{index}.png"
        image.parent.mkdir(exist_ok=True)
        image.write_bytes(encode_png(np.full((8, 8, 3), index, np.uint8)))
        image.with_suffix(".txt").write_text(f"image {index}\n")
    return tmp_path


def documents(mixture, split):
    (task,) = open_mixture(CorpusConfig(mixture=mixture))
    return list(task.documents(split))


def test_folder_with_text_files(folder):
    train, held_out = documents(f"folder:{folder}", "train"), documents(f"folder:{folder}", "validation")
    assert len(held_out) == 1 and len(train) == 11
    assert {document.text for document in train + held_out} == {f"image {index}" for index in range(12)}
    for document in train:
        caption, image = document.segments
        assert isinstance(caption, TextSegment) and isinstance(image, ImageSegment)
        (file,) = folder.rglob(f"{caption.text.split()[1]}.png")
        assert image.encoded == file.read_bytes()
    assert documents(f"folder:{folder}", "train") == train


def test_folder_with_metadata(folder):
    for file in folder.rglob("*.txt"):
        file.unlink()
    lines = [{"file_name": str(file.relative_to(folder)), "text": f"ä {file.stem}"} for file in folder.rglob("*.png")]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    read = documents(f"folder:{folder}", "train") + documents(f"folder:{folder}", "validation")
    assert {document.text for document in read} == {f"ä {index}" for index in range(12)}


def test_all_captions_of_an_image_are_on_one_side(tmp_path):
    lines = []
    for index in range(5):
        (tmp_path / f"{index}.png").write_bytes(PNG)
        lines += [json.dumps({"file_name": f"{index}.png", "text": f"{index} {caption}"}) for caption in "abc"]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    train, held_out = documents(f"folder:{tmp_path}", "train"), documents(f"folder:{tmp_path}", "validation")
    assert len(held_out) == 3 and len(train) == 12
    assert not {d.text[0] for d in train} & {d.text[0] for d in held_out}


def _no_caption(folder):
    (folder / "0.txt").unlink()
    return "1 x image without a caption: 0.png"


def _no_image(folder):
    (folder / "below" / "1.png").unlink()
    return "1 x caption without an image: below/1.txt"


def _not_json(folder):
    (folder / "metadata.jsonl").write_text("\n[[[[\n")
    return "1 x metadata line that is malformed: metadata.jsonl:2"


def _unknown_image(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "nowhere.png", "text": "a"}\n')
    return "1 x metadata line without its image: metadata.jsonl:1 .nowhere.png."


@pytest.mark.parametrize("spoil", [_no_caption, _no_image, _not_json, _unknown_image])
def test_what_is_odd_in_a_folder_is_skipped_up_to_a_fraction(folder, spoil):
    message = spoil(folder)
    (task,) = open_mixture(CorpusConfig(mixture=f"folder:{folder}"))
    skipped = task.skipped()
    assert skipped.num_documents == 1 and re.fullmatch(message, skipped.in_one_line())
    assert re.search(message, skipped_report([task]))
    refused = rf"1 had to be skipped, more than config.corpus.max_skipped_fraction=0.07 .*{message}"
    with pytest.raises(UserError, match=refused):
        open_mixture(CorpusConfig(mixture=f"folder:{folder}", max_skipped_fraction=0.07))


def test_the_home_folder_is_known_by_its_sign(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert documents(f"folder:~/{folder.name}", "train") == documents(f"folder:{folder}", "train")


def test_the_config_says_how_a_folder_is_read(folder):
    (folder / "0.txt").write_text("one\nzwei")
    config = FolderConfig(held_out_fraction=0.5, caption_line="first")
    (task,) = open_mixture(CorpusConfig(mixture=f"folder:{folder}", folder=config))
    texts = {split: {document.text for document in task.documents(split)} for split in ("train", "validation")}
    assert "one" in texts["train"] | texts["validation"] and len(texts["validation"]) > 2


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="no folder of images at "):
        open_mixture(CorpusConfig(mixture=f"folder:{tmp_path}/nowhere"))
    with pytest.raises(UserError, match="holds no images"):
        open_mixture(CorpusConfig(mixture=f"folder:{tmp_path}"))


@cache
def _tiny_builder():
    import tensorflow_datasets as tfds

    class TinyCaptions(tfds.core.GeneratorBasedBuilder):
        """Three images with two captions each."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(),
                "captions": tfds.features.Sequence({"text": tfds.features.Text()}),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(), "test": self._generate_examples()}

        def _generate_examples(self):
            for index in range(3):
                texts = [{"text": f"{index} {caption}"} for caption in "ab"]
                yield index, {"image": np.full((8, 8, 3), index, np.uint8), "captions": texts}

    return TinyCaptions


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_tfds_builders_of_both_formats(tmp_path, file_format):
    from cm3leon_jax.data import sources as tasks

    _tiny_builder()(data_dir=tmp_path, file_format=file_format).download_and_prepare()
    name = f"tiny_{file_format}"
    builder_name = "tiny_captions:1.0.0"
    tasks.add_tfds_task(name, builder_name, caption_key="captions/text", data_dir=tmp_path, image_first=True)
    train, held_out = documents(name, "train"), documents(name, "validation")
    assert len(train) == len(held_out) == 6
    assert {document.text for document in train} == {f"{index} {caption}" for index in range(3) for caption in "ab"}
    for document in train:
        image, caption = document.segments
        assert (decode_image(image.encoded, 8, 3) == int(caption.text[0])).all()
    with pytest.raises(UserError, match="has no feature 'label'"):
        tasks.add_tfds_task("tiny_again", builder_name, image_key="label", data_dir=tmp_path)


@pytest.mark.parametrize("error", [ConnectionError("no route\nto the host"), AssertionError("download it by hand")])
def test_a_data_set_that_cannot_be_downloaded_is_one_line(tmp_path, monkeypatch, capsys, error):
    from cm3leon_jax.data import sources as tasks

    def failing(self, **named):
        raise error

    monkeypatch.setattr(_tiny_builder(), "download_and_prepare", failing)
    with pytest.raises(UserError, match=r"cannot download and prepare tiny_captions/1.0.0 \(.*copy it to ") as refused:
        tasks.add_tfds_task("tiny_absent", "tiny_captions", caption_key="captions/text", data_dir=tmp_path)
    assert str(error).splitlines()[0] in str(refused.value)
    assert "tiny_captions/1.0.0 is not in" in capsys.readouterr().out


def test_unknown_builders_are_named():
    with pytest.raises(UserError, match="TFDS has no builder 'no_such_builder'"):
        open_mixture(CorpusConfig(mixture="tfds:no_such_builder"))
    with pytest.raises(UserError, match="write tfds:BUILDER"):
        open_mixture(CorpusConfig(mixture="tfds:a:b"))
