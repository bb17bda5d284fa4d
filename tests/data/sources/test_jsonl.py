"""JSON lines of captioned images: names from the file or from the folder on, and the faults of lines."""

import json

import pytest

from cm3leon_jax.errors import UserError
from tests.data.sources.published import documents, opened, shown, write_images


def write(file, *rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))


def read(path, **rows):
    return sorted(shown(each)[1:] for each in documents(opened(f"jsonl:{path}", rows=rows)))


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path, "images/0.png", "images/1.png", "lists/2.png")
    return tmp_path


@pytest.mark.parametrize(
    ("row", "rows", "expected"),
    [
        ({"image": "images/1.png", "caption": "fox"}, {}, [("fox", "<1>")]),
        ({"file_name": "2.png", "text": "fox"}, {}, [("fox", "<2>")]),
        ({"image_path": "images\\1.png", "TEXT": "fox"}, {}, [("fox", "<1>")]),
        ({"image": {"path": "images/1.png"}, "captions": ["fox", "hare"]}, {}, [("fox", "<1>"), ("hare", "<1>")]),
        ({"image": ["images/1.png"], "text": "fox"}, {}, [("fox", "<1>")]),
        # JourneyDB.
        (
            {"img_path": "images/1.png", "prompt": "p", "Task2": {"Caption": "fox"}},
            {"caption_column": "Task2.Caption"},
            [("fox", "<1>")],
        ),
        ({"a": {"b": "images/1.png"}, "text": "fox"}, {"image_column": "a.b"}, [("fox", "<1>")]),
        (
            {"image": "images/1.png", "text": "fox", "lang": "de"},
            {"language_column": "lang", "languages": ("de",)},
            [("fox", "<1>")],
        ),
    ],
)  # fmt: skip
def test_rows(folder, row, rows, expected):
    write(folder / "lists/all.jsonl", row)
    assert read(folder, **rows) == expected


def test_absolute_names_and_files_named_after_splits(folder):
    write(folder / "lists/train.jsonl", {"image": str(folder / "images/0.png"), "text": "zero"})
    write(folder / "lists/val.jsonl", {"image": "images/1.png", "text": "one"})
    task = opened(f"jsonl:{folder}")
    assert [[shown(each)[1:] for each in documents(task, split)] for split in ("train", "validation")] == [
        [("zero", "<0>")], [("one", "<1>")],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("no json", "malformed JSON"),
        ("[1]", "malformed JSON"),
        ({"text": "fox"}, "row without an image (see config.corpus.rows.image_column)"),
        ({"image": "images/0.png"}, "row without a caption (see config.corpus.rows.caption_column)"),
        ({"image": "images/0.png", "text": None}, "row without a caption"),
        ({"image": "images/0.png", "text": ""}, "empty caption"),
        ({"image": "images/0.png", "text": 7}, "caption that is no text"),
        ({"image": "images/0.png", "text": "\ud800"}, "caption with half a character"),
        ({"image": "nowhere.png", "text": "fox"}, "missing image"),
        ({"image": "x\0.png", "text": "fox"}, "missing image"),
        ({"image": None, "text": "fox"}, "missing image"),
        ({"image": 7, "text": "fox"}, "missing image"),
        ({"image": "images", "text": "fox"}, "missing image"),
        ({"image": ["images/0.png", "images/1.png"], "text": "fox"}, "several images of one row"),
        ({"image": "http://example.org/0.png", "text": "fox"}, "image that is an address, not a file"),
    ],
)
@pytest.mark.parametrize("position", [0, 1])
def test_a_fault_is_counted_and_its_neighbors_are_read(folder, row, kind, position):
    lines = [{"image": "images/0.png", "text": "zero"}, {"image": "images/1.png", "text": "one"}]
    lines.insert(position, row)
    write(folder / "all.jsonl", *lines)
    task = opened(f"jsonl:{folder}/all.jsonl")
    assert sorted(shown(each)[1:] for each in documents(task)) == [("one", "<1>"), ("zero", "<0>")]
    assert task.skipped().entry()["first"] == [{"where": f"all.jsonl:{position + 1}", "reason": kind}]


def test_other_forms_are_one_line(folder):
    with pytest.raises(UserError, match=r"holds no JSON lines of captioned images: there is no .jsonl file"):
        opened(f"jsonl:{folder}")
    write(folder / "all.jsonl", {"a": 1})
    with pytest.raises(UserError, match=r"has no examples \(1 x row without an image \(see config.corpus.rows.image"):
        opened(f"jsonl:{folder}")
