"""Tables of captioned images in every form that people have them in, and their faults."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather, ipc

from cm3leon_jax.data.sources.reading import ShardSlice
from cm3leon_jax.errors import UserError
from tests.data.sources.published import IMAGE, cell, documents, faults, opened, png, shown, write_images

TEXT = pa.string()


def parquet(file, table):
    pq.write_table(table, file, row_group_size=3)


def stream(file, table):
    with ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def arrow_file(file, table):
    with ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def compressed(file, table):
    feather.write_feather(table, str(file), compression="lz4", chunksize=2)


FORMATS = {"a.parquet": parquet, "a.arrow": stream, "a.ipc": arrow_file, "a.feather": compressed}


def write(file, rows, schema, form=parquet):
    file.parent.mkdir(parents=True, exist_ok=True)
    form(file, pa.Table.from_pylist(rows, pa.schema(list(schema.items()))))


def read(path, **rows):
    return [shown(each)[1:] for each in documents(opened(f"parquet:{path}", rows=rows))]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_and_any_share_of_it(tmp_path, name):
    rows = [{"image": cell(n) if n != 4 else None, "text": f"caption {n}"} for n in range(11)]
    write(tmp_path / name, rows, {"image": IMAGE, "text": TEXT}, FORMATS[name])
    task = opened(f"parquet:{tmp_path}")
    expected = [(f"caption {n}", f"<{n}>") for n in range(11) if n != 4]
    assert [shown(each)[1:] for each in documents(task)] == expected
    assert task.skipped().by_kind == {"missing image": 1}
    assert task.skipped().entry()["first"] == [{"where": f"{name}:4", "reason": "missing image"}]
    part = dict(task.numbered("train", ShardSlice(2, 1, 2)))
    assert {n: shown(each)[1:] for n, each in part.items()} == {n: expected[n] for n in (2, 3, 4, 6, 7, 8)}


IMAGES = {
    "bytes": (pa.binary(), png(7), "image"),
    "large bytes": (pa.large_binary(), png(7), "anything"),
    "bytes and path": (IMAGE, cell(7), "image"),
    "list of one": (pa.list_(IMAGE), [cell(7)], "images"),
    "file": (TEXT, "files/b.png", "image_path"),
    "path without bytes": (IMAGE, {"bytes": None, "path": "files/b.png"}, "image"),
}


@pytest.mark.parametrize(("kind", "value", "name"), IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("form", [parquet, stream])
def test_images(tmp_path, kind, value, name, form):
    write_images(tmp_path, *(f"files/{number}.png" for number in range(7)), "files/b.png")
    write(tmp_path / "a.parquet", [{"text": "fox", name: value}], {"text": TEXT, name: kind})
    if form is stream:
        (tmp_path / "a.parquet").rename(tmp_path / "b")
        stream(tmp_path / "a.arrow", pq.read_table(tmp_path / "b"))
    assert read(tmp_path) == [("fox", "<7>")]


LISTED = pa.list_(TEXT)
SENTENCES = pa.list_(pa.struct([("raw", TEXT), ("lang", TEXT)]))
CAPTIONS = [
    ("one", TEXT, "fox", {}, ["fox"]),
    ("list", LISTED, ["fox", "hare", "fox"], {}, ["fox", "hare"]),
    ("list, first", LISTED, ["fox", "a hare"], {"captions": "first"}, ["fox"]),
    ("list, longest", LISTED, ["fox", "a hare"], {"captions": "longest"}, ["a hare"]),
    ("list with faults", LISTED, ["", "fox", None], {}, ["fox"]),
    ("list with faults, first", LISTED, ["", "fox", None], {"captions": "first"}, ["fox"]),
    ("JSON list", TEXT, '["fox", "hare"]', {}, ["fox", "hare"]),
    ("JSON object", TEXT, '{"en": "fox", "de": "Fuchs"}', {"caption_column": "captions.de"}, ["Fuchs"]),
    ("struct", pa.struct([("en", TEXT), ("de", TEXT)]), {"de": "Fuchs"}, {"caption_column": "captions.de"}, ["Fuchs"]),
    ("list of structs", SENTENCES, [{"raw": "a"}, {"raw": "b"}], {"caption_column": "captions.raw"}, ["a", "b"]),
    (
        "languages of a list of structs", SENTENCES, [{"raw": "fox", "lang": "en"}, {"raw": "Hase", "lang": "de"}],
        {"caption_column": "captions.raw", "language_column": "captions.lang", "languages": ("de",)}, ["Hase"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value", "rows", "expected"), [c[1:] for c in CAPTIONS], ids=[c[0] for c in CAPTIONS])
def test_captions(tmp_path, kind, value, rows, expected):
    write(tmp_path / "a.parquet", [{"captions": value, "image": png(7)}], {"image": pa.binary(), "captions": kind})
    assert read(tmp_path, **rows) == [(caption, "<7>") for caption in expected]


def test_upper_case_names_of_laion(tmp_path):
    write(tmp_path / "a.parquet", [{"TEXT": "fox", "jpg": png(7)}], {"TEXT": TEXT, "jpg": pa.binary()})
    assert read(tmp_path) == [("fox", "<7>")]


GOOD = {"image": {"bytes": png(200), "path": None}, "text": "good", "status": "success"}
FAULTS = [
    ("null image", {"image": None}, "missing image", True),
    ("null caption", {"text": None}, "row without a caption", True),
    ("empty caption", {"text": " \n"}, "empty caption", True),
    ("failed download", {"image": None, "status": "failed_to_download"}, "image that was not downloaded", False),
]


@pytest.mark.parametrize(("change", "kind", "is_document"), [c[1:] for c in FAULTS], ids=[c[0] for c in FAULTS])
@pytest.mark.parametrize("position", [0, 1])
def test_a_fault_is_counted_and_its_neighbors_are_read(tmp_path, change, kind, is_document, position):
    rows = [GOOD, {**GOOD, "image": cell(7), "text": "second"}]
    rows.insert(position, {**GOOD, **change})
    write(tmp_path / "a.parquet", rows, {"image": IMAGE, "text": TEXT, "status": TEXT})
    task = opened(f"parquet:{tmp_path}")
    assert [shown(each)[1:] for each in documents(task)] == [("good", "<200>"), ("second", "<7>")]
    assert task.skipped().by_kind == {kind: 1} and task.skipped().num_documents == is_document
    assert task.skipped().entry()["first"] == [{"where": f"a.parquet:{position}", "reason": kind}]


def test_what_is_found_when_images_are_read(tmp_path):
    rows = [
        {**GOOD, "image": {"bytes": None, "path": None}}, {**GOOD, "image": {"bytes": b"", "path": "x"}},
        {**GOOD, "image": {"bytes": None, "path": "nowhere.png"}}, GOOD,
    ]  # fmt: skip
    write(tmp_path / "a.parquet", rows, {"image": IMAGE, "text": TEXT})
    task = opened(f"parquet:{tmp_path}")
    assert faults(task) == {f"a.parquet:{number}": "missing image" for number in range(3)}
    assert [shown(each)[1:] for each in documents(task)] == [("good", "<200>")]


def test_addresses_and_several_images_are_no_file(tmp_path):
    rows = [{"image": "https://example.org/a.png", "text": "a"}, {"image": "b.png", "text": "b"}]
    write_images(tmp_path, "b.png")
    write(tmp_path / "a.parquet", rows, {"image": TEXT, "text": TEXT})
    write(
        tmp_path / "c.parquet",
        [{"images": [png(1), png(2)], "text": "c"}],
        {"images": pa.list_(pa.binary()), "text": TEXT},
    )
    task = opened(f"parquet:{tmp_path}")
    assert [shown(each)[1:] for each in documents(task)] == [("b", "<0>")]
    assert task.skipped().by_kind == {"image that is an address, not a file": 1, "several images of one row": 1}


def test_a_text_that_is_not_utf8_is_one_fault(tmp_path):
    texts = pa.Array.from_buffers(TEXT, 3, pa.array([b"a", b"\xff", b"c"], pa.binary()).buffers())
    images = pa.array([png(1), png(2), png(3)], pa.binary())
    pq.write_table(pa.table({"image": images, "text": texts}), tmp_path / "a.parquet")
    task = opened(f"parquet:{tmp_path}")
    assert [shown(each)[1:] for each in documents(task)] == [("a", "<1>"), ("c", "<3>")]
    assert task.skipped().by_kind == {"caption that is not UTF-8": 1}


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_is_cut_off_is_counted(tmp_path, name):
    rows = [{"image": png(n, 64, 64), "text": f"{n}"} for n in range(9)]
    schema = {"image": pa.binary(), "text": TEXT}
    write(tmp_path / "good.parquet", rows[:1], schema)
    write(tmp_path / name, rows, schema, FORMATS[name])
    whole = (tmp_path / name).read_bytes()
    for size in (0, 3, 10, len(whole) // 2, len(whole) - 9):
        (tmp_path / name).write_bytes(whole[:size])
        task = opened(f"parquet:{tmp_path}")
        found = documents(task)
        assert shown(found[-1])[1:] == ("0", "<0>")
        assert [shown(each)[1:] for each in found[:-1]] == [(f"{n}", f"<{n}>") for n in range(len(found) - 1)]
        # The end of a stream is not written by all.
        assert task.skipped().by_kind == {"table that cannot be read": 1} or (name == "a.arrow" and len(found) > 8)


def test_the_cache_of_datasets(tmp_path):
    rows = [{"image": cell(n), "caption": f"{n}"} for n in range(3)]
    folder = tmp_path / "user___set/default/0.0.0/0123abc"
    write(folder / "set-train.arrow", rows, {"image": IMAGE, "caption": TEXT}, stream)
    write(folder / "set-validation.arrow", rows[:1], {"image": IMAGE, "caption": TEXT}, stream)
    write(folder / "cache-0123abc.arrow", rows, {"image": IMAGE, "caption": TEXT}, stream)
    (folder / "dataset_info.json").write_text("{}")
    task = opened(f"parquet:{tmp_path}")
    assert [len(documents(task, split)) for split in ("train", "validation")] == [3, 1]


@pytest.mark.parametrize(
    ("schema", "rows", "message"),
    [
        (
            {"URL": TEXT, "TEXT": TEXT},
            {},
            r"has the columns URL, TEXT: none .* their images; .*image_column.*img2dataset",
        ),
        ({"image": IMAGE, "label": TEXT}, {}, r"has the columns image, label: .*hold their captions; .*caption_column"),
        ({"image": IMAGE, "text": TEXT}, {"image_column": "jpg"}, "has the columns image, text: none .* their images"),
        ({"a": IMAGE, "b": IMAGE, "text": TEXT}, {}, "has the columns a, b, text: none .* their images"),
    ],
)
def test_columns_that_are_not_found_are_one_line(tmp_path, schema, rows, message):
    write(tmp_path / "a.parquet", [], schema)
    with pytest.raises(UserError, match=message):
        opened(f"parquet:{tmp_path}", rows=rows)


def test_other_forms_are_one_line(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(
        UserError, match=r"holds no parquet or Arrow files .*: there is no .parquet, .arrow, .feather or .ipc"
    ):
        opened(f"parquet:{tmp_path}")
    (tmp_path / "a.parquet").write_text(json.dumps({}))
    with pytest.raises(UserError, match=r"has no examples \(1 x table that cannot be read: a.parquet:0\)"):
        opened(f"parquet:{tmp_path}")
