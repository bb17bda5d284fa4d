"""OBELICS as published, with the images that img2dataset and others leave; holes, and documents cut to fit."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.sources.config import FolderConfig, InterleavedConfig
from cm3leon_jax.data.sources.reading import TaskReader, open_mixture
from cm3leon_jax.documents import Document
from cm3leon_jax.errors import UserError
from tests.data.sources.published import IMAGE, documents, faults, png, shown, write_table, write_tar

LISTS = {"images": pa.list_(pa.string()), "metadata": pa.string(), "general_metadata": pa.string()} | {
    "texts": pa.list_(pa.string())
}
FILE = "data/train-00000-of-00001.parquet"


def url(number: int) -> str:
    return f"https://images.org/{number}.jpg?size=l"


def page(*segments: str | int | None, **columns: Any) -> dict[str, Any]:
    """A row of OBELICS: texts, and images by number; None is nothing at both lists."""
    images = [url(each) if isinstance(each, int) else None for each in segments]
    texts = [each if isinstance(each, str) else None for each in segments]
    metadata = [None if image is None else {"src": image, "alt_text": ""} for image in images]
    general = {"url": "https://pages.org", "warc_filename": "a.warc.gz"}
    row = {"images": images, "texts": texts, "metadata": json.dumps(metadata), "general_metadata": json.dumps(general)}
    return row | columns


def reader(mixture: str, **config: Any) -> TaskReader:
    corpus = CorpusConfig(
        mixture=mixture,
        max_skipped_fraction=1.0,
        folder=FolderConfig(held_out_fraction=0.0),
        interleaved=InterleavedConfig(**config),
    )
    (task,) = open_mixture(corpus)
    return task


def omitted(task: TaskReader) -> list[tuple[str, ...]]:
    return [each.omitted for each in task.documents("train") if isinstance(each, Document)]


PAGES = [page("one", 1, "two", 2, "three"), page(3, "four", 4), page(1, "five", 9, "six"), page(2, 5, "seven")]
EXPECTED = [
    ("", "one", "<1>", "two", "<2>", "three"),
    ("", "<3>", "four", "<4>"),
    ("", "<1>", "five\nsix"),
    ("", "<2>", "<5>", "seven"),
]
DOWNLOADED = {1: "success", 2: "success", 3: "success", 4: "success", 5: "success", 9: "failed_to_download"}
SIDE = {"url": pa.string(), "key": pa.string(), "status": pa.string(), "error_message": pa.string()}


def key(number: int) -> str:
    return f"0000{number % 2}{number:04d}"


def write_sides(folder: Path, **columns: Any) -> None:
    """img2dataset's tables of two shards; `columns` makes cells of the numbers of images."""
    for shard in (0, 1):
        numbers = [number for number in DOWNLOADED if number % 2 == shard]
        sides = [{"url": url(number), "key": key(number), "status": DOWNLOADED[number]} for number in numbers]
        cells = [{name: of(number) for name, of in columns.items()} for number in numbers]
        rows = [side | cell for side, cell in zip(sides, cells, strict=True)]
        schema = SIDE | {name: pa.binary() for name in columns}
        write_table(folder / f"0000{shard}.parquet", rows, schema)


def write_tars(folder: Path, with_tables: bool = True, image: Callable[[int], bytes] = png) -> None:
    for shard in (0, 1):
        members = list[tuple[str, bytes]]()
        # In the order in which they were downloaded.
        for number in (each for each in (5, 2, 4, 3, 1) if each % 2 == shard):
            about = {"url": url(number), "key": key(number), "status": "success"}
            members += [(f"{key(number)}.json", json.dumps(about).encode()), (f"{key(number)}.jpg", image(number))]
        write_tar(folder / f"0000{shard}.tar", members)
    if with_tables:
        write_sides(folder)


def write_files(folder: Path) -> None:
    write_sides(folder)
    for number in range(1, 6):
        file = folder / f"0000{number % 2}" / f"{key(number)}.webp"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(number))


def write_hashed(folder: Path, algorithm: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, 6):
        (folder / f"{hashlib.new(algorithm, url(number).encode()).hexdigest()}.png").write_bytes(png(number))


IMAGES = {
    "tars with tables": write_tars,
    "tars without tables": lambda folder: write_tars(folder, with_tables=False),
    "files": write_files,
    "tables": lambda folder: write_sides(folder, jpg=lambda number: None if number == 9 else png(number)),
    "names are sha256": lambda folder: write_hashed(folder, "sha256"),
    "names are md5": lambda folder: write_hashed(folder, "md5"),
}


@pytest.mark.parametrize("form", IMAGES)
@pytest.mark.parametrize("where", ["data/images", "data", "downloaded"])
def test_images_are_found_by_url(tmp_path, form, where):
    IMAGES[form](tmp_path / where)
    write_table(tmp_path / FILE, PAGES, LISTS)
    task = reader(f"obelics:{tmp_path}/data", images=str(tmp_path / where) if where == "downloaded" else "")
    assert [shown(each) for each in documents(task)] == EXPECTED
    assert omitted(task) == [(), (), ("missing image",), ()]
    # Parts of a split are read alone.
    assert [shown(each) for each in task.documents("train", 2)] == EXPECTED[2:]
    assert task.where("train", 3) == "train-00000-of-00001.parquet:3"


def in_cells(row: dict[str, Any], **other: bytes | None) -> dict[str, Any]:
    """The row with the bytes of its images, those of some URLs being others."""
    content = {url(number): png(number) for number in range(1, 10)}
    content |= {url(int(name.lstrip("_"))): each for name, each in other.items()}
    return row | {"images": [each and {"bytes": content[each], "path": each} for each in row["images"]]}


def test_images_in_cells(tmp_path):
    rows = [in_cells(PAGES[0]), in_cells(PAGES[2], _1=None, _9=png(9)[:40])]
    write_table(tmp_path / FILE, rows, LISTS | {"images": pa.list_(IMAGE)})
    task = reader(f"obelics:{tmp_path}/data")
    whole, cut_off = task.documents("train")
    assert isinstance(whole, Document) and shown(whole) == EXPECTED[0]
    # That an image cannot be decoded is seen later.
    assert isinstance(cut_off, Document) and cut_off.omitted == ("missing image",) and len(cut_off.segments) == 3


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "lists of unequal length": (page("a", 1, texts=["a"]), "texts and images of unequal length"),
    "no list of texts": (page("a", 1, texts=None), "no texts of the published form"),
    "no list of images": (page("a", 1, images=None), "no images of the published form"),
    "text and image at one index": (page("a", 1, texts=["a", "b"]), "text and image at one index"),
    "nothing at all": (page(), "too few images"),
    "no image": (page("a", "b"), "too few images"),
    "dead links alone": (page(9, "a", 9), "too few images"),
    "an address that is empty": (page("a", 1, images=[None, ""]), "too few images"),
    "no text": (page(1, 2), "too little text"),
    "blank texts": (page(" \n", 1, "\0"), "too little text"),
    "no metadata": (page("a", 1, metadata=None, general_metadata="{"), ""),
    "an index without anything": (page(None, "a", None, 1, None), ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_row_are_skipped_where_they_are(tmp_path, fault):
    row, reason = FAULTS[fault]
    write_tars(tmp_path / "data/images")
    write_table(tmp_path / FILE, [PAGES[0], row, PAGES[1]], LISTS)
    task = reader(f"obelics:{tmp_path}/data")
    expected = [EXPECTED[0], *([] if reason else [("", "a", "<1>")]), EXPECTED[1]]
    assert [shown(each) for each in documents(task)] == expected
    assert faults(task) == ({"train-00000-of-00001.parquet:1": reason} if reason else {})


OTHER_TYPES: dict[str, dict[str, Any]] = {
    "numbers as texts": {"texts": (pa.list_(pa.float64()), [None, float("nan")])},
    "a text, no list": {"texts": (pa.string(), "a")},
    "numbers as images": {"images": (pa.list_(pa.int64()), [3, None])},
    "bytes as texts": {"texts": (pa.list_(pa.binary()), [None, b"a"])},
}


@pytest.mark.parametrize("form", OTHER_TYPES)
def test_values_of_other_types_are_skipped(tmp_path, form):
    ((name, (kind, value)),) = OTHER_TYPES[form].items()
    write_table(tmp_path / FILE, [page(1, "a") | {name: value}], LISTS | {name: kind})
    task = reader(f"obelics:{tmp_path}/data")
    assert not documents(task) and list(faults(task).values()) == [f"no {name} of the published form"]


OPTIONS: dict[str, tuple[dict[str, Any], list[tuple[str, ...]], list[str]]] = {
    "fewest images": ({"min_images": 2}, [("", "a", "<1>", "b", "<2>")], ["too few images"] * 2 + ["too little text"]),
    "none is needed": (
        {"min_images": 0, "min_characters": 0},
        [("", "a", "<1>", "b", "<2>"), ("", "a", "<1>"), ("", "only text"), ("", "<3>", "<4>")],
        [],
    ),
    "most images": ({"max_images": 1}, [("", "a", "<1>")], ["too many images", "too few images", "too many images"]),
    "fewest characters": ({"min_characters": 2}, [("", "a", "<1>", "b", "<2>")], ["too little text", "too few images"]),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options(tmp_path, option):
    config, expected, reasons = OPTIONS[option]
    write_tars(tmp_path / "data/images")
    rows = [page("a", 1, "b", 2), page("a", 1), page("only text"), page(3, 4)]
    write_table(tmp_path / FILE, rows, LISTS)
    task = reader(f"obelics:{tmp_path}/data", **config)
    assert [shown(each) for each in documents(task)] == expected
    found = list(faults(task).values())
    assert found[: len(reasons)] == reasons and len(found) == 4 - len(expected)


def test_what_is_repeated_is_omitted(tmp_path):
    write_tars(tmp_path / "data/images")
    write_table(tmp_path / FILE, [page("a", 1, "b", 1, "b", "b", 2, "b", 9, "b")], LISTS)
    task = reader(f"obelics:{tmp_path}/data")
    assert [shown(each) for each in documents(task)] == [("", "a", "<1>", "b", "<2>", "b")]
    assert omitted(task) == [("repeated image", "repeated text", "repeated text", "missing image", "repeated text")]
    task = reader(f"obelics:{tmp_path}/data", drop_repeated=False)
    assert shown(documents(task)[0])[4:] == ("<1>", "b\nb", "<2>", "b\nb")


def test_articles_of_a_page_are_paragraphs(tmp_path):
    write_tars(tmp_path / "data/images")
    write_table(tmp_path / FILE, [page("one END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED", 1, "b\r\nc")], LISTS)
    assert shown(documents(reader(f"obelics:{tmp_path}/data"))[0]) == ("", "one", "<1>", "b\nc")


def damaged(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def test_archives_that_are_cut_off_leave_holes(tmp_path):
    images = tmp_path / "data/images"
    write_tars(images)
    write_table(tmp_path / FILE, PAGES, LISTS)
    # Of the tar of 5, 3 and 1 the last is cut off; of the others nothing can be read, not even their table.
    damaged(images / "00001.tar", 5 * 1024 - 400)
    damaged(images / "00000.tar", 300)
    damaged(images / "00000.parquet", 100)
    task = reader(f"obelics:{tmp_path}/data")
    assert [shown(each) for each in documents(task)] == [("", "<3>", "four"), ("", "<5>", "seven")]
    assert faults(task) == {f"train-00000-of-00001.parquet:{row}": "too few images" for row in (0, 2)}
    assert task.skipped().by_kind == {
        "tar that is cut off": 1,
        "tar that cannot be read": 1,
        "table that cannot be read": 1,
    }
    assert task.skipped().num_documents == 0


def test_files_that_cannot_be_read(tmp_path):
    write_tars(tmp_path / "data/images")
    write_table(tmp_path / FILE, PAGES, LISTS)
    write_table(tmp_path / "data/more/b.parquet", PAGES, LISTS)
    damaged(tmp_path / "data/more/b.parquet", 300)
    task = reader(f"obelics:{tmp_path}/data")
    assert [shown(each) for each in documents(task)] == EXPECTED
    assert task.skipped().by_kind == {"table that cannot be read": 1}
    damaged(tmp_path / FILE, 300)
    with pytest.raises(UserError, match=r"holds no parquet files of OBELICS: 2 x table that cannot be read"):
        reader(f"obelics:{tmp_path}/data")


def test_a_damaged_row_group(tmp_path):
    write_tars(tmp_path / "data/images")
    many = [page("one", 1, "text of some length " * 40), *PAGES, *PAGES]
    write_table(tmp_path / FILE, many, LISTS)
    content = bytearray((tmp_path / FILE).read_bytes())
    content[4:200] = bytes(196)
    (tmp_path / FILE).write_bytes(content)
    task = reader(f"obelics:{tmp_path}/data")
    assert set(faults(task).values()) == {"row that cannot be read"}


def test_files_that_were_edited_meanwhile(tmp_path):
    write_tars(tmp_path / "data/images")
    write_table(tmp_path / FILE, PAGES, LISTS)
    task = reader(f"obelics:{tmp_path}/data")
    write_tars(tmp_path / "data/images", with_tables=False)
    assert set(faults(task).values()) == {"image that was edited meanwhile"}
    write_table(tmp_path / FILE, PAGES[:2], LISTS)
    assert set(faults(task).values()) == {"file that was edited meanwhile"} and len(faults(task)) == 4


def test_another_form_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"holds no parquet files of OBELICS"):
        reader(f"obelics:{tmp_path}")
    with pytest.raises(UserError, match=r"interleaved.images=.*no folder is there"):
        reader(f"obelics:{tmp_path}", images=str(tmp_path / "nowhere"))
    write_table(tmp_path / FILE, [{"texts": ["a"]}], {"texts": pa.list_(pa.string())})
    with pytest.raises(UserError, match=r"holds no parquet files of OBELICS: 1 x table without the column images"):
        reader(f"obelics:{tmp_path}/data")


def test_splits_are_by_row_and_do_not_change(tmp_path):
    write_tars(tmp_path / "images")
    for name in ("a", "b"):
        rows = [page(f"{name}{number}", number % 5 + 1) for number in range(40)]
        write_table(tmp_path / f"{name}.parquet", rows, LISTS)
    config = CorpusConfig(mixture=f"obelics:{tmp_path}", folder=FolderConfig(held_out_fraction=0.2))
    (task,) = open_mixture(config)
    found = {split: [shown(each)[1] for each in documents(task, split)] for split in ("train", "validation")}
    assert 4 <= len(found["validation"]) <= 30 and len(found["train"]) + len(found["validation"]) == 80
    assert not set(found["train"]) & set(found["validation"])
    order = [f"{name}{number}" for name in ("a", "b") for number in range(40)]
    assert all(sorted(each, key=order.index) == each for each in found.values())
    before = task.provenance()
    (tmp_path / "b.parquet").unlink()
    (task,) = open_mixture(config)
    left = {split: [shown(each)[1] for each in documents(task, split)] for split in ("train", "validation")}
    assert left == {split: [name for name in each if name[0] == "a"] for split, each in found.items()}
    assert task.provenance()["documents"] != before["documents"] and task.provenance()["images"] == before["images"]


def test_keys_with_several_images_are_holes(tmp_path):
    images = tmp_path / "data/images"
    write_files(images)
    (images / f"00001/{key(1)}.PNG").write_bytes(png(99))
    names = (f"{key(2)}.jpg", f"{key(4)}.jpg", f"{key(4)}.webp")
    write_tar(images / "00000.tar", [(f"folder/{name}", png(int(name[8]))) for name in names])
    write_table(tmp_path / FILE, [page("a", 1, "b", 3), page("c", 2, "d", 4)], LISTS)
    task = reader(f"obelics:{tmp_path}/data")
    assert [shown(each) for each in documents(task)] == [("", "a\nb", "<3>"), ("", "c", "<2>", "d")]
    assert task.skipped().by_kind == {"key with several images": 2} and not task.skipped().num_documents


def test_documents_that_are_not_wanted_are_no_faults(tmp_path):
    write_tars(tmp_path / "data/images")
    write_table(tmp_path / FILE, [page("a", 9), page(1), page("b", 1, texts=["b"])], LISTS)
    found = {each.reason: each.is_fault for each in reader(f"obelics:{tmp_path}/data").documents("train")}
    assert found == {"too few images": False, "too little text": False, "texts and images of unequal length": True}
