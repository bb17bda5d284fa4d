"""TFRecord files as img2dataset and TensorFlow's own programs write them, and what is broken in such files."""

import struct
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.corpus.document_tokenizer import DocumentTokenizer
from cm3leon_jax.data.curation.config import CurationConfig
from cm3leon_jax.data.sources import example_task
from cm3leon_jax.data.sources.config import FolderConfig
from cm3leon_jax.data.sources.reading import open_mixture
from cm3leon_jax.data.sources.tfrecord_files import CUT, DAMAGED, BytesAt, ExampleRecord, RecordFault, TFRecordFile
from cm3leon_jax.errors import UserError
from tests.data.sources.published import documents, faults, opened, png, shown


def feature(value) -> tf.train.Feature:
    """A value as img2dataset stores it: a number by its type, all else as bytes, None as empty ones."""
    values = value if isinstance(value, list) else [value]
    if values and isinstance(values[0], int):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    if values and isinstance(values[0], float):
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    texts = ["" if each is None else each for each in values]
    encoded = [each.encode() if isinstance(each, str) else each for each in texts]
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=encoded))


def example(values: dict) -> bytes:
    features = {name: feature(value) for name, value in values.items()}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write(file: Path, *records: bytes | dict) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for record in records:
            writer.write(example(record) if isinstance(record, dict) else record)
    return file


def downloaded(number: int, caption: str | None = "fox", **more) -> dict:
    """A record of `img2dataset --output_format tfrecord`: key, image, caption, and the metadata as in its tables."""
    return {
        "key": f"{number:09d}", "jpg": png(number), "txt": "" if caption is None else caption, "caption": caption,
        "url": f"http://example.org/{number}.png", "status": "success", "error_message": None, "width": 8, "height": 8,
        "original_width": 16, "original_height": 16, "exif": "{}", "sha256": f"{number:064x}", **more,
    }  # fmt: skip


def read(path, **rows):
    return [shown(each)[1:] for each in documents(opened(f"tfrecord:{path}", rows=rows))]


def test_files_of_img2dataset(tmp_path):
    write(tmp_path / "00000.tfrecord", downloaded(0), downloaded(1, "hare"))
    write(tmp_path / "00001.tfrecord", downloaded(2, "ein Hase", similarity=0.31))
    # What is beside them is left alone.
    (tmp_path / "00000.parquet").write_bytes(b"PAR1")
    (tmp_path / "00000_stats.json").write_text("{}")
    assert read(tmp_path) == [("fox", "<0>"), ("hare", "<1>"), ("ein Hase", "<2>")]
    assert read(f"{tmp_path}/{{00001..00002}}.tfrecord") == [("ein Hase", "<2>")]
    assert read(tmp_path / "00000.tfrecord") == [("fox", "<0>"), ("hare", "<1>")]


@pytest.mark.parametrize(
    ("record", "rows", "expected"),
    [
        # Of TensorFlow's object detection, with several texts.
        ({"image/encoded": png(3), "image/caption": ["fox", "hare"]}, {}, [("fox", "<3>"), ("hare", "<3>")]),
        ({"image": png(3), "text": "fox"}, {}, [("fox", "<3>")]),
        ({"image_raw": png(3), "caption": "fox", "txt": "hare"}, {}, [("hare", "<3>")]),
        ({"image_raw": png(3), "caption": "fox", "txt": "hare"}, {"caption_column": "caption"}, [("fox", "<3>")]),
        ({"pixels": png(3), "said": "fox"}, {"image_column": "pixels", "caption_column": "said"}, [("fox", "<3>")]),
        ({"png": png(3), "json": '{"a": "fox"}'}, {"caption_column": "json.a"}, [("fox", "<3>")]),
        ({"png": png(3), "text": '["fox", "hare"]'}, {"captions": "longest"}, [("hare", "<3>")]),
        (
            {"png": png(3), "text": ["fox", "Hase"], "lang": ["en", "de"]},
            {"language_column": "lang", "languages": ("de",)},
            [("Hase", "<3>")],
        ),
    ],
)
def test_records(tmp_path, record, rows, expected):
    write(tmp_path / "a/b.tfrec", record)
    assert read(tmp_path, **rows) == expected


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (b"\xff\xff no protocol buffer", "record that is no tf.train.Example"),
        (b"", "record without an image (see config.corpus.rows.image_column)"),
        ({"txt": "fox"}, "record without an image (see config.corpus.rows.image_column)"),
        ({"jpg": png(1)}, "record without a caption (see config.corpus.rows.caption_column)"),
        ({"jpg": png(1), "txt": ""}, "empty caption"),
        ({"jpg": png(1), "txt": " \n"}, "empty caption"),
        ({"jpg": png(1), "txt": []}, "row without a caption"),
        ({"jpg": png(1), "txt": 7}, "caption that is no text"),
        ({"jpg": png(1), "txt": b"\xff\xfe\xfd"}, "caption that is not UTF-8"),
        ({"jpg": b"", "txt": "fox"}, "empty image"),
        ({"jpg": [], "txt": "fox"}, "missing image"),
        ({"jpg": 7, "txt": "fox"}, "image that is no bytes"),
        ({"jpg": [png(1), png(2)], "txt": "fox"}, "several images of one row"),
        ({"jpg": png(1), "txt": "fox", "status": "failed_to_download"}, "image that was not downloaded"),
    ],
)
def test_a_record_with_a_fault_is_skipped_and_counted(tmp_path, record, kind):
    write(tmp_path / "00000.tfrecord", downloaded(0), record, downloaded(2, "hare"))
    task = opened(f"tfrecord:{tmp_path}")
    assert [shown(each)[1:] for each in documents(task)] == [("fox", "<0>"), ("hare", "<2>")]
    assert task.skipped().by_kind == {kind: 1}
    assert "00000.tfrecord:1" in task.skipped().lines()[0]


def test_what_is_no_image_is_found_when_it_is_read(tmp_path, vocabulary, image_tokenizer):
    write(tmp_path / "0.tfrecord", downloaded(0), downloaded(1, jpg=b"<html>404</html>"), downloaded(2))
    task = opened(f"tfrecord:{tmp_path}")
    tokens = DocumentTokenizer(vocabulary, image_tokenizer, 4)
    found = [tokens.decode(each) for each in task.documents("train")]
    assert [getattr(each, "reason", "")[:16] for each in found] == ["", "unreadable image", ""]


def test_a_record_that_was_edited_meanwhile_is_skipped(tmp_path):
    file = write(tmp_path / "0.tfrecord", downloaded(0), downloaded(1))
    task = opened(f"tfrecord:{tmp_path}")
    file.write_bytes(file.read_bytes()[:-1])
    assert documents(task) == [] and len(faults(task)) == 2


@pytest.mark.parametrize("kept", [1, 11, 12, 40, -5, -4, -1])
def test_of_a_file_that_is_cut_off_the_whole_records_count(tmp_path, kept):
    whole = write(tmp_path / "0.tfrecord", downloaded(0), downloaded(1, "hare")).read_bytes()
    last = len(write(tmp_path / "one/0.tfrecord", downloaded(0)).read_bytes())
    (tmp_path / "one/0.tfrecord").unlink()
    (tmp_path / "0.tfrecord").write_bytes(whole[: last + kept] if kept > 0 else whole[:kept])
    task = opened(f"tfrecord:{tmp_path}")
    assert [shown(each)[1:] for each in documents(task)] == [("fox", "<0>")]
    assert task.skipped().by_kind == {CUT: 1} and task.skipped().num_documents == 0
    assert task.skipped().lines() == [f"1 x {CUT}: 0.tfrecord, byte {last}"]


def test_from_a_damaged_length_on_a_file_is_lost(tmp_path):
    file = write(tmp_path / "0.tfrecord", downloaded(0), downloaded(1), downloaded(2))
    start = len(write(tmp_path / "one/0.tfrecord", downloaded(0)).read_bytes())
    (tmp_path / "one/0.tfrecord").unlink()
    content = bytearray(file.read_bytes())
    content[start] ^= 1
    file.write_bytes(content)
    task = opened(f"tfrecord:{tmp_path}")
    assert len(documents(task)) == 1 and task.skipped().by_kind == {DAMAGED: 1}


@pytest.mark.parametrize("kind", ["GZIP", "ZLIB"])
def test_compressed_files_are_refused_in_a_line(tmp_path, kind):
    with tf.io.TFRecordWriter(str(tmp_path / "0.tfrecord"), kind) as writer:
        writer.write(example(downloaded(0)))
    with pytest.raises(UserError, match=r"0\.tfrecord is compressed.*write it without compression"):
        opened(f"tfrecord:{tmp_path}")


@pytest.mark.parametrize(("content", "why"), [(b"", "nothing of that form"), (b"no records at all, but text", DAMAGED)])
def test_files_without_records_are_one_line(tmp_path, content, why):
    (tmp_path / "0.tfrecord").write_bytes(content)
    with pytest.raises(UserError, match=rf"^tfrecord:.* has no examples .*{why}"):
        opened(f"tfrecord:{tmp_path}")


def test_a_folder_without_such_files_is_one_line(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"there is no \.tfrecord, \.tfrecords or \.tfrec file"):
        opened(f"tfrecord:{tmp_path}")


def test_files_that_are_named_after_shards_and_splits(tmp_path):
    write(tmp_path / "train.tfrecord-00000-of-00002", downloaded(0))
    write(tmp_path / "train.tfrecord-00001-of-00002", downloaded(1))
    write(tmp_path / "validation.tfrecord-00000-of-00001", downloaded(2))
    task = opened(f"tfrecord:{tmp_path}")
    assert [len(documents(task, split)) for split in ("train", "validation")] == [2, 1]


def test_any_range_of_examples_is_read_without_those_before_it(tmp_path, monkeypatch):
    write(tmp_path / "0.tfrecord", *(downloaded(number, f"fox {number}") for number in range(9)))
    task = opened(f"tfrecord:{tmp_path}")
    read = []
    whole = example_task.read_unchanged
    monkeypatch.setattr(example_task, "read_unchanged", lambda *where: read.append(where[3]) or whole(*where))
    source = task._task.source
    found = [each.text for each in source.documents("train", 5, 7)]
    assert found == ["fox 5", "fox 6"] and len(read) == 2 and min(read) > 0


def test_rows_own_values_are_bounded_by_the_config(tmp_path):
    rows = [("a", 0.1), ("b", 0.9), ("c", None), ("d", 1)]
    write(tmp_path / "0.tfrecord", *(downloaded(n, text, pwatermark=value) for n, (text, value) in enumerate(rows)))
    config = CorpusConfig(mixture=f"tfrecord:{tmp_path}", folder=FolderConfig(held_out_fraction=0.0))
    (task,) = open_mixture(replace(config, curation=CurationConfig(at_most={"pwatermark": 0.5})))
    assert [each.text for each in documents(task)] == ["a"]
    assert task.skipped().by_kind == {"pwatermark above 0.5": 2, "row without a number pwatermark": 1}


def content_of(file: TFRecordFile, value):
    return file.read(value.start, value.start + value.size) if isinstance(value, BytesAt) else value


_VALUES = st.one_of(
    st.lists(st.binary(max_size=5000), max_size=3),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5),
    st.lists(st.floats(width=32, allow_nan=False), max_size=5),
)


@given(st.lists(st.dictionaries(st.text(max_size=20), _VALUES, max_size=4), max_size=4))
@settings(max_examples=60, deadline=None)
def test_records_have_the_values_that_tensorflow_reads(tmp_path_factory, rows):
    file = write(tmp_path_factory.mktemp("any") / "0.tfrecord", *(example(row) for row in rows))
    with file.open("rb") as opened_file:
        found = TFRecordFile(opened_file)
        records = list(found.records())
        for record, row in zip(records, rows, strict=True):
            assert isinstance(record, ExampleRecord) and record.features is not None
            content = partial(content_of, found)
            assert {name: list(map(content, values)) for name, values in record.features.items()} == row


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_data_is_values_or_none(tmp_path_factory, data):
    file = write(tmp_path_factory.mktemp("any") / "0.tfrecord", data)
    with file.open("rb") as opened_file:
        (record,) = TFRecordFile(opened_file).records()
    assert isinstance(record, ExampleRecord)
    try:
        expected = tf.train.Example.FromString(data)
    except Exception:
        return
    # Of what TensorFlow takes the names are the same; groups, which are none of these messages, are not read.
    if record.features is not None:
        assert record.features.keys() == expected.features.feature.keys()


def test_numbers_that_are_not_packed_are_read(tmp_path):
    # Feature{int64_list{value: 5, value: -1}} and {float_list{value: 1.5}}, one field for each value.
    minus_one = b"\xff" * 9 + b"\x01"
    integers = b"\x1a" + bytes([4 + len(minus_one) - 1]) + b"\x08\x05\x08" + minus_one
    floats = b"\x12\x05\x0d" + struct.pack("<f", 1.5)

    def entry(name: bytes, value: bytes) -> bytes:
        body = b"\x0a" + bytes([len(name)]) + name + b"\x12" + bytes([len(value)]) + value
        return b"\x0a" + bytes([len(body)]) + body

    features = entry(b"i", integers) + entry(b"f", floats)
    data = b"\x0a" + bytes([len(features)]) + features
    assert list(tf.train.Example.FromString(data).features.feature["i"].int64_list.value) == [5, -1]
    with write(tmp_path / "0.tfrecord", data).open("rb") as opened_file:
        (record,) = TFRecordFile(opened_file).records()
    assert record.features == {"i": [5, -1], "f": [1.5]}


def test_faults_have_a_position(tmp_path):
    (tmp_path / "0.tfrecord").write_bytes(b"\0" * 5)
    with (tmp_path / "0.tfrecord").open("rb") as opened_file:
        assert list(TFRecordFile(opened_file).records()) == [RecordFault(CUT, 0)]
