"""MMC4 as published: sentences and the images assigned to them, in zipped JSON lines."""

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from cm3leon_jax.errors import UserError
from tests.data.sources.published import documents, faults, png, shown, write_images, write_tar
from tests.data.sources.test_interleaved import omitted, reader, url, write_tars

NAME = "docs_no_face_shard_0_v2.jsonl"


def image(number: int, sentence: Any, similarity: Any = 0.3, **other: Any) -> dict[str, Any]:
    found = {"image_name": f"{number}.png", "raw_url": url(number), "matched_text_index": sentence}
    return found | {"matched_sim": similarity, "face_detections": None} | other


def page(sentences: Any, *images: Any, **other: Any) -> dict[str, Any]:
    matrix = [[0.1] * len(sentences) for _ in images] if isinstance(sentences, list) else None
    found = {"text_list": sentences, "url": "https://pages.org", "image_info": list(images)}
    return found | {"similarity_matrix": matrix, "could_have_url_duplicate": 0} | other


def write_pages(folder: Path, *pages: Any, suffix: str = ".zip", name: str = NAME) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = b"".join((each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n" for each in pages)
    file = folder / f"{name}{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content)
    else:
        file.write_bytes(gzip.compress(content) if suffix else content)
    return file


SENTENCES = ["One.", "Two.", "Three.", "Four."]
# In no order; two of one sentence.
PAGE = page(SENTENCES, image(3, 2), image(1, 0), image(0, 2), image(2, 1, 0.1))


def write_names(folder: Path) -> None:
    write_images(folder, *(f"sub/{number}.png" for number in range(6)))


def write_tar_of_names(folder: Path) -> None:
    write_tar(folder / "images.tar", [(f"./{number}.png", png(number)) for number in (4, 0, 3, 2, 1, 5)])


@pytest.mark.parametrize("suffix", [".zip", ".gz", ""])
@pytest.mark.parametrize("write", [write_names, write_tar_of_names], ids=["folder", "tar"])
def test_images_of_sentences(tmp_path, suffix, write):
    write_pages(tmp_path / "data", PAGE, page(["Alone."], image(4, 0)), suffix=suffix)
    write(tmp_path / "data/images")
    expected = {
        "after": [("One.", "<1>", "Two.", "<2>", "Three.", "<3>", "<0>", "Four."), ("Alone.", "<4>")],
        "before": [("<1>", "One.", "<2>", "Two.", "<3>", "<0>", "Three. Four."), ("<4>", "Alone.")],
    }
    for position, found in expected.items():
        task = reader(f"mmc4:{tmp_path}/data", image_position=position)
        assert [shown(each)[1:] for each in documents(task)] == found
        assert [shown(each)[1:] for each in task.documents("train", 1)] == found[1:]
    assert task.where("train", 1) == f"{NAME}{suffix}:1"


def test_images_that_img2dataset_took_and_sentences_without_images(tmp_path):
    sentences = ["a", "b", "", "c", "d", "e"]
    write_pages(tmp_path / "data", page(sentences, image(1, 1), image(9, 3), image(2, 4)))
    write_tars(tmp_path / "images")
    task = reader(f"mmc4:{tmp_path}/data", images=f"{tmp_path}/images")
    (found,) = documents(task)
    assert shown(found)[1:] == ("a b", "<1>", "c d", "<2>", "e") and omitted(task) == [("missing image",)]


def test_least_similarity(tmp_path):
    write_pages(tmp_path / "data", PAGE, page(["a"], image(4, 0, float("nan"))), page(["a"], image(4, 0, None)))
    write_names(tmp_path / "data/images")
    task = reader(f"mmc4:{tmp_path}/data", min_similarity=0.2)
    assert [shown(each)[1:] for each in documents(task)] == [("One.", "<1>", "Two. Three.", "<3>", "<0>", "Four.")]
    assert omitted(task) == [("image that is not similar enough",)]
    assert list(faults(task).values()) == ["too few images", "no matched_sim of the published form"]


FAULTS: dict[str, tuple[Any, str]] = {
    "no JSON": (b'{"text_list": ["a"', "no text_list"),
    "bytes that are not UTF-8": (b'{"text_list": ["\xff"]}', "no text_list"),
    "a list": ([PAGE], "no text_list"),
    "no object": (None, "no text_list"),
    "no sentences": (page(None, image(1, 0)), "no text_list"),
    "a sentence that is none": (page(["a", None], image(1, 0)), "no text_list"),
    "a number as a sentence": (page(["a", float("nan")], image(1, 0)), "no text_list"),
    "no images": (page(["a"], image_info=None), "no image_info"),
    "an image that is none": (page(["a"], None), "no matched_text_index"),
    "an image without a name": (page(["a"], image(1, 0, image_name=None, raw_url=None)), "too few images"),
    "a number as a name": (page(["a"], image(1, 0, image_name=3)), "no image_info"),
    "a sentence that is not there": (page(["a"], image(1, 1)), "matched_text_index out of range"),
    "a sentence before the first": (page(["a"], image(1, -1)), "matched_text_index out of range"),
    "a sentence in words": (page(["a"], image(1, "0")), "no matched_text_index"),
    "a fraction of a sentence": (page(["a"], image(1, 0.0)), "no matched_text_index"),
    "NaN as a sentence": (page(["a"], image(1, float("nan"))), "no matched_text_index"),
    "similarities of fewer images": (page(["a"], image(1, 0), similarity_matrix=[]), "similarity_matrix of another"),
    "similarities of more sentences": (page(["a"], image(1, 0), similarity_matrix=[[1, 2]]), "similarity_matrix of"),
    "half a character": (b'{"text_list": ["\\ud800"], "image_info": []}', "text with half a character"),
    "all images dead": (page(["a"], image(77, 0)), "too few images"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_line_are_skipped_where_they_are(tmp_path, fault):
    row, reason = FAULTS[fault]
    write_pages(tmp_path / "data", page(["before"], image(1, 0)), row, b"", page(["after"], image(2, 0)))
    write_names(tmp_path / "data/images")
    task = reader(f"mmc4:{tmp_path}/data")
    assert [shown(each)[1:] for each in documents(task)] == [("before", "<1>"), ("after", "<2>")]
    ((where, found),) = faults(task).items()
    assert where == f"{NAME}.zip:1" and found.startswith(reason)


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_files_that_are_cut_off_are_read_as_far_as_they_go(tmp_path, suffix):
    pages = [page([f"page {number * 7919}"], image(number % 6, 0)) for number in range(200)]
    file = write_pages(tmp_path / "data", *pages, suffix=suffix)
    write_pages(tmp_path / "data", page(["whole"], image(1, 0)), name="docs_no_face_shard_1_v2.jsonl")
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    write_names(tmp_path / "data/images")
    task = reader(f"mmc4:{tmp_path}/data")
    found = documents(task)
    assert 20 < len(found) < 180
    order = [f"page {number * 7919}" for number in range(len(found) - 1)]
    assert [shown(each)[1] for each in found] == [*order, "whole"]
    # The line that is cut is none, if it comes at all.
    assert list(faults(task).values()) == ([] if suffix else ["no text_list of the published form"])
    assert task.skipped().by_kind == ({"file that is cut off or damaged": 1} if suffix else {})


def test_files_that_cannot_be_read(tmp_path):
    for suffix in (".zip", ".gz"):
        file = write_pages(tmp_path / "data", PAGE, suffix=suffix)
        file.write_bytes(file.read_bytes()[:15])
    with pytest.raises(UserError, match=r"holds no JSON lines of MMC4: 2 x file that cannot be read: docs"):
        reader(f"mmc4:{tmp_path}/data")
    write_pages(tmp_path / "data", page(["whole"], image(1, 0)), suffix="")
    write_names(tmp_path / "data/images")
    task = reader(f"mmc4:{tmp_path}/data")
    assert [shown(each)[1:] for each in documents(task)] == [("whole", "<1>")]
    assert task.skipped().by_kind == {"file that cannot be read": 2} and not task.skipped().num_documents
    with pytest.raises(UserError, match=r"holds no JSON lines of MMC4"):
        reader(f"mmc4:{tmp_path}/data/images")


def test_names_that_are_there_twice(tmp_path):
    write_pages(tmp_path / "data", page(["a", "b"], image(1, 0), image(2, 1)))
    write_names(tmp_path / "data/images")
    # The same image again, and another of the same name.
    (tmp_path / "data/images/1.png").write_bytes(png(1))
    (tmp_path / "data/images/2.png").write_bytes(png(2, 80, 80))
    task = reader(f"mmc4:{tmp_path}/data")
    assert [shown(each)[1:] for each in documents(task)] == [("a", "<1>", "b")] and omitted(task) == [
        ("missing image",)
    ]
