"""MagicBrush as published: sessions of turns."""

import pyarrow as pa
import pytest

from cm3leon_jax.data.corpus.document_tokenizer import DecodedDocument, DocumentTokenizer
from cm3leon_jax.errors import UserError
from tests.data.sources.published import (
    IMAGE,
    cell,
    documents,
    faults,
    opened,
    shown,
    write_images,
    write_json,
    write_table,
)

SCHEMA = {
    **{"img_id": pa.string(), "turn_index": pa.int32(), "source_img": IMAGE, "mask_img": IMAGE},
    **{"instruction": pa.string(), "target_img": IMAGE},
}


def turn(session: str, number: int, source: int, target: int, instruction: str = "wider") -> dict:
    images = {"source_img": cell(source), "mask_img": cell(0), "target_img": cell(target)}
    return {"img_id": session, "turn_index": number, "instruction": instruction, **images}


def test_turns_of_a_session_are_one_document(tmp_path):
    train = [
        turn("1", 1, 10, 11),
        turn("1", 2, 11, 12, "bolder"),
        turn("1", 3, 12, 13, "add a hat"),
        turn("2", 1, 20, 21),
    ]
    write_table(tmp_path / "data/train-00000-of-00001.parquet", train, SCHEMA)
    write_table(tmp_path / "data/dev-00000-of-00001.parquet", [turn("3", 1, 30, 31)], SCHEMA)
    task = opened(f"magicbrush:{tmp_path}")
    assert [shown(each) for each in documents(task)] == [
        ("edits", "<10>", "wider", "<11>", "bolder", "<12>", "add a hat", "<13>"),
        ("edit", "<20>", "wider", "<21>"),
    ]
    assert [shown(each) for each in documents(task, "validation")] == [("edit", "<30>", "wider", "<31>")]


def test_a_missing_turn_begins_another_session(tmp_path):
    rows = [
        turn("1", 1, 10, 11),
        turn("1", 2, 11, 12, ""),
        turn("1", 3, 12, 13),
        turn("1", 4, 13, 14),
        turn("2", 2, 5, 6),
    ]
    write_table(tmp_path / "a.parquet", rows, SCHEMA)
    task = opened(f"magicbrush:{tmp_path}")
    assert [shown(each) for each in documents(task)] == [
        ("edit", "<10>", "wider", "<11>"),
        ("edits", "<12>", "wider", "<13>", "wider", "<14>"),
        ("edit", "<5>", "wider", "<6>"),
    ]
    assert task.skipped().by_kind == {"empty field: instruction": 1}


def test_a_turn_that_starts_from_another_image_is_no_turn_of_the_session(tmp_path):
    write_table(tmp_path / "a.parquet", [turn("1", 1, 10, 11), turn("1", 2, 10, 12), turn("2", 1, 20, 21)], SCHEMA)
    task = opened(f"magicbrush:{tmp_path}")
    assert [shown(each)[1] for each in documents(task)] == ["<20>"]
    assert faults(task) == {"a.parquet:0": "turn that does not begin with the image of the turn before"}


def test_the_older_columns(tmp_path):
    schema = {name.replace("source", "input").replace("target", "output"): kind for name, kind in SCHEMA.items()}
    row = {name.replace("source", "input").replace("target", "output"): v for name, v in turn("1", 1, 1, 2).items()}
    write_table(tmp_path / "a.parquet", [row], schema)
    assert [shown(each) for each in documents(opened(f"magicbrush:{tmp_path}"))] == [("edit", "<1>", "wider", "<2>")]


def test_the_folder_of_files(tmp_path):
    names = [f"train/images/7/7-{name}.png" for name in ("input", "output1", "output2", "output3")]
    write_images(tmp_path, *names)
    write_json(
        tmp_path / "train/edit_turns.json",
        [
            {"input": "7-input.png", "mask": "7-mask1.png", "output": "7-output1.png", "instruction": "wider"},
            {"input": "7-output1.png", "mask": "7-mask2.png", "output": "7-output2.png", "instruction": "bolder"},
            {"input": "7-output1.png", "mask": "7-mask3.png", "output": "7-output3.png", "instruction": "thinner"},
            {"input": "8-input.png", "mask": "8-mask1.png", "output": "8-output1.png", "instruction": "wider"},
        ],
    )
    task = opened(f"magicbrush:{tmp_path}")
    assert [shown(each) for each in documents(task)] == [
        ("edits", "<0>", "wider", "<1>", "bolder", "<2>"),
        ("edit", "<1>", "thinner", "<3>"),
    ]
    assert task.skipped().by_kind == {"missing image": 1}


def test_another_form_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"holds no parquet files, or edit_turns.json, of MagicBrush"):
        opened(f"magicbrush:{tmp_path}")
    write_json(tmp_path / "edit_turns.json", {})
    with pytest.raises(UserError, match=r"edit_turns.json is no list"):
        opened(f"magicbrush:{tmp_path}")


def test_what_is_read_can_be_tokenized(tmp_path, vocabulary, image_tokenizer):
    rows = [turn("1", 1, 10, 11), turn("1", 2, 11, 12), turn("2", 1, 20, 21)]
    write_table(tmp_path / "a.parquet", rows, SCHEMA)
    tokenizer = DocumentTokenizer(vocabulary, image_tokenizer, 4)
    for document in documents(opened(f"magicbrush:{tmp_path}")):
        decoded = tokenizer.decode(document)
        assert isinstance(decoded, DecodedDocument) and decoded.template == document.template
        num_images = 3 if document.template == "edits" else 2
        assert len(decoded.images) == num_images and len(decoded.segments) == 2 * num_images - 1
