"""Questions in the published forms of four sets, and their faults."""

import pyarrow as pa
import pytest

from cm3leon_jax.errors import UserError
from tests.data.sources.published import IMAGE, cell, documents, opened, shown, write_images, write_json, write_table


def answers(*texts: str) -> list[dict]:
    return [{"answer": text, "answer_confidence": "yes", "answer_id": n + 1} for n, text in enumerate(texts)]


def write_vqa2(folder, subset: str, first: int, prefix: str = "v2_"):
    """Three questions about two images; the last question has no answer."""
    write_images(folder, *(f"{subset}/COCO_{subset}_{number:012d}.jpg" for number in (first, first + 1)))
    questions = [
        {"image_id": first + number // 2, "question": f"How many {number}?", "question_id": 10 * first + number}
        for number in range(4)
    ]
    questions[3]["image_id"] = 999
    annotations = [
        {
            "question_id": 10 * first + number,
            "image_id": first + number // 2,
            "answers": answers("two", "2", "2", ""),
            "multiple_choice_answer": "2" if number else "",
            "question_type": "how many",
            "answer_type": "number",
        }
        for number in (0, 1, 3)
    ]
    info = {"data_type": "mscoco", "data_subtype": subset, "info": {}, "license": {}}
    write_json(folder / f"{prefix}OpenEnded_mscoco_{subset}_questions.json", {**info, "questions": questions})
    write_json(folder / f"{prefix}mscoco_{subset}_annotations.json", {**info, "annotations": annotations})


@pytest.mark.parametrize("prefix", ["v2_", ""])
def test_vqa2_and_ok_vqa(tmp_path, prefix):
    write_vqa2(tmp_path, "train2014", 7, prefix)
    write_vqa2(tmp_path, "val2014", 27, prefix)
    # The answers to a test are not published.
    write_json(
        tmp_path / f"{prefix}OpenEnded_mscoco_test2015_questions.json",
        {"data_subtype": "test2015", "questions": [{"image_id": 1, "question": "What?", "question_id": 1}]},
    )
    task = opened(f"vqa:{tmp_path}")
    for split in ("train", "validation"):
        assert sorted(shown(each) for each in documents(task, split)) == [
            ("question", "How many 0?", "2", "<0>"),
            ("question", "How many 1?", "2", "<0>"),
        ]
    assert task.skipped().by_kind == {"question without an answer": 2, "missing image": 2}


def test_vizwiz(tmp_path):
    write_images(tmp_path, "train/VizWiz_train_00000000.jpg", "val/VizWiz_val_00000000.jpg")
    row = {
        "question": "What is this?",
        "answers": answers("a can", "can", "can"),
        "answer_type": "other",
        "answerable": 1,
    }
    train = [{"image": "VizWiz_train_00000000.jpg", **row}, {"image": "VizWiz_train_00000001.jpg", **row}]
    train += [{"image": "VizWiz_train_00000000.jpg", **row, "question": " "}, {"image": 3, **row}]
    write_json(tmp_path / "Annotations/train.json", train)
    write_json(tmp_path / "Annotations/val.json", [{"image": "VizWiz_val_00000000.jpg", **row}])
    write_json(tmp_path / "Annotations/test.json", [{"image": "VizWiz_test_00000000.jpg", "question": "What?"}])
    task = opened(f"vqa:{tmp_path}")
    assert [shown(each) for each in documents(task)] == [("question", "What is this?", "can", "<0>")]
    assert [shown(each) for each in documents(task, "validation")] == [("question", "What is this?", "can", "<1>")]
    assert task.skipped().by_kind == {
        "missing image": 1,
        "empty field: question": 1,
        "no image of the published form": 1,
    }


def problem(**other) -> dict:
    found = {
        **{"question": "Which is a fox?", "choices": ["the first", "the second"], "answer": 1, "hint": "Look."},
        **{"image": "image.png", "task": "closed choice", "grade": "grade2", "subject": "natural science"},
        **{"lecture": "", "solution": "Foxes are red.", "split": "train"},
    }
    return found | other


def test_scienceqa(tmp_path):
    write_images(tmp_path, *(f"images/train/{number}/image.png" for number in (1, 2)), "images/val/4/image.png")
    write_json(
        tmp_path / "problems.json",
        {
            "1": problem(),
            "2": problem(hint="", solution=""),
            "3": problem(image=None),
            "4": problem(split="val", solution=""),
            "5": problem(split="test"),
            "6": problem(answer=2),
        },
    )
    task = opened(f"vqa:{tmp_path}")
    options = "(A) the first (B) the second"
    assert sorted(shown(each) for each in documents(task)) == [
        ("questions_of_text", f"Which is a fox?\nContext: Look.\nOptions: {options}", "the second"),
        ("science_explanation", "Which is a fox?", "Look.", options, "Foxes are red.", "the second", "<0>"),
        ("science_question", "Which is a fox?", "Look.", options, "the second", "<0>"),
        ("science_question", "Which is a fox?", "N/A", options, "the second", "<1>"),
    ]
    assert [shown(each)[-1] for each in documents(task, "validation")] == ["<2>"]
    assert task.skipped().by_kind == {"missing image": 2, "answer that is none of the choices": 1}


def test_scienceqa_in_parquet_files(tmp_path):
    texts = dict.fromkeys(("question", "hint", "task", "grade", "subject", "lecture", "solution"), pa.string())
    schema = texts | {"image": IMAGE, "choices": pa.list_(pa.string()), "answer": pa.int8()}
    rows = [problem(image=cell(3)), problem(image=None, hint=""), problem(image=cell(4), solution="", answer=5)]
    rows.append(problem(image=cell(5), solution=""))
    for row in rows:
        del row["split"]
    write_table(tmp_path / "data/train-00000-of-00001.parquet", rows, schema)
    write_table(tmp_path / "data/validation-00000-of-00001.parquet", rows[1:2], schema)
    task = opened(f"vqa:{tmp_path}")
    options = "(A) the first (B) the second"
    assert [shown(each) for each in documents(task)] == [
        ("science_question", "Which is a fox?", "Look.", options, "the second", "<3>"),
        ("science_explanation", "Which is a fox?", "Look.", options, "Foxes are red.", "the second", "<3>"),
        ("questions_of_text", f"Which is a fox?\nOptions: {options}", "the second"),
        ("science_question", "Which is a fox?", "Look.", options, "the second", "<5>"),
    ]
    assert task.skipped().by_kind == {"answer that is none of the choices": 1}
    assert len(documents(task, "validation")) == 1


def test_another_form_is_one_line(tmp_path):
    for content in ({"a": 1}, [], [1], {}, {"annotations": []}):
        write_json(tmp_path / "a.json", content)
        with pytest.raises(UserError, match="holds no questions of VQAv2, OK-VQA, VizWiz or ScienceQA"):
            opened(f"vqa:{tmp_path}")
