"""GRIT as img2dataset downloads it, and its faults."""

import pyarrow as pa
import pytest

from cm3leon_jax.errors import UserError
from tests.data.sources.published import documents, opened, png, shown, write_images, write_table, write_tar

SPANS = pa.list_(pa.list_(pa.float64()))
SCHEMA = {
    **{"id": pa.int64(), "url": pa.string(), "caption": pa.string(), "key": pa.string(), "status": pa.string()},
    **{"width": pa.int64(), "height": pa.int64(), "noun_chunks": SPANS, "ref_exps": SPANS},
}
CAPTION = "a fox with a red hat"


def row(key: str, *ref_exps: list, **other) -> dict:
    found = {"id": 1, "url": "u", "caption": CAPTION, "key": key, "status": "success", "width": 64, "height": 32}
    return found | {"noun_chunks": [[11, 20, 0.5, 0.0, 0.75, 0.5, 0.9]], "ref_exps": list(ref_exps)} | other


ROWS = [
    row("000000000", [0, 20, 0.25, 0.0, 0.75, 1.0, 0.98], [11, 20, 0.5, 0.25, 0.6, 1.5, 0.9]),
    row("000000001", status="failed_to_download", width=None, height=None),
    row("000000002"),
    row("000000003", [0, 5, 0.9, 0.0, 0.99, 1.0, 0.9]),
    row("000000004"),
    row("000000005", [0, 5]),
    row("000000004", [0, float("nan"), 0, 0, 1, 1, 1]),
    row("000000006", noun_chunks=None, ref_exps=None),
]
EXPECTED = [
    (
        "objects",
        CAPTION,
        "a fox with a red hat at location (0, 0) -> (16, 16), a red hat at location (8, 4) -> (11, 16)",
        "<0>",
    ),
    ("objects", CAPTION, "a red hat at location (8, 0) -> (16, 8)", "<2>"),
]
SKIPPED = {
    "image that was not downloaded": 1,
    "no object in view": 2,
    "missing image": 1,
    "no ref_exps of the published form": 2,
}


def test_files(tmp_path):
    write_table(tmp_path / "00000.parquet", ROWS, SCHEMA)
    write_images(tmp_path, *(f"00000/{number:09d}.jpg" for number in range(4)), width=64, height=32)
    task = opened(f"grit:{tmp_path}", resolution=16)
    assert sorted(shown(each) for each in documents(task)) == EXPECTED
    assert task.skipped().by_kind == SKIPPED and task.skipped().num_documents == 5


def test_tars(tmp_path):
    write_table(tmp_path / "00000.parquet", ROWS, SCHEMA)
    # Members come in the order in which they were downloaded.
    contents = [[(".txt", CAPTION.encode()), (".jpg", png(number, 64, 32))] for number in range(4)]
    members = [(f"{number:09d}{suffix}", content) for number in (3, 2, 0) for suffix, content in contents[number]]
    write_tar(tmp_path / "00000.tar", members)
    task = opened(f"grit:{tmp_path}", resolution=16)
    assert sorted(shown(each) for each in documents(task)) == EXPECTED
    assert task.skipped().by_kind == SKIPPED
    whole = (tmp_path / "00000.tar").read_bytes()
    (tmp_path / "00000.tar").write_bytes(whole[:3000])
    with pytest.raises(
        UserError, match=r"no examples \(3 x missing image.*1 x tar that is cut off: 00000.tar, byte 3072"
    ):
        opened(f"grit:{tmp_path}", resolution=16)
    (tmp_path / "00000.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(UserError, match=r"1 x tar that cannot be read: 00000.tar"):
        opened(f"grit:{tmp_path}", resolution=16)


def test_another_form_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"holds no parquet files of GRIT, downloaded: there is no .parquet file"):
        opened(f"grit:{tmp_path}", resolution=16)
    write_table(tmp_path / "00000.parquet", [{"url": "u"}], {"url": pa.string()})
    with pytest.raises(UserError, match=r"has no column key: parquet files of GRIT, downloaded has key, caption"):
        opened(f"grit:{tmp_path}", resolution=16)
