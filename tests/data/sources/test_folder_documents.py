"""Folders as people leave them: every layout of captions, odd files of every kind, edits, and what they follow from."""

import json
import os
import shutil
import socket
import time
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.data.curation.config import CurationConfig
from cm3leon_jax.data.sources.config import FolderConfig, RowsConfig
from cm3leon_jax.data.sources.folder_documents import read_folder
from cm3leon_jax.data.sources.unchanged import UnreadableFile
from cm3leon_jax.errors import UserError
from cm3leon_jax.images import IMAGE_SUFFIXES, UNSUPPORTED_IMAGE_SUFFIXES, encode_png

NAMES = st.text(st.characters(exclude_categories=["C"], exclude_characters='/."'), min_size=1, max_size=12)


def write(folder, name, caption=None, size=3):
    """An image file, whose bytes nobody decodes here, with its caption beside it."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"i" * size)
    if caption is not None:
        file.with_suffix(".txt").write_text(caption)
    return file


def documents(folder, **config):
    """(file name, caption) by split, and what was skipped by kind."""
    found = read_folder(folder, FolderConfig(**config))
    splits = {
        split: [(found.name(split, index), found.caption(split, index)) for index in range(len(numbers))]
        for split, numbers in found.splits.items()
    }
    return splits, dict(found.skipped.by_kind)


def everything(folder, **config):
    splits, skipped = documents(folder, **config)
    return {pair for pairs in splits.values() for pair in pairs}, skipped


@settings(max_examples=25, deadline=None)
@given(
    names=st.sets(NAMES, min_size=1, max_size=8),
    suffix=st.sampled_from(sorted(IMAGE_SUFFIXES)),
    upper=st.booleans(),
    form=st.sampled_from(["NFC", "NFD"]),
    layout=st.sampled_from(["files", "jsonl above", "jsonl beside", "csv"]),
)
def test_every_layout_of_every_name_is_read(tmp_path_factory, names, suffix, upper, form, layout):
    folder = tmp_path_factory.mktemp("images")
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    names = {unicodedata.normalize(form, name) for name in names}
    names = {name for name in names if len(name.encode()) < 200}
    suffix, text = (suffix.upper(), ".TXT") if upper else (suffix, ".txt")
    lines = []
    for name in names:
        write(folder, f"below/{name}{suffix}")
        spelled = unicodedata.normalize(other, name)
        if layout == "files":
            (folder / "below" / f"{spelled}{text}").write_text(f"about {name}")
        lines.append((f"{'' if layout == 'jsonl beside' else 'below/'}{spelled}{suffix}", f"about {name}"))
    if layout.startswith("jsonl"):
        file = folder / ("below" if layout.endswith("beside") else "") / "metadata.jsonl"
        file.write_text("\n".join(json.dumps({"file_name": name, "text": caption}) for name, caption in lines))
    if layout == "csv":
        rows = [("file_name", "caption"), *lines]
        (folder / "metadata.csv").write_text("\n".join(f'"{name}","{caption}"' for name, caption in rows))
    # NFC and NFD may be two names for one, or one name for two.
    found, skipped = everything(folder)
    assert {name for name, _ in found} == {f"below/{name}{suffix}" for name in names} and not skipped
    assert {caption for _, caption in found} == {f"about {name}".strip() for name in names}


def test_names_that_are_not_utf8_are_taken(tmp_path):
    for name in (b"caf\xe9", b"\xff\xfe", b"a\xc3"):
        (tmp_path / os.fsdecode(name + b".png")).write_bytes(b"i")
        (tmp_path / os.fsdecode(name + b".txt")).write_text("a caption")
    found, skipped = everything(tmp_path)
    assert len(found) == 3 and not skipped
    read_folder(tmp_path, FolderConfig()).provenance()


def _dangling(file):
    file.symlink_to("nowhere")


def _itself(file):
    file.symlink_to(file.name)


def _pipe(file):
    os.mkfifo(file)


def _device(file):
    file.symlink_to("/dev/zero")


def _socket(file):
    here = os.getcwd()  # noqa: PTH109 - the name of a socket may have 107 bytes, and that of the test's folder is long
    os.chdir(file.parent)
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(file.name)
    os.chdir(here)


ODD = {
    _dangling: "link that leads nowhere",
    _itself: "link that leads nowhere",
    _pipe: "pipe, socket or device",
    _device: "pipe, socket or device",
    _socket: "pipe, socket or device",
}


@pytest.mark.parametrize("make", ODD, ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", ["3.png", "3.txt", "metadata.jsonl", "metadata.csv", "metadata.parquet", "3.other"])
def test_what_is_no_file_is_skipped_unread_and_counted_once(tmp_path, make, name):
    for index in range(6):
        write(tmp_path, f"{index}.png", f"image {index}")
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    found, skipped = everything(tmp_path)
    assert len(found) == (5 if name in ("3.png", "3.txt") else 6)
    assert skipped == ({} if name == "3.other" else {ODD[make]: 1})


@pytest.mark.parametrize("num_links", [1, 2, 5])
def test_folders_are_read_once_however_many_links_lead_there(tmp_path, num_links):
    outside = tmp_path / "outside"
    inside = tmp_path / "images"
    for index in range(4):
        write(inside, f"z/{index}.png", f"image {index}")
        write(outside, f"{index}.png", f"outside {index}")
    for link in range(num_links):
        (inside / f"loop{link}").symlink_to(".")
        (inside / f"a{link}").symlink_to("z")
        (inside / f"out{link}").symlink_to(outside)
        (outside / f"back{link}").symlink_to(inside)
    found, skipped = everything(inside)
    # Under their own names, and under the first link to what lies outside.
    names = {f"z/{index}.png" for index in range(4)} | {f"out0/{index}.png" for index in range(4)}
    assert {name for name, _ in found} == names
    assert skipped == {"folder that a link leads to again": 4 * num_links - 1}
    assert read_folder(inside, FolderConfig()).skipped.num_documents == 0


def test_all_faults_are_counted_by_kind_with_five_of_each(tmp_path):
    """As many of each kind as its number says."""
    kinds = {
        "image without a caption": lambda i: write(tmp_path, f"bare {i}.png"),
        "caption without an image": lambda i: (tmp_path / f"alone {i}.txt").write_text("a"),
        "empty caption": lambda i: write(tmp_path, f"empty {i}.png", " \n"),
        "caption that is not UTF-8": lambda i: write(tmp_path, f"{i}.png").with_suffix(".txt").write_bytes(b"\xe9"),
        "image of a kind that is not read": lambda i: write(tmp_path, f"heic {i}.HEIC", "a"),
        "link that leads nowhere": lambda i: (tmp_path / f"link {i}.jpg").symlink_to("nowhere"),
    }  # fmt: skip
    write(tmp_path, "good.png", "good")
    for count, make in enumerate(kinds.values(), start=4):
        for i in range(count):
            make(i)
    found = read_folder(tmp_path, FolderConfig())
    expected = {kind: count for count, kind in enumerate(kinds, start=4)}
    assert dict(found.skipped.by_kind) == expected
    assert found.skipped.num_documents == sum(expected.values())
    for line in found.skipped.lines():
        count = int(line.split(" x ")[0])
        assert line.count(",") == min(count - 1, 5) and line.endswith("...") == (count > 5)
    entry = found.skipped.entry()
    assert Counter(one["reason"] for one in entry["first"]) == expected == entry["by_reason"]
    json.dumps(entry).encode()
    assert len(found.skipped.in_one_line(300)) < 300


@pytest.mark.parametrize("suffix", UNSUPPORTED_IMAGE_SUFFIXES)
def test_formats_that_are_not_read_are_named_unless_the_image_is_there_in_another(tmp_path, suffix):
    write(tmp_path, "a.png", "a")
    write(tmp_path, f"a{suffix}")
    write(tmp_path, f"b{suffix.upper()}", "b")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": f"b{suffix.upper()}", "text": "b"}))
    found = read_folder(tmp_path, FolderConfig())
    assert found.skipped.entry()["first"] == [
        {"where": f"b{suffix.upper()}", "reason": "image of a kind that is not read"}
    ]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ('{"file_name": "1.png", "text": "\\ud83d"}', "caption with half a character"),
        ('{"file_name": "1.png", "text": "a \\udfff b"}', "caption with half a character"),
        (b'{"file_name": "1.png", "text": "caf\xe9"}', "caption that is not UTF-8"),
        ('{"file_name": "1.png", "text": "\\u0000"}', "empty caption"),
        ('{"file_name": "\\ud83d.png", "text": "a"}', "metadata line without its image"),
        ('{"file_name": "nowhere.png", "text": "a"}', "metadata line without its image"),
        ('{"file_name": "../1.png", "text": "a"}', "metadata line without its image"),
        ('{"file_name": "0.png", "text": "a"}', "caption that an image has already"),
        ("[" * 10_000, "metadata line that is malformed"),
    ],
)
def test_bad_lines_are_named_with_file_and_line(tmp_path, line, kind):
    lines = [json.dumps({"file_name": f"{index}.png", "text": "a"}).encode() for index in (0, 2, 3)]
    for index in range(4):
        write(tmp_path, f"{index}.png")
    lines.insert(2, line if isinstance(line, bytes) else line.encode())
    (tmp_path / "metadata.jsonl").write_bytes(b"\n".join(lines))
    found = read_folder(tmp_path, FolderConfig())
    (first,) = [one for one in found.skipped.entry()["first"] if one["reason"] == kind]
    assert first["where"].startswith("metadata.jsonl:3")
    assert len(found.captions) == 3


@pytest.mark.parametrize("train", ["train", "Training"])
@pytest.mark.parametrize("other", ["validation", "valid", "val", "dev", "test", "eval", None])
def test_folders_of_splits_are_splits(tmp_path, train, other):
    for index in range(20):
        write(tmp_path, f"{train}/class/{index}.png", "a")
    for index in range(7):
        write(tmp_path, f"{other or train}/{index}.jpg", "b")
    splits, _ = documents(tmp_path)
    if other is None or other in ("test", "eval"):
        assert len(splits["validation"]) >= 1
        assert len(splits["train"]) + len(splits["validation"]) == (27 if other is None else 20)
        assert set(splits) == {"train", "validation"} | ({"test"} if other else set())
    else:
        assert {name for name, _ in splits["validation"]} == {f"{other}/{index}.jpg" for index in range(7)}
    # A folder that is called so among others is none.
    write(tmp_path, "cars/0.png", "c")
    splits, _ = documents(tmp_path)
    assert set(splits) == {"train", "validation"} and sum(map(len, splits.values())) == 28


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 0.9])
def test_the_held_out_fraction_is_chosen_by_name(tmp_path, fraction):
    for index in range(200):
        write(tmp_path, f"{index}.png", "png")
        if index % 3 == 0:
            write(tmp_path, f"{index}.jpg")
    splits, _ = documents(tmp_path, held_out_fraction=fraction)
    held_out, train = ({name.split(".")[0] for name, _ in splits[split]} for split in ("validation", "train"))
    assert not held_out & train, "the same image in two formats is on one side"
    assert len(held_out) == 0 if fraction == 0 else abs(len(held_out) - max(1, 200 * fraction)) < 20
    shutil.copytree(tmp_path, tmp_path / "copy")
    assert documents(tmp_path / "copy", held_out_fraction=fraction)[0] == splits


@pytest.mark.parametrize("line", ["all", "first", "each", "de.utf8="])
def test_the_caption_line_is_chosen(tmp_path, line):
    write(tmp_path, "a.png", "A hare.\nde.utf8=Ein Hase.\nfr.utf8=Un lièvre.\n")
    found, _ = everything(tmp_path, caption_line=line)
    lines = ("A hare.", "de.utf8=Ein Hase.", "fr.utf8=Un lièvre.")
    expected = {"all": {"\n".join(lines)}, "first": {lines[0]}, "each": set(lines), "de.utf8=": {"Ein Hase."}}[line]
    assert {caption for _, caption in found} == expected


EDITS = {
    "a caption": lambda folder: (folder / "1.txt").write_text("another"),
    "a line": lambda folder: (folder / "metadata.jsonl").write_text('{"file_name": "6.png", "text": "another"}'),
    "one more": lambda folder: write(folder, "9.png", "one more"),
    "one less": lambda folder: (folder / "1.png").unlink(),
    "a size": lambda folder: write(folder, "1.png", size=9),
    "a time": lambda folder: os.utime(folder / "1.png", (1, 1)),
    "a name": lambda folder: (folder / "6.png").rename(folder / "7.png"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_shows_in_the_provenance_and_is_named(tmp_path, edit):
    for index in range(6):
        write(tmp_path, f"{index}.png", f"image {index}")
    write(tmp_path, "6.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "6.png", "text": "six"}')
    before = read_folder(tmp_path, FolderConfig())
    assert before.provenance() == read_folder(tmp_path, FolderConfig()).provenance()
    now = max(file.stat().st_ctime for file in tmp_path.iterdir())
    assert before.changed_since(now) == []
    time.sleep(0.02)
    EDITS[edit](tmp_path)
    after = read_folder(tmp_path, FolderConfig())
    changed = {name for name, value in after.provenance().items() if before.provenance()[name] != value}
    assert changed
    if edit == "a time":
        assert changed == {"times of change"}
        assert "times of change" not in read_folder(tmp_path, FolderConfig(compare_times=False)).provenance()
    assert edit == "one less" or len(before.changed_since(now)) >= 1


def _replaced_by_pipe(file):
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda file: file.unlink(), "removed meanwhile"),
        (lambda file: file.write_bytes(b"other"), "edited meanwhile"),
        (lambda file: os.utime(file, (1, 1)), "edited meanwhile"),
        (_replaced_by_pipe, "edited meanwhile"),
    ],
)
def test_an_image_that_is_not_the_listed_one_is_not_taken(tmp_path, spoil, reason):
    file = write(tmp_path, "a.png", "a")
    found = read_folder(tmp_path, FolderConfig(held_out_fraction=0.0))
    assert found.image("train", 0) == file.read_bytes()
    (tmp_path / "a.txt").write_text("another caption")
    spoil(file)
    with pytest.raises(UnreadableFile, match=reason):
        found.image("train", 0)
    assert found.caption("train", 0) == "a"


def test_folders_without_documents_are_refused_with_what_is_there(tmp_path):
    with pytest.raises(UserError, match="holds no images"):
        read_folder(tmp_path, FolderConfig())
    for index in range(9):
        (tmp_path / f"{index}.svg").write_text("<svg/>")
    with pytest.raises(
        UserError, match=r"9 x image of a kind that is not read: 0\.svg, 1\.svg, 2\.svg, 3\.svg, 4\.svg"
    ):
        read_folder(tmp_path, FolderConfig())
    with pytest.raises(UserError, match="no folder of images at"):
        read_folder(tmp_path / "nowhere", FolderConfig())


def test_hidden_files_and_folders_are_not_seen(tmp_path):
    write(tmp_path, "a.png", "a")
    for name in (".b.png", ".git/c.png", ".ipynb_checkpoints/a.png"):
        write(tmp_path, name, "hidden")
    assert everything(tmp_path) == ({("a.png", "a")}, {})


def test_pixels_are_read_as_they_are(tmp_path):
    encoded = encode_png(np.zeros((2, 2, 3), np.uint8))
    (tmp_path / "a.png").write_bytes(encoded)
    (tmp_path / "a.txt").write_text("a")
    assert read_folder(tmp_path, FolderConfig()).image("train", 0) == encoded


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_rows_of_metadata_are_chosen_by_their_values_and_languages(tmp_path, kind):
    rows = [
        {"file_name": f"{number}.png", "text": f"caption {number}", "score": score, "lang": lang}
        for number, (score, lang) in enumerate([(6.0, "de"), (4.5, "de"), (7.0, "en")])
    ]
    for row in rows:
        write(tmp_path, row["file_name"])
    if kind == "jsonl":
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    elif kind == "csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        (tmp_path / "metadata.csv").write_text("\n".join(lines))
    else:
        pyarrow = pytest.importorskip("pyarrow", reason="Parquet is read with pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "metadata.parquet")
    languages = RowsConfig(language_column="lang", languages=("de",))
    found = read_folder(
        tmp_path, FolderConfig(held_out_fraction=0.0), languages, CurationConfig(at_least={"score": 5.0})
    )
    assert [found.caption("train", index) for index in range(len(found.images))] == ["caption 0"]
    assert found.skipped.by_kind == {"score below 5": 1, "caption in another language": 1}
    assert not found.skipped.num_documents
