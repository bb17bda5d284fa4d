"""OmniCorpus as published, whose lists may be shorter or hold two things at an index."""

import pyarrow as pa

from tests.data.sources.published import documents, faults, shown, write_table
from tests.data.sources.test_interleaved import reader, url, write_tars

SCHEMA = {
    "general_metadata": pa.struct([("id", pa.string()), ("url", pa.string())]),
    "images": pa.list_(pa.string()),
    "texts": pa.list_(pa.string()),
    "metadata": pa.list_(pa.struct([("alt_text", pa.string()), ("unformatted_src", pa.string())])),
}


def row(images, texts) -> dict:
    images = images and [url(each) if isinstance(each, int) else each for each in images]
    metadata = images and [None if each is None else {"alt_text": "", "unformatted_src": each} for each in images]
    general = {"id": "CC-MAIN-2016-26", "url": "https://pages.org"}
    return {"general_metadata": general, "images": images, "texts": texts, "metadata": metadata}


def test_documents_as_published(tmp_path):
    write_tars(tmp_path / "data/images")
    rows = [
        row([None, 1, None, 2], ["one", None, "two", None]),
        row([3], [None, "four"]),
        row([None, 4], ["five"]),
        row([1, 2], ["beside the first", "beside the second"]),
        row([None, 9, "", 5], ["", "six", None, None]),
        row(None, ["seven"]),
        row([], []),
    ]
    write_table(tmp_path / "data/CC-MAIN-2016-26/shard_0.parquet", rows, SCHEMA)
    task = reader(f"omnicorpus:{tmp_path}/data")
    assert [shown(each)[1:] for each in documents(task)] == [
        ("one", "<1>", "two", "<2>"),
        ("<3>", "four"),
        ("five", "<4>"),
        ("<1>", "beside the first", "<2>", "beside the second"),
        ("six", "<5>"),
    ]
    file = "CC-MAIN-2016-26/shard_0.parquet"
    assert faults(task) == {f"{file}:5": "no images of the published form", f"{file}:6": "too few images"}
    assert documents(task)[4].omitted == ("missing image", "missing image")
