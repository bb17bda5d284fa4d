"""Conversations as published, and their faults."""

import pyarrow as pa
import pytest

from cm3leon_jax.errors import UserError
from tests.data.sources.published import IMAGE, cell, documents, opened, shown, write_images, write_json, write_table

CONVERSATIONS = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))


def said(*texts: str) -> list[dict]:
    return [{"from": "gpt" if number % 2 else "human", "value": text} for number, text in enumerate(texts)]


def test_llava(tmp_path):
    write_images(tmp_path, "coco/train2017/000000000001.jpg", "train2017/000000000002.jpg")
    entries = [
        {
            "id": "1",
            "image": "coco/train2017/000000000001.jpg",
            "conversations": said("<image>\nWhat is it?", "A fox.", "What color?", "Red."),
        },
        {"id": "2", "image": "000000000002.jpg", "conversations": said("Describe it.\n<image>", "A hat.")},
        {"id": "3", "conversations": said("How are you?", "Fine.")},
    ]
    write_json(tmp_path / "llava_instruct_150k.json", entries)
    found = [shown(each) for each in documents(opened(f"llava:{tmp_path}"))]
    assert sorted(found) == [
        ("questions", "<0>", "What is it?", "A fox.", "What color?", "Red."),
        ("questions", "<1>", "Describe it.", "A hat."),
        ("questions_of_text", "How are you?", "Fine."),
    ]
    of_file = opened(f"llava:{tmp_path}/llava_instruct_150k.json")
    assert [shown(each) for each in documents(of_file)] == found


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"image": "gone.jpg", "conversations": said("<image>\nWhat?", "A fox.")}, "missing image"),
        ({"conversations": said("<image>\nWhat?", "A fox.")}, "<image> without an image"),
        ({"image": "a.jpg", "conversations": said("<image> <image> What?", "A fox.")}, "<image> without an image"),
        ({"image": "a.jpg", "conversations": said("<image>", "A fox.")}, "empty field: question"),
        ({"image": "a.jpg", "conversations": said("<image>\nWhat?", " ")}, "empty field: answer"),
        ({"image": "a.jpg", "conversations": said("What?", "This: <image>")}, "<image> in an answer"),
        ({"image": "a.jpg", "conversations": said("What?")}, "conversation that does not alternate"),
        ({"image": "a.jpg", "conversations": []}, "conversation that does not alternate"),
        ({"image": "a.jpg", "conversations": said("What?", "A")[::-1]}, "conversation that does not alternate"),
        ({"image": "a.jpg", "conversations": said("What?", "A")[:1] * 2}, "conversation that does not alternate"),
        ({"image": "a.jpg", "conversations": said("What?", "\ud800")}, "half a character in the field answer"),
        ({"image": 3, "conversations": said("What?", "A")}, "no image of the published form"),
        ({"image": "a.jpg", "conversations": [{"from": "human"}] * 2}, "no value of the published form"),
        ({"image": "a.jpg"}, "no conversations of the published form"),
        ("text", "no conversations of the published form"),
        ({"image": "a\0.jpg", "conversations": said("What?", "A")}, "missing image"),
    ],
)
def test_a_damaged_entry_is_skipped_and_shifts_nothing(tmp_path, entry, reason):
    write_images(tmp_path, "a.jpg", "b.jpg")
    others = [{"image": name, "conversations": said("<image>\nWhat?", name)} for name in ("a.jpg", "b.jpg")]
    write_json(tmp_path / "entries.json", [others[0], entry, others[1]])
    task = opened(f"llava:{tmp_path}")
    assert sorted(shown(each)[1::2] for each in documents(task)) == [("<0>", "a.jpg"), ("<1>", "b.jpg")]
    assert task.skipped().lines() == [f"1 x {reason}: entries.json:1"]


def test_several_images(tmp_path):
    write_images(tmp_path, "a.jpg", "b.jpg")
    entry = {"image": ["a.jpg", "b.jpg"], "conversations": said("<image><image>\nWhich is red?", "The first.")}
    more = {**entry, "conversations": said("<image><image>\nWhich?", "The first.", "Why?", "So.")}
    write_json(tmp_path / "entries.json", [entry, more])
    task = opened(f"llava:{tmp_path}")
    assert [shown(each) for each in documents(task)] == [
        ("question_of_images", "Which is red?", "The first.", "<0>", "<1>")
    ]
    assert task.skipped().by_kind == {"several questions about several images": 1}


def test_conversations_about_an_image_are_on_one_side(tmp_path):
    write_images(tmp_path, *(f"{number}.jpg" for number in range(10)))
    entries = [
        {"id": str(n), "image": f"{n % 10}.jpg", "conversations": said("<image>\nWhat?", "It.")} for n in range(40)
    ]
    write_json(tmp_path / "entries.json", entries)
    task = opened(f"llava:{tmp_path}", held_out_fraction=0.3)
    train, held_out = ({shown(each)[1] for each in documents(task, split)} for split in ("train", "validation"))
    assert train and held_out and not train & held_out


def test_onevision(tmp_path):
    schema = {"id": pa.string(), "image": IMAGE, "conversations": CONVERSATIONS, "data_source": pa.string()}
    rows = [
        {"id": "1", "image": cell(5), "conversations": said("<image>\nWhat is it?", "A fox.")},
        {"id": "2", "image": None, "conversations": said("<image>\nWhat is it?", "A fox.")},
        {"id": "3", "image": None, "conversations": said("1 + 1?", "2")},
        {"id": "4", "image": cell(6), "conversations": None},
    ]
    write_table(tmp_path / "ai2d/train-00000-of-00001.parquet", rows, schema)
    task = opened(f"llava_onevision:{tmp_path}")
    assert [shown(each) for each in documents(task)] == [
        ("questions", "<5>", "What is it?", "A fox."),
        ("questions_of_text", "1 + 1?", "2"),
    ]
    assert task.skipped().by_kind == {"<image> without an image": 1, "no conversations of the published form": 1}


def test_the_cauldron(tmp_path):
    text = pa.struct([("user", pa.string()), ("assistant", pa.string()), ("source", pa.string())])
    schema = {"images": pa.list_(IMAGE), "texts": pa.list_(text)}
    first, second = ({"user": f"{n}?", "assistant": f"{n}!", "source": "AI2D"} for n in (1, 2))
    rows = [
        {"images": [cell(3)], "texts": [first, second]},
        {"images": [cell(4), cell(5)], "texts": [first]},
        {"images": [cell(4), cell(5)], "texts": [first, second]},
        {"images": [], "texts": [first]},
        {"images": [cell(6)], "texts": []},
        {"images": [None], "texts": [first]},
        {"images": [cell(7)], "texts": [{**first, "assistant": " "}]},
        {"images": [cell(8)], "texts": [second]},
    ]
    write_table(tmp_path / "ai2d/train-00000-of-00001.parquet", rows, schema)
    task = opened(f"cauldron:{tmp_path}")
    assert [shown(each) for each in documents(task)] == [
        ("questions", "<3>", "1?", "1!", "2?", "2!"),
        ("question_of_images", "1?", "1!", "<4>", "<5>"),
        ("questions_of_text", "1?", "1!"),
        ("questions", "<8>", "2?", "2!"),
    ]
    assert task.skipped().by_kind == {
        "several questions about several images": 1,
        "no turns": 1,
        "missing image": 1,
        "empty field: answer": 1,
    }


def test_other_forms_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"holds no JSON of LLaVA-Instruct or ShareGPT4V: there is no .json file"):
        opened(f"llava:{tmp_path}")
    write_json(tmp_path / "a.json", {"questions": []})
    with pytest.raises(UserError, match=r"a.json is no list of conversations; give the path of the file that is one"):
        opened(f"llava:{tmp_path}")
    (tmp_path / "a.json").write_text("[{")
    with pytest.raises(UserError, match=r"a.json is no JSON that can be read"):
        opened(f"llava:{tmp_path}")
    with pytest.raises(UserError, match=r"holds no parquet files of the_cauldron"):
        opened(f"cauldron:{tmp_path}")
