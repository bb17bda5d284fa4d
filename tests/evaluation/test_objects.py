"""GenEval's rules on hand-made detections of each kind, right and wrong; files, detectors and judges of colors."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from cm3leon_jax.encoders.base import Encoder
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.color_judge import EncoderColors
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.detections import Box, Detection, of_images, read_detections
from cm3leon_jax.evaluation.object_scores import asked_boxes, box_ious, by_class, fault_of, iou, relations, shows
from cm3leon_jax.evaluation.objects import Objects, by_task
from cm3leon_jax.evaluation.registry import COLOR_JUDGES, DETECTORS
from cm3leon_jax.evaluation.set_results import SampledImages
from cm3leon_jax.evaluation.sets.base import Item
from tests.evaluation.contexts import evaluation_with

SIDE = 100


def boxed(*bounds: float) -> Box:
    left, top, right, bottom = map(float, bounds)
    return left, top, right, bottom


def seen(name: str, left: int = 10, top: int = 10, score: float = 0.95, color: str = "", size: int = 20) -> Detection:
    return Detection(name, boxed(left, top, left + size, top + size), score, color)


def given(objects):
    return [each.color for each in objects]


SINGLE = {"tag": "single_object", "include": [{"class": "dog", "count": 1}]}
TWO = {"tag": "two_object", "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1}]}
THREE = {
    "tag": "counting",
    "include": [{"class": "dog", "count": 3}],
    "exclude": [{"class": "dog", "count": 4}],
}
RED = {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}]}
LEFT = {
    "tag": "position",
    "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}],
}
TWO_COLORS = {
    "tag": "color_attr",
    "include": [{"class": "dog", "count": 1, "color": "red"}, {"class": "cat", "count": 1, "color": "blue"}],
}


@pytest.mark.parametrize(
    ("asked", "detections", "is_right"),
    [
        (SINGLE, [seen("dog", score=0.31)], True),
        (SINGLE, [seen("dog", score=0.3)], False),
        (SINGLE, [seen("cat")], False),
        (SINGLE, [], False),
        # More than asked for is right where nothing is excluded.
        (SINGLE, [seen("dog"), seen("dog", 50), seen("cat")], True),
        (TWO, [seen("dog"), seen("cat")], True),
        (TWO, [seen("dog"), seen("dog")], False),
        (THREE, [seen("dog")] * 3, True),
        (THREE, [seen("dog")] * 2, False),
        (THREE, [seen("dog")] * 4, False),
        (THREE, [seen("dog")] * 3 + [seen("dog", score=0.9)], True),
        (THREE, [seen("dog")] * 2 + [seen("dog", score=0.89)], False),
        (RED, [seen("car", color="red")], True),
        (RED, [seen("car", color="blue")], False),
        # The surest is looked at.
        (RED, [seen("car", color="red", score=0.5), seen("car", color="blue", score=0.6)], False),
        (RED, [seen("car", color="red", score=0.7), seen("car", color="blue", score=0.6)], True),
        (LEFT, [seen("dog", 70), seen("cat", 10)], True),
        (LEFT, [seen("dog", 10), seen("cat", 70)], False),
        (LEFT, [seen("dog", 10, 70), seen("cat", 10)], False),
        (LEFT, [seen("dog"), seen("cat")], False),
        (LEFT, [seen("cat", 10)], False),
        (TWO_COLORS, [seen("dog", color="red"), seen("cat", color="blue")], True),
        (TWO_COLORS, [seen("dog", color="blue"), seen("cat", color="red")], False),
    ],
)
def test_each_kind_right_and_wrong(asked, detections, is_right):
    assert shows(asked, detections, given) == is_right


@pytest.mark.parametrize(
    ("left", "top", "expected"),
    [
        (60, 0, {"right of"}),
        (-60, 0, {"left of"}),
        (0, 60, {"below"}),
        (0, -60, {"above"}),
        (60, 60, {"right of", "below"}),
        (60, 20, {"right of"}),
        # Within a tenth of both sizes.
        (4, 4, set()),
        (4, 60, {"below"}),
        (0, 0, set()),
    ],
)
def test_relations_of_boxes(left, top, expected):
    assert relations(boxed(left, top, left + 20, top + 20), boxed(0, 0, 20, 20)) == expected


def test_a_class_has_at_most_sixteen_objects_the_surest_first():
    found = by_class([seen("dog", score=0.3 + index / 100) for index in range(1, 31)] + [seen("cat", score=0.1)], False)
    assert found["cat"] == []
    assert [round(each.score, 2) for each in found["dog"]] == [round(0.6 - index / 100, 2) for index in range(16)]


def test_iou():
    assert iou(boxed(0, 0, 10, 10), boxed(0, 0, 10, 10)) == 1
    assert iou(boxed(0, 0, 10, 10), boxed(5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert iou(boxed(0, 0, 10, 10), boxed(20, 0, 30, 10)) == 0
    assert iou(boxed(0, 0, 0, 0), boxed(0, 0, 0, 0)) == 0


def test_asked_boxes_are_fractions_of_the_image():
    asked = {
        "tag": "grounded",
        "include": [
            {"class": "dog", "count": 1, "box": [0.0, 0.0, 0.5, 0.5]},
            {"class": "cat", "count": 1, "box": [0.5, 0.5, 1.0, 1.0]},
        ],
    }
    assert box_ious(asked, [seen("dog", 0, 0, size=50), seen("dog", 50, 50, score=0.99, size=50)], SIDE) == [1, 0]


@pytest.mark.parametrize(
    ("asked", "fault"),
    [
        ({"class": "dog", "count": 0}, "include.1.count is 0: ask for at least one"),
        ({"class": "dog", "count": 1, "position": ["left of", 1]}, "include.1.position is ['left of', 1]"),
        ({"class": "dog", "count": 1, "position": ["near", 0]}, "include.1.position is ['near', 0]"),
        ({"class": "dog", "count": 1, "box": [0, 0, 20, 20]}, "include.1.box is [0, 0, 20, 20]"),
        ({"class": "dog", "count": 1, "position": ["above", 0], "box": [0, 0, 1, 1]}, ""),
    ],
)
def test_faults_of_prompts(asked, fault):
    found = fault_of({"tag": "x", "include": [{"class": "cat", "count": 1}, asked]})
    assert found.startswith(fault) and bool(found) == bool(fault)


def test_all_tasks_weigh_the_same():
    tasks = ["colors"] * 6 + ["counting"] * 2
    found = by_task(tasks, [True] * 5 + [False] * 3, list("aabbccdd"))
    assert found["objects_colors"].value == pytest.approx(5 / 6) and found["objects_counting"].value == 0
    assert found["objects_mean"].value == pytest.approx(5 / 12) and found["objects_mean"].n == 8
    assert found["objects_mean"].low < 5 / 12 < found["objects_mean"].high


@dataclass(frozen=True)
class BrightSquares:
    """A dog wherever an image is bright."""

    threshold: int = 128

    def __call__(self, images):
        return [[seen("dog")] if image.mean() > self.threshold else [] for image in images]


@dataclass(frozen=True)
class MeanColor:
    def __call__(self, image, objects):
        return ["white" if image.mean() > 200 else "black" for _ in objects]


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(DETECTORS, "bright", f"{__name__}:BrightSquares")
    monkeypatch.setitem(COLOR_JUDGES, "mean", f"{__name__}:MeanColor")


def sampled(*asked: dict, per_prompt: int = 1) -> EvaluationContext:
    """Images of prompts: white, black, white, ..."""
    items = [Item(f"{number:05d}", {}, objects=each) for number, each in enumerate(asked)]
    items = [item for item in items for _ in range(per_prompt)]
    images = np.zeros((len(items), SIDE, SIDE, 3), np.uint8)
    images[::2] = 255
    ranks = np.tile(np.arange(per_prompt), len(asked))
    samples = SampledImages(["a prompt"] * len(items), [item.id for item in items], images, ranks, items)
    config = SimpleNamespace(image_tokenizer=SimpleNamespace(resolution=SIDE))
    return evaluation_with(sampled=lambda name: samples, config=config)


def test_the_metric_with_a_detector_and_a_judge(registered):
    white = {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "white"}]}
    metric = Objects("geneval", detector="bright", detector_options={"threshold": 100}, colors="mean", batch_size=2)
    found = metric(sampled(SINGLE, SINGLE, white, white))
    assert {name: each.value for name, each in found.items()} == {
        "objects_single_object": 0.5,
        "objects_colors": 0.5,
        "objects_mean": 0.5,
    }


def test_a_request_with_boxes_asks_for_as_many_objects_as_it_names():
    boxes = [
        {"name": name, "box": box}
        for name, box in (("dog", [0, 0, 8, 8]), ("cat", [8, 0, 16, 4]), ("dog", [0, 8, 8, 16]))
    ]
    asked = asked_boxes(boxes, side=16)
    assert fault_of(asked) == "" and asked["tag"] == "boxes"
    assert [(each["class"], each["count"]) for each in asked["include"]] == [("dog", 2), ("cat", 1), ("dog", 1)]
    assert [each["box"] for each in asked["include"]] == [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.25], [0, 0.5, 0.5, 1]]
    *dogs, cat = (
        Detection(name, boxed(*box), 0.9)
        for name, box in (("dog", (0, 0, 8, 8)), ("dog", (0, 8, 8, 16)), ("cat", (8, 0, 16, 4)))
    )
    assert shows(asked, [*dogs, cat], given) and not shows(asked, [dogs[0], cat], given)
    assert box_ious(asked, [*dogs, cat], side=16) == [1.0, 1.0, 1.0]


def write(path, lines):
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return str(path)


def found_object(name, box=(0, 0, 50, 50), **more):
    return {"class": name, "box": list(box), "score": 0.99, **more}


def test_the_metric_with_a_file_of_detections(tmp_path):
    grounded = {"tag": "grounded", "include": [{"class": "dog", "count": 1, "box": [0.0, 0.0, 0.5, 0.5]}]}
    file = write(
        tmp_path / "found.jsonl",
        [
            {"id": "00000", "detections": [found_object("car", color="red")]},
            {"id": "00000", "sample": 1, "detections": [found_object("car", color="blue")]},
            {"id": "00001", "sample": 0, "detections": [found_object("dog")]},
            {"id": "00001", "sample": 1, "detections": []},
        ],
    )
    found = Objects("own", detections=file)(sampled(RED, grounded, per_prompt=2))
    assert {name: each.value for name, each in found.items()} == {
        "objects_colors": 0.5,
        "objects_grounded": 0.5,
        "objects_mean": 0.5,
        "objects_iou": 0.5,
        "objects_in_box": 0.5,
    }
    assert found["objects_iou"].n == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1 is not JSON"),
        ('{"id": "0"}', "line 1: detections: field required"),
        ('{"id": "0", "detections": [{"class": "dog", "box": [1, 2, 3], "score": 1.0}]}', "line 1: detections.0.box.3"),
        ('{"id": "0", "detections": [{"class": "dog", "box": [1, 2, 3, 4]}]}', "line 1: detections.0.score"),
        ('{"id": "0", "detections": []}\n\n{"id": "0", "detections": []}', "line 3 is the second of sample 0 of 0"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, text, message):
    (tmp_path / "found.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        read_detections(tmp_path / "found.jsonl")


def test_a_byte_order_mark_is_no_content(tmp_path):
    (tmp_path / "found.jsonl").write_text('{"id": "0", "detections": []}\n', encoding="utf-8-sig")
    assert read_detections(tmp_path / "found.jsonl") == {("0", 0): []}


def test_a_missing_file_and_a_missing_image_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"the detections .*none.jsonl cannot be read"):
        read_detections(tmp_path / "none.jsonl")
    file = write(tmp_path / "found.jsonl", [{"id": "0", "detections": []}])
    with pytest.raises(UserError, match="no line of sample 1 of the prompt 0"):
        of_images(read_detections(file), ["0", "0"], [0, 1], file)


def asking(**more):
    return {"tag": "x", "include": [{"class": "dog", **more}]}


@pytest.mark.parametrize(
    ("options", "asked", "message"),
    [
        ({}, SINGLE, "needs a detector or a file of detections: give one of the two"),
        ({"detector": "bright", "detections": "x"}, SINGLE, "give one of the two"),
        ({"detector": "brigt"}, SINGLE, "did you mean 'bright'?"),
        ({"detector": "bright", "detector_options": {"size": 1}}, SINGLE, "detector_options of an objects metric.size"),
        ({"detector": "bright"}, asking(count=1, color="red"), "a detection has no color that a prompt asks for"),
        ({"detector": "bright"}, {"include": []}, "objects is damaged: item 00000: tag: field required"),
        ({"detector": "bright"}, asking(count=0), "the objects of the prompt 00000: include.0.count is 0"),
        ({"detector": "bright"}, asking(count="1"), "item 00000: include.0.count: input should be a valid integer"),
    ],
)
def test_mistakes_are_one_line(registered, options, asked, message):
    metric = Objects("geneval", **options)
    with pytest.raises(UserError) as error:
        metric(sampled(asked))
    assert message in str(error.value)


VECTORS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}


class ColorEncoder(Encoder):
    """Compares an image's middle with colors that texts name."""

    family = "colors"

    def encode_texts(self, texts, dropout=0.0, keys=None):
        vectors = [next((rgb for name, rgb in VECTORS.items() if f"a {name}" in text), (0, 0, 0)) for text in texts]
        return np.array(vectors, np.float32)

    def encode_images(self, images, dropout=0.0, keys=None):
        middle = images[:, images.shape[1] // 2, images.shape[2] // 2].astype(np.float32)
        return middle / np.linalg.norm(middle, axis=1, keepdims=True)


def test_an_encoder_judges_the_color_of_a_box(monkeypatch):
    monkeypatch.setattr("cm3leon_jax.evaluation.color_judge.load_encoder", lambda path: ColorEncoder({}))
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[:50, :, 0], image[50:, :, 2] = 255, 255
    boxes = [(0, 0, 100, 40), (10, 60, 20, 99), (-5, 90, 200, 300), (99.5, 99.5, 99.5, 99.5)]
    objects = [Detection("car", boxed(*box), 0.9) for box in boxes]
    assert EncoderColors("x")(image, objects) == ["red", "blue", "blue", "blue"]
    assert EncoderColors("x")(image, []) == []
