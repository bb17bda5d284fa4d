"""MINT-1T as published: tars of .json and multi-page .tiff, and parquet files of web pages."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from cm3leon_jax.errors import UserError
from cm3leon_jax.images import decode_image, encode_png, num_pages, page_of
from tests.data.sources.published import documents, faults, shown, write_table, write_tar
from tests.data.sources.test_interleaved import omitted, reader, url, write_tars

KEY = "ef8e1a893ecf4e089f2358ab3ad0e87b"


def tiff(*values: int, mode: str = "RGB", **options: Any) -> bytes:
    """A TIFF of pages of one gray value each, of growing sizes."""
    pages = [
        Image.fromarray(np.full((8 + n, 8 + 2 * n, 3), value, np.uint8)).convert(mode) for n, value in enumerate(values)
    ]
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:], **options)
    return buffer.getvalue()


def document(*segments: str | int | None) -> dict[str, Any]:
    """The .json of a PDF: texts, and images by the number of their page."""
    images = [f"page_{each}_image_{80 + each}" if isinstance(each, int) else None for each in segments]
    return {
        "bff_contained_ngram_count_before_dedupe": 29,
        "image_metadata": [{"height": 8, "page": each, "width": 8, "xref": 1} for each in images if each],
        "images": images,
        "texts": [each if isinstance(each, str) else None for each in segments],
        "pdf_metadata": {},
    }


def write_documents(file: Path, *members: tuple[str, Any]) -> None:
    """A tar of files, those that are no bytes as JSON."""
    write_tar(file, [(name, each if isinstance(each, bytes) else json.dumps(each).encode()) for name, each in members])


TAR = "CC-MAIN-2023-23-shard-0/CC-MAIN-20230527223515-20230528013515-00000.tar"


def test_pages_of_a_tiff_are_images_in_order(tmp_path):
    write_documents(
        tmp_path / TAR,
        ("b.tiff", tiff(20, 21)),
        (f"{KEY}.json", document("one", 0, None, "two", 0, 3, "three")),
        (f"{KEY}.tiff", tiff(10, 11, 12)),
        ("b.json", document(0, "four", 1)),
        ("no/folder.json", document(0, "five")),
        ("no/folder.tif", tiff(30)),
    )
    task = reader(f"mint:{tmp_path}")
    assert [shown(each)[1:] for each in documents(task)] == [
        ("one", "<10>", "two", "<11>", "<12>", "three"),
        ("<20>", "four", "<21>"),
        ("<30>", "five"),
    ]
    assert task.where("train", 1) == f"{TAR}:1"


_TIFF = ("x.tiff", tiff(1))
FAULTS: dict[str, tuple[list[tuple[str, Any]], str]] = {
    "fewer pages": ([("x.json", document("a", 0, 1)), _TIFF], "pages and images of unequal number"),
    "more pages": ([("x.json", document("a", 0)), ("x.tiff", tiff(1, 2))], "pages and images of unequal number"),
    "no TIFF": ([("x.json", document("a", 0))], "too few images"),
    "no image": ([("x.json", document("a")), _TIFF], "too few images"),
    "no JSON": ([("x.json", b"{"), _TIFF], "no texts of the published form"),
    "two of a key": ([("x.json", document("a", 0)), _TIFF, ("x.json", document("b", 0))], "two files of one name"),
    "unequal lists": ([("x.json", document("a", 0) | {"texts": []}), _TIFF], "texts and images of unequal length"),
    "numbers as images": ([("x.json", document("a", 0) | {"images": [None, 3]}), _TIFF], "no images of the"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_document_are_skipped_where_they_are(tmp_path, fault):
    members, reason = FAULTS[fault]
    before, after = ("a.json", document("before", 0)), ("z.json", document("after", 0))
    write_documents(tmp_path / TAR, before, ("a.tiff", tiff(7)), *members, after, ("z.tiff", tiff(9)))
    task = reader(f"mint:{tmp_path}")
    assert [shown(each)[1:] for each in documents(task)] == [("before", "<7>"), ("after", "<9>")]
    ((where, found),) = faults(task).items()
    assert where == f"{TAR}:1" and found.startswith(reason)


def test_a_damaged_tiff_leaves_holes(tmp_path):
    content = tiff(1, 2, compression="tiff_lzw")
    write_documents(tmp_path / TAR, ("x.json", document("a", 0, "b", 1)), ("x.tiff", content[:-30] + bytes(30)))
    write_documents(tmp_path / "b.tar", ("x.json", document("c", 0)), ("x.tiff", b"<html>"))
    task = reader(f"mint:{tmp_path}", min_images=0)
    reasons = [[reason.partition(":")[0] for reason in each] for each in omitted(task)]
    assert all(each and set(each) == {"unreadable image"} for each in reasons) and len(reasons) == 2


def test_tars_that_are_cut_off(tmp_path):
    members = [(f"{n}.json", document(f"page {n}", 0)) for n in range(3)] + [(f"{n}.tiff", tiff(n)) for n in range(3)]
    write_documents(tmp_path / "a.tar", *members)
    write_documents(tmp_path / "b.tar", ("x.tiff", tiff(1)))
    (tmp_path / "c.tar").write_bytes(b"no tar")
    whole = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        last = archive.getmembers()[-1]
    (tmp_path / "a.tar").write_bytes(whole[: last.offset_data + 10])
    task = reader(f"mint:{tmp_path}")
    assert [shown(each)[1:] for each in documents(task)] == [("page 0", "<0>"), ("page 1", "<1>")]
    assert faults(task) == {"a.tar:2": "too few images"}
    assert task.skipped().by_kind == {
        "tar that is cut off": 1,
        "images without their .json": 1,
        "tar that cannot be read": 1,
    }
    (tmp_path / "a.tar").unlink()
    with pytest.raises(UserError, match=r"holds no parquet files or tars of MINT-1T: 1 x "):
        reader(f"mint:{tmp_path}")


def test_web_pages(tmp_path):
    schema = {"url": pa.string(), "texts": pa.list_(pa.string()), "images": pa.list_(pa.string())}
    rows = [{"url": "p", "texts": [None, "one", None], "images": [url(1), None, url(2)]}]
    write_table(tmp_path / "data_v1_1/a.parquet", rows, schema)
    # The tars beside are of the images.
    write_tars(tmp_path / "data_v1_1")
    task = reader(f"mint:{tmp_path}/data_v1_1")
    assert [shown(each)[1:] for each in documents(task)] == [("<1>", "one", "<2>")]


_MODES = ("RGB", "L", "CMYK", "YCbCr", "1", "RGBA")
_COMPRESSED = [(mode, each) for mode in _MODES for each in (None, "tiff_lzw", "tiff_adobe_deflate")]


@pytest.mark.parametrize(("mode", "compression"), [*_COMPRESSED, *((mode, "jpeg") for mode in _MODES[:4])])
def test_a_page_has_the_pixels_that_it_had(mode, compression):
    content = tiff(200, 40, 120, mode=mode, compression=compression)
    assert num_pages(content) == 3
    with Image.open(io.BytesIO(content)) as file:
        for number in range(3):
            file.seek(number)
            found = decode_image(page_of(content, number), 8, 3)
            np.testing.assert_allclose(found, decode_image(encode_png(np.asarray(file.convert("RGB"))), 8, 3), atol=1)


def test_a_page_stays_turned_as_it_was():
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4] = 255
    pages, buffer = [Image.fromarray(pixels) for _ in range(2)], io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:], tiffinfo={274: 6})
    content = buffer.getvalue()
    np.testing.assert_array_equal(decode_image(page_of(content, 0), 8, 3), decode_image(content, 8, 3))
    assert not (decode_image(content, 8, 3) == pixels).all()
