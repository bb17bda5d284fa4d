"""COCO's annotations as published, and their faults."""

import numpy as np
import pytest

from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.sources.config import AnnotationsConfig
from cm3leon_jax.data.sources.structure_maps import class_color
from cm3leon_jax.documents import ImageSegment
from cm3leon_jax.errors import UserError
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig
from cm3leon_jax.images import decode_image, encode_png
from tests.data.sources.published import documents, opened, shown, write_images, write_json

CATEGORIES = [{"id": 1, "name": "person", "supercategory": "person"}, {"id": 90, "name": "hair drier"}]


def image(number: int, width: int = 64, height: int = 32, subset: str = "train2017") -> dict:
    return {"id": number, "file_name": f"{number:012d}.jpg", "width": width, "height": height, "license": 1}


def thing(number: int, category: int, *bbox: float, **other) -> dict:
    left, top, width, height = bbox
    outline = [left, top, left + width, top, left + width, top + height, left, top + height]
    found = {"image_id": number, "category_id": category, "bbox": list(bbox), "iscrowd": 0, "area": width * height}
    return found | {"segmentation": [outline], "id": 1} | other


def write_coco(folder, prefix: str, images: list[dict], annotations: list[dict], subset: str = "train2017"):
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": CATEGORIES}
    write_json(folder / f"annotations/{prefix}_{subset}.json", content)


def caption(number: int, text: str) -> dict:
    return {"image_id": number, "id": 1, "caption": text}


@pytest.mark.parametrize("root", ["", "images/"])
def test_captions(tmp_path, root):
    write_images(tmp_path, f"{root}train2017/{1:012d}.jpg", f"{root}val2017/{2:012d}.jpg")
    captions = [
        caption(1, "A fox."),
        caption(1, "A red fox. "),
        caption(1, " "),
        caption(3, "Lost."),
        caption(9, "No."),
    ]
    write_coco(tmp_path, "captions", [image(1), image(3), image(4)], captions)
    write_coco(tmp_path, "captions", [image(2)], [caption(2, "A hat.")], "val2017")
    task = opened(f"coco_captions:{tmp_path}")
    assert [shown(each) for each in documents(task)] == [("caption", "A fox.", "<0>"), ("caption", "A red fox.", "<0>")]
    assert [shown(each) for each in documents(task, "validation")] == [("caption", "A hat.", "<1>")]
    assert task.skipped().by_kind == {
        "empty field: caption": 1,
        "missing image": 1,
        "image without a caption": 1,
        "annotation of an image that is not listed": 1,
    }


def test_objects_are_where_the_image_tokenizer_sees_them(tmp_path):
    """64 x 32 pixels become 32 x 16, of which the middle 16 are kept: x in 16 .. 48 becomes (x - 16) / 2."""
    write_images(tmp_path, *(f"train2017/{number:012d}.jpg" for number in (1, 2, 3, 4)), width=64, height=32)
    annotations = [
        thing(1, 1, 20, 4, 8, 16),
        thing(1, 90, 10, 0, 16, 32),
        thing(1, 1, 0, 0, 12, 20),  # cut off
        thing(1, 1, 44, 0, 30, 10),  # mostly cut off
        thing(1, 90, 20, 4, 0, 5),  # nothing
        thing(1, 1, 20, 4, 8, 16, iscrowd=1),
        thing(1, 5, 20, 4, 8, 16),  # of no class
        thing(2, 1, -100, -100, 20, 20),
        thing(3, 90, 16, 30, 200, 40),  # beyond the lower edge
        thing(3, 90, 8, 8, 1, 1, bbox=[1, 2]),
        thing(4, 1, 30, 16, 10, 10),
    ]
    write_coco(tmp_path, "instances", [image(number) for number in (1, 2, 3, 4)], annotations)
    task = opened(f"coco_objects:{tmp_path}", resolution=16)
    assert sorted(shown(each) for each in documents(task)) == [
        ("objects", "person", "person at location (7, 8) -> (12, 13)", "<3>"),
        (
            "objects",
            "person, hair drier",
            "hair drier at location (0, 0) -> (5, 16), person at location (2, 2) -> (6, 10)",
            "<0>",
        ),
    ]
    assert task.skipped().by_kind == {"no object in view": 1, "no bbox of the published form": 1}
    write_coco(tmp_path, "captions", [image(1)], [caption(1, "Hair."), caption(1, "More hair.")])
    task = opened(f"coco_objects:{tmp_path}", resolution=16, max_objects=1)
    assert ("objects", "Hair.", "hair drier at location (0, 0) -> (5, 16)", "<0>") in map(shown, documents(task))


def test_boxes_are_around_the_pixels_of_the_decoded_image(tmp_path):
    pixels = np.zeros((90, 50, 3), np.uint8)
    pixels[40:60, 10:30] = 255
    (tmp_path / "train2017").mkdir()
    (tmp_path / "train2017" / f"{1:012d}.jpg").write_bytes(encode_png(pixels))
    write_coco(tmp_path, "instances", [image(1, 50, 90)], [thing(1, 1, 10, 40, 20, 20)])
    (document,) = documents(opened(f"coco_objects:{tmp_path}", resolution=100))
    segment = document.segments[2]
    assert isinstance(segment, ImageSegment)
    rows, columns = np.nonzero(decode_image(segment.encoded, 100, 1)[..., 0] > 127)
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert document.segments[1].text == f"person at location ({box[0]}, {box[1]}) -> ({box[2]}, {box[3]})"


def test_segmentations(tmp_path):
    write_images(tmp_path, f"train2017/{1:012d}.jpg", f"train2017/{2:012d}.jpg", width=64, height=32)
    crowd = thing(2, 1, 0, 0, 9, 9, iscrowd=1, segmentation={"counts": [3, 4], "size": [32, 64]})
    annotations = [thing(1, 90, 24, 8, 8, 8), thing(1, 1, 16, 0, 32, 32), crowd]
    # Two points, and one that is nowhere.
    annotations += [thing(1, 1, 0, 0, 9, 9, segmentation=[[1, 2, 3, 4], [1, 2, 3, float("nan"), 5, 6]])]
    write_coco(tmp_path, "instances", [image(1), image(2)], annotations)
    task = opened(f"coco_segmentation:{tmp_path}", resolution=32)
    (document,) = documents(task)
    assert shown(document)[0::2] == ("segmentation", "person, hair drier")
    map_ = decode_image(document.segments[0].encoded, 32, 3)
    assert tuple(map_[2, 2]) == class_color(1) and tuple(map_[12, 12]) == class_color(90)
    assert task.skipped().by_kind == {"image without outlines": 1}


def test_what_is_missing_is_one_line(tmp_path):
    with pytest.raises(
        UserError, match=r"no instances of COCO: there is no instances\*.json, such as annotations/inst"
    ):
        opened(f"coco_objects:{tmp_path}", resolution=16)
    write_json(tmp_path / "annotations/instances_train2017.json", [])
    with pytest.raises(UserError, match=r"instances_train2017.json has no images of the published form"):
        opened(f"coco_objects:{tmp_path}", resolution=16)
    write_coco(tmp_path, "instances", [image(1)], [])
    with pytest.raises(UserError, match=r"set config.corpus.annotations.resolution to config.image_tokenizer.resol"):
        opened(f"coco_objects:{tmp_path}")
    write_coco(tmp_path, "instances", [image(1)], [{"image_id": [1]}, 3, {"image_id": 1}])
    with pytest.raises(UserError, match=r"has no examples \(1 x no bbox of the published form"):
        opened(f"coco_objects:{tmp_path}", resolution=16)
    write_coco(tmp_path, "instances", [image(1), {"id": {}}, 7], [])
    with pytest.raises(UserError, match=r"has no examples \(3 x image without a caption"):
        opened(f"coco_captions:{tmp_path}/annotations/instances_train2017.json")
    write_coco(tmp_path, "instances", [image(1)], [])
    with pytest.raises(UserError, match=r"has no examples \(1 x no object in view: annotations/instances"):
        opened(f"coco_objects:{tmp_path}", resolution=16)
    corpus = CorpusConfig(annotations=AnnotationsConfig(resolution=128))
    with pytest.raises(UserError, match=r"config.corpus.annotations.resolution 128 is not image_tokenizer.resolution"):
        Config(corpus=corpus, image_tokenizer=VQGANConfig(resolution=256))
