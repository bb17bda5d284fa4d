"""Sources of captioned images in buckets give the documents that they give on a disk."""

from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.sources import webdataset
from cm3leon_jax.data.sources.config import FolderConfig
from cm3leon_jax.data.sources.registry import named_source
from cm3leon_jax.paths import local
from cm3leon_jax.storage import objects
from tests.data.sources.published import documents, opened, png, shown, write_tar
from tests.data.sources.test_tfrecord import downloaded, write


def put(folder, address):
    for file in folder.rglob("*"):
        if file.is_file():
            objects.write_object_bytes(f"{address}/{file.relative_to(folder)}", file.read_bytes())


def test_records_and_tars(root, tmp_path):
    write(tmp_path / "set/0.tfrecord", downloaded(0), downloaded(1, "hare"))
    write_tar(tmp_path / "set/1.tar", [("a.png", png(2)), ("a.txt", b"an elk")])
    put(tmp_path / "set", f"{root}/set")
    for kind, expected in (("tfrecord", [("fox", "<0>"), ("hare", "<1>")]), ("webdataset", [("an elk", "<2>")])):
        assert [shown(each)[1:] for each in documents(opened(f"{kind}:{root}/set"))] == expected


def test_what_one_host_found_the_others_do_not_search(root, tmp_path, monkeypatch):
    write_tar(tmp_path / "set/0.tar", [("a.png", png(2)), ("a.txt", b"an elk")])
    put(tmp_path / "set", f"{root}/set")
    folder = FolderConfig(held_out_fraction=0.0)
    for host in range(2):
        monkeypatch.setenv("CM3LEON_CACHE", str(tmp_path / f"host{host}"))
        path = local(f"{root}/run/corpus", "config.corpus.path")
        source = named_source(CorpusConfig(path=path, mixture=f"webdataset:{root}/set", folder=folder))
        assert source is not None
        assert source.provenance()["examples"].startswith("1 train")
        assert len(objects.list_objects(f"{root}/run/corpus/index")) == 1
        monkeypatch.setattr(webdataset, "read_members", None)
