"""Evaluation sets in the form in which each data set is published, and in broken ones."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.sets.base import EvaluationSet, Item, sha256
from cm3leon_jax.evaluation.sets.coco import CocoCaptions, Karpathy
from cm3leon_jax.evaluation.sets.configured import CommonSetOptions, ConfiguredSet
from cm3leon_jax.evaluation.sets.geneval import GenEval
from cm3leon_jax.evaluation.sets.magicbrush import MagicBrush
from cm3leon_jax.evaluation.sets.prompts_file import PromptsFile
from cm3leon_jax.evaluation.sets.vqa import VqaV2
from cm3leon_jax.images import encode_png

COCO = {
    "info": {"year": 2014},
    "images": [
        {"id": 9, "file_name": "COCO_val2014_000000000009.jpg", "width": 640, "height": 480},
        {"id": 3, "file_name": "COCO_val2014_000000000003.jpg", "width": 640, "height": 480},
    ],
    "annotations": [
        {"id": 51, "image_id": 3, "caption": "A dog runs. "},
        {"id": 52, "image_id": 9, "caption": "Two cats"},
        {"id": 53, "image_id": 3, "caption": "The dog, running"},
    ],
}
KARPATHY = {
    "dataset": "coco",
    "images": [
        {
            "split": split,
            "filepath": "val2014",
            "filename": f"{number}.jpg",
            "cocoid": number,
            "sentences": [{"raw": f"caption {number}", "sentid": number * 10, "imgid": 0, "tokens": ["caption"]}],
        }
        for number, split in enumerate(("test", "train", "test", "restval"))
    ],
}
QUESTIONS = {"questions": [{"question_id": 420, "image_id": 42, "question": "What is it?"}]}
ANSWERS = {
    "annotations": [
        {
            "question_id": 420,
            "image_id": 42,
            "multiple_choice_answer": "net",
            "answers": [{"answer": text, "answer_confidence": "yes", "answer_id": 1} for text in ("net", "a net")],
        }
    ]
}
TURN = {"input": "7-input.png", "mask": "7-mask1.png", "output": "7-output1.png", "instruction": "add a hat"}
GENEVAL = {"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [], "prompt": "two clocks"}


def write(file: Path, content: Any) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(file)


def test_coco_captions_are_prompts_by_annotation(tmp_path: Path) -> None:
    items = CocoCaptions(write(tmp_path / "a.json", COCO), images=str(tmp_path))()
    assert [item.id for item in items] == ["52", "51", "53"]
    assert items[1].request == {"prompt": "A dog runs."}
    assert items[1].references == ("A dog runs. ", "The dog, running")
    assert items[1].image == tmp_path / "COCO_val2014_000000000003.jpg"


def test_coco_captions_are_references_by_image(tmp_path: Path) -> None:
    items = CocoCaptions(write(tmp_path / "a.json", COCO), images=str(tmp_path), task="caption")()
    assert [(item.id, len(item.references)) for item in items] == [("9", 1), ("3", 2)]
    assert items[0].request == {"task": "caption", "image": str(tmp_path / "COCO_val2014_000000000009.jpg")}


def test_karpathys_split_is_chosen(tmp_path: Path) -> None:
    file = write(tmp_path / "dataset_coco.json", KARPATHY)
    items = Karpathy(file, images=str(tmp_path))()
    assert [item.id for item in items] == ["0", "2"]
    assert items[1].request["image"] == str(tmp_path / "val2014" / "2.jpg")
    assert items[1].references == ("caption 2",)
    assert len(Karpathy(file, images="", split="restval")()) == 1


def test_vqa_questions_have_their_answers(tmp_path: Path) -> None:
    asked = VqaV2(write(tmp_path / "q.json", QUESTIONS), write(tmp_path / "a.json", ANSWERS), images="val2014")
    assert asked() == [
        Item(
            "420",
            {"task": "vqa", "prompt": "What is it?", "image": "val2014/COCO_val2014_000000000042.jpg"},
            ("net", "a net"),
        )
    ]


def test_a_question_without_answers_is_refused(tmp_path: Path) -> None:
    asked = VqaV2(write(tmp_path / "q.json", QUESTIONS), write(tmp_path / "a.json", {"annotations": []}), images="")
    with pytest.raises(UserError, match="has no answers to the question 420"):
        asked()


def test_magicbrush_as_files_and_as_parquet_agree(tmp_path: Path) -> None:
    write(tmp_path / "json" / "edit_turns.json", [TURN])
    captions = write(tmp_path / "global.json", {"7": {"7-output1.png": "a man in a hat"}})
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, format="PNG")
    picture = {"bytes": buffer.getvalue(), "path": "x.png"}
    row = {"img_id": "7", "turn_index": 1, "source_img": picture, "mask_img": picture}
    (tmp_path / "hub").mkdir()
    table = pa.Table.from_pylist([{**row, "instruction": "add a hat", "target_img": picture}])
    pq.write_table(table, tmp_path / "hub" / "dev-00000-of-00001.parquet")
    (files,), (hub,) = (MagicBrush(str(tmp_path / name), captions=captions)() for name in ("json", "hub"))
    assert files.id == hub.id == "7-output1"
    assert files.references == hub.references == ("a man in a hat",)
    assert files.request["prompt"] == hub.request["prompt"] == "add a hat"
    assert files.request["image"] == str(tmp_path / "json" / "images" / "7" / "7-input.png")
    assert (files.image, files.mask) == tuple(
        tmp_path / "json" / "images" / "7" / name for name in ("7-output1.png", "7-mask1.png")
    )
    assert hub.image == hub.mask == hub.request["image"] == buffer.getvalue()


def test_magicbrush_of_the_hub_is_not_measured_on_what_is_trained_on(tmp_path: Path) -> None:
    image = {"bytes": encode_png(np.zeros((4, 4, 3), np.uint8)), "path": "x.png"}
    parts = dict.fromkeys(("source_img", "mask_img", "target_img"), image)
    for split in ("train", "dev"):
        table = pa.Table.from_pylist([{"img_id": split, "turn_index": 1, "instruction": "add a hat", **parts}])
        pq.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    assert [item.id for item in MagicBrush(str(tmp_path))()] == ["dev-output1"]
    assert [item.id for item in MagicBrush(str(tmp_path), split="validation")()] == ["dev-output1"]
    assert [item.id for item in MagicBrush(str(tmp_path), split="train")()] == ["train-output1"]
    assert [Path(file).name for file in MagicBrush(str(tmp_path)).files] == ["dev-00000-of-00001.parquet"]
    with pytest.raises(UserError, match="no parquet files of the split test, but of train, validation: set the option"):
        MagicBrush(str(tmp_path), split="test")()
    (tmp_path / "dev-00000-of-00001.parquet").unlink()
    with pytest.raises(UserError, match="no parquet files of the split to evaluate, but of train"):
        MagicBrush(str(tmp_path))()


@pytest.mark.parametrize(
    ("captions", "where"),
    [
        ([], "global.json has no field 7"),
        ({"7": ["a hat"]}, "global.json has no field 7"),
        ({"7": {"7-output1.png": None}}, "7 of .*global.json has no field 7-output1.png"),
        ({"7": {"7-output1.png": ["a", "b"]}}, "7 of .*global.json has no field 7-output1.png"),
    ],
)
def test_captions_of_another_form_are_one_line(tmp_path: Path, captions: Any, where: str) -> None:
    write(tmp_path / "edit_turns.json", [TURN])
    file = write(tmp_path / "global.json", captions)
    with pytest.raises(UserError, match=f"{where} of the published form"):
        MagicBrush(str(tmp_path), captions=file)()


@pytest.mark.parametrize("captions", [{}, {"7": {}}, {"8": {"8-output1.png": "a man"}}])
def test_an_edit_may_have_no_caption(tmp_path: Path, captions: Any) -> None:
    write(tmp_path / "edit_turns.json", [TURN])
    assert MagicBrush(str(tmp_path), captions=write(tmp_path / "global.json", captions))()[0].references == ()


@pytest.mark.parametrize("folder", [3, None, ["val2014"]])
def test_a_folder_of_another_form_is_one_line(tmp_path: Path, folder: Any) -> None:
    image = {**KARPATHY["images"][0], "filepath": folder}  # type: ignore[dict-item]
    with pytest.raises(UserError, match=r"image 0 of .*has no field filepath of the published form"):
        Karpathy(write(tmp_path / "dataset_coco.json", {"images": [image]}), images="")()


def test_geneval_numbers_prompts_as_the_benchmark_does(tmp_path: Path) -> None:
    items = GenEval(write(tmp_path / "evaluation_metadata.jsonl", json.dumps(GENEVAL) + "\n"))()
    assert items == [Item("00000", {"prompt": "two clocks"}, objects=GENEVAL)]


def test_json_lines_say_what_is_true_beside_what_is_asked(tmp_path: Path) -> None:
    lines = [
        {"prompt": "an apple", "references": ["a red apple"], "target": "1.png"},
        {"id": "e", "task": "edit", "prompt": "greener", "image": "a/2.png", "target": "3.png", "mask": "m.png"},
        {"id": 5, "task": "continue", "segments": ["like", {"image": "4.png"}]},
        {"prompt": "a cat", "objects": [{"name": "cat", "box": [0, 0, 4, 4]}]},
    ]
    first, second, third, fourth = PromptsFile(write(tmp_path / "set.jsonl", "\n".join(map(json.dumps, lines))))()
    assert (first.id, first.request, first.image) == ("1", {"prompt": "an apple"}, tmp_path / "1.png")
    assert second.request == {"task": "edit", "prompt": "greener", "image": str(tmp_path / "a/2.png")}
    assert second.mask == tmp_path / "m.png"
    assert third.request["segments"] == ["like", {"image": str(tmp_path / "4.png")}]
    assert (
        fourth.request == {"prompt": "a cat", "objects": [{"name": "cat", "box": [0, 0, 4, 4]}]} and not fourth.objects
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"set.jsonl, line 1: not JSON"),
        ("[]", r"set.jsonl, line 1: not an object"),
        ('{"references": "a"}', r"line 1: references is 'a': give a list of texts"),
        ('{"references": [1]}', r"line 1: references is \[1\]: give a list of texts"),
        ('{"mask": 3}', r"line 1: mask is 3: give the name of a file"),
        ('{"objects": []}', r"line 1: objects is \[\]: give an object"),
    ],
)
def test_broken_json_lines_are_one_line(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PromptsFile(write(tmp_path / "set.jsonl", content))()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"images": {}}', '{"images": [3]}', '{"images": [{"id": "a"}]}'])
@pytest.mark.parametrize("kind", [CocoCaptions, Karpathy, VqaV2, MagicBrush])
def test_files_of_another_form_are_one_line(tmp_path: Path, kind: Any, content: str) -> None:
    file = write(tmp_path / "edit_turns.json", content)
    made: EvaluationSet = {
        CocoCaptions: lambda: CocoCaptions(file, ""),
        Karpathy: lambda: Karpathy(file, ""),
        VqaV2: lambda: VqaV2(file, file, ""),
        MagicBrush: lambda: MagicBrush(str(tmp_path)),
    }[kind]()
    with pytest.raises(UserError, match=r"of an evaluation set|of the published form|evaluation set has no items"):
        _ = ConfiguredSet("mine", made, CommonSetOptions(1)).items


@pytest.mark.parametrize("content", [[TURN], {"images": KARPATHY["images"]}, GENEVAL])
def test_a_byte_order_mark_is_no_content(tmp_path: Path, content: Any) -> None:
    (tmp_path / "edit_turns.json").write_text(json.dumps(content), encoding="utf-8-sig")
    file = str(tmp_path / "edit_turns.json")
    reader = MagicBrush(str(tmp_path)) if isinstance(content, list) else Karpathy(file, "")
    reader = GenEval(file) if content == GENEVAL else reader
    assert reader()


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read \(No such file or directory\)"):
        GenEval(str(tmp_path / "none.jsonl"))()


def test_the_hash_of_files_is_that_of_their_bytes(tmp_path: Path) -> None:
    first, second = write(tmp_path / "1", "a"), write(tmp_path / "2", "b")
    assert sha256([first, second]) == "fb8e20fc2e4c3f248c60c39bd652f3c1347298bb977b8b4d5903b85055620603"
    assert sha256([second, first]) != sha256([first, second])
    assert len({sha256([first], ids) for ids in ([], ["7"], ["7", "8"], ["8", "7"])}) == 4
