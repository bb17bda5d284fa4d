"""Metadata files: the same table in every format, encoding and layout gives the same lines; faults are numbered."""

import csv
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.data.sources import metadata
from cm3leon_jax.data.sources.config import RowsConfig
from cm3leon_jax.data.sources.metadata import BadLine, MetadataLine, read_metadata
from cm3leon_jax.errors import UserError

CELLS = st.text(st.characters(exclude_categories=["C"], include_characters='\n",;\t\\é🐇'), min_size=1)
ROWS = st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5)
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16")
NAMES = st.sampled_from([("file_name", "text"), ("File_Name", "caption"), ("target_file_name", "TEXT")])


def write_jsonl(file, names, rows, encoding="utf-8", end="\n"):
    lines = [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) for row in rows]
    file.write_bytes(end.join(lines).encode(encoding))


def write_csv(file, names, rows, encoding="utf-8", delimiter=",", end="\n"):
    with file.open("w", encoding=encoding, newline="") as opened:
        writer = csv.writer(opened, delimiter=delimiter, lineterminator=end)
        writer.writerows([names, *rows])


def write_parquet(file, names, rows):
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet is read with pyarrow")
    from pyarrow import parquet

    columns = [list(column) for column in zip(*rows, strict=True)]
    parquet.write_table(pyarrow.table(dict(zip(names, columns, strict=True))), file)


def read(file, **config):
    return list(read_metadata(file, RowsConfig(**config)))


def pairs(lines):
    return [(line.image, *line.captions) for line in lines]


@settings(max_examples=30, deadline=None)
@given(rows=ROWS, names=NAMES, encoding=st.sampled_from(ENCODINGS), end=st.sampled_from(["\n", "\r\n"]),
       delimiter=st.sampled_from(",;\t"))  # fmt: skip
def test_every_format_gives_the_table(tmp_path_factory, rows, names, encoding, end, delimiter):
    folder = tmp_path_factory.mktemp("metadata")
    extra = [(*row, "7") for row in rows]
    write_jsonl(folder / "metadata.jsonl", (*names, "id"), extra, encoding, end)
    write_csv(folder / "metadata.csv", (*names, "id"), extra, encoding, delimiter, end)
    assert pairs(read(folder / "metadata.jsonl")) == rows
    assert pairs(read(folder / "metadata.csv")) == rows
    write_parquet(folder / "METADATA.PARQUET", names, rows)
    assert pairs(read(folder / "METADATA.PARQUET")) == rows


def test_several_captions_are_a_list(tmp_path):
    rows = [("a.png", ["one", "two"]), ("b.png", ["three"])]
    for write, name in ((write_jsonl, "metadata.jsonl"), (write_parquet, "metadata.parquet")):
        write(tmp_path / name, ("file_name", "captions"), rows)
        assert [(line.image, list(line.captions)) for line in read(tmp_path / name)] == rows


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_columns_are_chosen_by_name(tmp_path, kind):
    file = tmp_path / f"metadata.{kind}"
    write = {"jsonl": write_jsonl, "csv": write_csv, "parquet": write_parquet}[kind]
    names = ("before_file_name", "after_file_name", "label", "text")
    write(file, names, [("a.png", "b.png", "cat", "a cat")])
    with pytest.raises(UserError, match=r"after_file_name, before_file_name.*config\.corpus\.rows\.image_column"):
        read(file)
    found = read(file, image_column="after_file_name", caption_column="label")
    assert pairs(found) == [("b.png", "cat")]
    assert pairs(read(file, image_column="after_file_name")) == [("b.png", "a cat")]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_missing_columns_are_named(tmp_path, kind):
    file = tmp_path / f"metadata.{kind}"
    write = {"csv": write_csv, "parquet": write_parquet}[kind]
    write(file, ("file_name", "description"), [("a.png", "a cat")])
    with pytest.raises(UserError, match=r"file_name, description.*caption_column"):
        read(file)


GOOD = '{"file_name": "a.png", "text": "a"}'


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("not json", metadata.MALFORMED),
        ("[" * 100_000, metadata.MALFORMED),
        ('{"file_name": ' * 100_000, metadata.MALFORMED),
        ("9" * 5000, metadata.MALFORMED),
        ("[]", metadata.MALFORMED),
        ("null", metadata.MALFORMED),
        ('{"file_name": "a.png"}', metadata.MALFORMED),
        ('{"file_name": 3, "text": "a"}', metadata.MALFORMED),
        ('{"file_name": "a.png", "text": ["a", null]}', metadata.MALFORMED),
        ('{"file_name": "a.png", "text": []}', metadata.MALFORMED),
        ('{"file_name": "a.png", "text": "' + "a" * 200 + '"}', metadata.TOO_LONG),
    ],
    ids=lambda value: value[:20],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_bad_line_is_numbered_and_its_neighbors_are_read(tmp_path, monkeypatch, line, kind, place):
    if kind == metadata.TOO_LONG:
        monkeypatch.setattr(metadata, "_LONGEST_LINE", 50)
    lines = [GOOD, GOOD]
    lines.insert(place, line)
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    found = read(tmp_path / "metadata.jsonl")
    assert found[place] == BadLine(place + 1, kind)
    assert [one for one in found if isinstance(one, MetadataLine)] == [found[i] for i in range(3) if i != place]


def test_bad_cells_of_csv_are_numbered(tmp_path, monkeypatch):
    monkeypatch.setattr(metadata, "_LONGEST_LINE", 50)
    lines = ["file_name,text", "a.png,a", "b.png", "c.png," + "c" * 100, 'd.png,"d" d', "", "e.png,e"]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    found = read(tmp_path / "metadata.csv")
    assert pairs(one for one in found if isinstance(one, MetadataLine)) == [("a.png", "a"), ("e.png", "e")]
    bad = {one.number: one.kind for one in found if isinstance(one, BadLine)}
    assert bad == {3: metadata.MALFORMED, 4: metadata.TOO_LONG, 5: metadata.MALFORMED}


def test_a_quotation_mark_that_is_never_closed_does_not_hide_lines(tmp_path):
    (tmp_path / "metadata.csv").write_text('file_name,text\na.png,a\nb.png,"b\nc.png,c\n')
    first, last = read(tmp_path / "metadata.csv")
    assert pairs([first]) == [("a.png", "a")] and last.kind == metadata.MALFORMED


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
def test_a_file_that_cannot_be_read_is_one_bad_line(tmp_path, name):
    (line,) = read(tmp_path / name)
    assert line == BadLine(0, metadata.UNREADABLE)
    (tmp_path / name).write_bytes(b"PAR1 but no more")
    if name.endswith(".parquet"):
        assert read(tmp_path / name) == [BadLine(1, metadata.UNREADABLE)]
