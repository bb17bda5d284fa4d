"""Localized Narratives as published, and their faults."""

import json

import pytest

from cm3leon_jax.errors import UserError
from tests.data.sources.published import documents, opened, shown, write_images


def narrative(dataset: str, number: str, caption: str) -> dict:
    timed = [{"utterance": caption, "start_time": 0.0, "end_time": 1.0}]
    traces = [[{"x": 0.2, "y": -0.1, "t": 0.022}, {"x": 1.3, "y": 0.5, "t": 0.9}]]
    found = {"dataset_id": dataset, "image_id": number, "annotator_id": 93, "caption": caption}
    return found | {"timed_caption": timed, "traces": traces, "voice_recording": "coco_train/1.ogg"}


def test_narratives_of_four_sets(tmp_path):
    names = ("train2017/000000000107.jpg", "images/val2017/000000000108.jpg", "train/0a1b.jpg", "images/77.jpg")
    write_images(tmp_path, *names)
    lines = [
        narrative("mscoco_train2017", "107", "In this image there is a fox."),
        narrative("mscoco_val2017", "108", "A hat."),
        narrative("open_images_train", "0a1b", "Two foxes."),
        narrative("Flickr30k_train", "77", "A dog."),
        narrative("mscoco_train2017", "109", "Gone."),
        narrative("mscoco_train2017", "107", " "),
        {"caption": "no image"},
    ]
    text = "\n".join(map(json.dumps, lines)) + "\n{not JSON\n\n"
    (tmp_path / "coco_train_localized_narratives-00000-of-00004.jsonl").write_text(text)
    task = opened(f"localized_narratives:{tmp_path}")
    assert sorted(shown(each) for each in documents(task)) == [
        ("narrative", "A dog.", "<3>"),
        ("narrative", "In this image there is a fox.", "<0>"),
        ("narrative", "Two foxes.", "<2>"),
    ]
    assert [shown(each) for each in documents(task, "validation")] == [("narrative", "A hat.", "<1>")]
    assert task.skipped().by_kind == {
        "missing image": 1,
        "empty field: caption": 1,
        "no dataset_id of the published form": 2,
    }
    assert "coco_train_localized_narratives-00000-of-00004.jsonl:8" in task.skipped().in_one_line()


def test_another_form_is_one_line(tmp_path):
    (tmp_path / "other.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"holds no JSON lines of Localized Narratives: there is no \*narratives\*.jso"):
        opened(f"localized_narratives:{tmp_path}")
    with pytest.raises(UserError, match=r"has no examples \(1 x no dataset_id of the published form: other.jsonl:1\)"):
        opened(f"localized_narratives:{tmp_path}/other.jsonl")
