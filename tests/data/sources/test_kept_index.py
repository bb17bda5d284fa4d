"""What was found in tars, TFRecord files and tables is kept beside the corpus, and is what a search would find."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.curation.config import CurationConfig
from cm3leon_jax.data.sources import annotated, parquet, tfrecord, webdataset
from cm3leon_jax.data.sources.config import FolderConfig, RowsConfig
from cm3leon_jax.data.sources.registry import named_source
from tests.data.sources.published import IMAGE, cell, png, write_images, write_json, write_table, write_tar
from tests.data.sources.test_tfrecord import downloaded, write


@pytest.fixture
def searched(monkeypatch) -> list[str]:
    """The files that were searched, in their order."""
    found = list[str]()

    def noting(function):
        def searching(path, *rest):
            found.append(Path(getattr(path, "name", path)).name)
            return function(path, *rest)

        return searching

    monkeypatch.setattr(webdataset, "read_members", noting(webdataset.read_members))
    monkeypatch.setattr(tfrecord, "TFRecordFile", noting(tfrecord.TFRecordFile))
    monkeypatch.setattr(parquet, "open_table", noting(parquet.open_table))
    return found


def tars(folder: Path, count: int = 3) -> None:
    for number in range(count):
        samples = [(f"{number}{n}", png(10 * number + n), f"fox {number}{n}".encode()) for n in range(4)]
        members = [(f"{key}.png", image) for key, image, _ in samples] + [
            (f"{key}.txt", text) for key, _, text in samples
        ]
        # One that is skipped.
        write_tar(folder / f"{number}.tar", [*members, ("alone.txt", b"no image")])


def config(tmp_path: Path, kind: str = "webdataset", **more) -> CorpusConfig:
    folder = FolderConfig(held_out_fraction=0.2)
    return CorpusConfig(path=f"{tmp_path}/corpus", mixture=f"{kind}:{tmp_path}/data", folder=folder, **more)


def state(corpus: CorpusConfig):
    """All that a corpus depends on."""
    source = named_source(corpus)
    index = source.index
    examples = {split: [index.example(split, n) for n in range(len(found))] for split, found in index.splits.items()}
    return examples, index.skipped, index.files, source.provenance()


def kept(tmp_path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (tmp_path / "corpus/index").iterdir()}


def test_no_file_is_searched_twice(tmp_path, searched):
    tars(tmp_path / "data")
    write_tar(tmp_path / "data/empty.tar", [("a.txt", b"no image")])
    corpus = config(tmp_path)
    without = state(replace(corpus, path="{workdir}/corpus"))
    assert searched == ["0.tar", "1.tar", "2.tar", "empty.tar"] and not (tmp_path / "corpus").exists()
    first = state(corpus)
    assert len(searched) == 8
    assert state(corpus) == first == without
    assert len(searched) == 8 and len(kept(tmp_path)) == 4
    assert first[1].by_kind == {"key without an image": 4}


@pytest.mark.parametrize("kind", ["tfrecord", "parquet"])
def test_records_and_tables(tmp_path, searched, kind):
    for number in range(2):
        write(tmp_path / f"data/{number}.tfrecord", downloaded(number), {"jpg": png(7), "txt": ""})
        rows = [{"image": cell(number), "text": "fox"}, {"image": None, "text": "hare"}]
        write_table(tmp_path / f"data/{number}.parquet", rows, {"image": IMAGE, "text": "string"})
    first = state(config(tmp_path, kind))
    assert len(searched) == 2 and first[1].by_kind.total() == 2
    assert state(config(tmp_path, kind)) == first and len(searched) == 2


def test_what_was_changed_is_searched_again_and_nothing_else(tmp_path, searched):
    tars(tmp_path / "data")
    state(config(tmp_path))
    searched.clear()
    os.utime(tmp_path / "data/1.tar", (5, 5))
    state(config(tmp_path))
    assert searched == ["1.tar"]
    write_tar(tmp_path / "data/2.tar", [("new.png", png(99)), ("new.txt", b"an elk")])
    write_tar(tmp_path / "data/3.tar", [("newer.png", png(98)), ("newer.txt", b"an owl")])
    found = state(config(tmp_path))
    assert searched == ["1.tar", "2.tar", "3.tar"]
    assert found == state(replace(config(tmp_path), path=""))


@pytest.mark.parametrize(
    "change",
    [
        {"rows": RowsConfig(captions="first")},
        {"curation": CurationConfig(at_least={"score": 1.0})},
        {"folder": FolderConfig(caption_line="first")},
    ],
)
def test_what_is_read_otherwise_is_searched_again(tmp_path, searched, change):
    for number in range(2):
        members = [("a.png", png(number)), ("a.txt", b"fox\nhare"), ("a.json", b'{"score": 2}')]
        write_tar(tmp_path / f"data/{number}.tar", members)
    state(config(tmp_path))
    searched.clear()
    assert state(replace(config(tmp_path), **change)) == state(replace(config(tmp_path), path="", **change))
    assert searched == ["0.tar", "1.tar"] * 2
    # Splits are made each time.
    searched.clear()
    state(replace(config(tmp_path), folder=FolderConfig(held_out_fraction=0.5)))
    assert searched == []


@pytest.mark.parametrize("damage", [b"", b"no gzip", "cut", "flip"])
def test_a_damaged_file_is_made_again(tmp_path, searched, damage):
    tars(tmp_path / "data")
    first, whole = state(config(tmp_path)), kept(tmp_path)
    file = next((tmp_path / "corpus/index").iterdir())
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 255
    file.write_bytes(content[:-3] if damage == "cut" else content if damage == "flip" else damage)
    searched.clear()
    assert state(config(tmp_path)) == first
    assert len(searched) == 1 and kept(tmp_path) == whole


def test_the_bytes_that_are_kept_depend_on_the_files_alone(tmp_path):
    tars(tmp_path / "data")
    state(config(tmp_path))
    state(replace(config(tmp_path), path=str(tmp_path / "other/corpus")))
    assert kept(tmp_path) == kept(tmp_path / "other") != {}


def test_where_nothing_can_be_kept_sources_are_searched_each_time(tmp_path, searched):
    tars(tmp_path / "data")
    (tmp_path / "corpus").write_text("a file")
    assert state(config(tmp_path)) == state(config(tmp_path))
    assert len(searched) == 6


def test_a_search_that_is_interrupted_keeps_what_is_whole(tmp_path, searched, monkeypatch):
    tars(tmp_path / "data")
    whole = webdataset.read_members

    def failing(path):
        if path.name == "2.tar":
            raise KeyboardInterrupt
        return whole(path)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(webdataset, "read_members", failing)
        state(config(tmp_path))
    assert len(kept(tmp_path)) == 2
    searched.clear()
    assert state(config(tmp_path)) == state(replace(config(tmp_path), path=""))
    assert searched == ["2.tar", "0.tar", "1.tar", "2.tar"]


def test_files_whose_images_are_elsewhere_are_looked_up_each_time(tmp_path):
    write_images(tmp_path / "data", "0.png", "1.png")
    rows = [{"image": f"{number}.png", "text": "fox"} for number in range(2)]
    write_table(tmp_path / "data/a.parquet", rows, {"image": "string", "text": "string"})
    assert len(state(config(tmp_path, "parquet"))[0]["train"]) >= 1
    assert not (tmp_path / "corpus").exists()
    (tmp_path / "data/0.png").unlink()
    assert state(config(tmp_path, "parquet"))[1].by_kind == {"missing image": 1}
    write_json(tmp_path / "data/list.jsonl", {"image": "1.png", "text": "fox"})
    state(config(tmp_path, "jsonl"))
    assert not (tmp_path / "corpus").exists()


def test_processes_find_the_files_together(tmp_path, searched, monkeypatch):
    tars(tmp_path / "data", 4)
    alone = state(replace(config(tmp_path), path=""))
    searched.clear()
    monkeypatch.setattr(annotated, "has_joined", lambda: True)
    monkeypatch.setattr(annotated.jax, "process_count", lambda: 2)
    monkeypatch.setattr(annotated.jax, "process_index", lambda: 1)
    assert state(config(tmp_path)) == alone
    assert searched == ["2.tar", "3.tar", "0.tar", "1.tar"]
    searched.clear()
    assert state(config(tmp_path)) == alone and searched == []
