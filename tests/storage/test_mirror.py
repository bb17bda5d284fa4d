"""Local copies of buckets, against real stores."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cm3leon_jax import files, paths
from cm3leon_jax.errors import UserError
from cm3leon_jax.storage import mirror, objects
from tests.storage.servers import forget_stores


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Goes to another host: an empty cache, and nothing known of the bucket."""

    def go(name: str) -> None:
        monkeypatch.setenv("CM3LEON_CACHE", str(tmp_path / name))
        forget_stores()

    return go


def copy_of(root: str) -> Path:
    return Path(paths.local(root, "--workdir"))


def test_what_one_host_writes_another_reads(root, elsewhere):
    folder = copy_of(root)
    files.write_json(folder / "a" / "record.json", {"x": 1})
    with files.atomic_write(folder / "tokens-00000.bin") as temporary:
        temporary.write_bytes(b"tokens")
    assert sorted(objects.list_objects(root)) == ["a/record.json", "tokens-00000.bin"]
    elsewhere("second")
    other = copy_of(root)
    assert other != folder and not other.exists()
    mirror.refresh(other)
    assert files.read_json(other / "a" / "record.json", "it") == {"x": 1}
    # An array is there, and comes when it is opened.
    assert files.size_of(other / "tokens-00000.bin") == 6 and not (other / "tokens-00000.bin").exists()
    mirror.fetch_arrays([other / "tokens-00000.bin"])
    assert (other / "tokens-00000.bin").read_bytes() == b"tokens"
    assert files.size_of(other / "absent.npy") is None


def test_a_copy_follows_its_object(root, elsewhere):
    first = copy_of(root)
    for name in ("kept", "changed", "deleted"):
        files.write_json(first / f"{name}.json", name)
    elsewhere("second")
    second = copy_of(root)
    mirror.refresh(second)
    kept = (second / "kept.json").stat()
    elsewhere("cache")
    files.write_json(first / "changed.json", "again")
    files.remove(first / "deleted.json")
    elsewhere("second")
    # What was changed here alone gives way to what is stored.
    (second / "stray.json").write_text("{}")
    time.sleep(0.02)
    mirror.refresh(second)
    assert files.read_json(second / "changed.json", "it") == "again"
    assert sorted(path.name for path in second.iterdir()) == ["changed.json", "kept.json"]
    assert (second / "kept.json").stat() == kept
    (second / "kept.json").write_text('"tampered"')
    mirror.refresh(second)
    assert files.read_json(second / "kept.json", "it") == "kept"


def test_folders_of_runs_are_not_copied_whole(root):
    folder = copy_of(root)
    for name in ("config.json", "corpus/manifest.json", "checkpoints/5/x", "tensorboard/events"):
        with files.atomic_write(folder / name) as temporary:
            temporary.write_text(name)
    shutil.rmtree(folder)
    mirror.refresh(folder, whole=False)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == [
        "checkpoints",
        "config.json",
        "tensorboard",
    ]


def test_a_single_object_is_copied(root):
    objects.write_object_bytes(f"{root}/a/prompts.jsonl", b"{}")
    file = paths.input_path("--prompts")(f"{root}/a/prompts.jsonl")
    assert file.read_bytes() == b"{}"
    assert not paths.input_path("--prompts")(f"{root}/a/others.jsonl").exists()


def test_moving_and_deleting(root):
    folder = copy_of(root)
    files.write_json(folder / "a.json", 1)
    (folder / "b").mkdir()
    files.move(folder / "a.json", folder / "b" / "c.json")
    assert list(objects.list_objects(root)) == ["b/c.json"]
    files.remove_folder(folder / "b")
    assert objects.list_objects(root) == {} and not (folder / "b").exists()
    files.remove(folder / "absent.json")


def test_a_folder_is_seen_whole_or_not_at_all(root, elsewhere, monkeypatch):
    folder = copy_of(root) / "export"

    def written() -> None:
        with files.atomic_write_folder(folder) as temporary:
            for name in ("config.json", "model.safetensors"):
                (temporary / name).write_text(name)

    with monkeypatch.context() as patch:
        sent: list[Path] = []

        def breaks(file, address, upload=objects.upload):
            if sent:
                raise KeyboardInterrupt
            sent.append(file)
            return upload(file, address)

        patch.setattr(mirror, "upload", breaks)
        with pytest.raises(KeyboardInterrupt):
            written()
    elsewhere("second")
    mirror.refresh(copy_of(root) / "export")
    assert not (copy_of(root) / "export").exists()
    elsewhere("cache")
    written()
    assert sorted(objects.list_objects(root)) == ["export/config.json", "export/model.safetensors"]
    elsewhere("second")
    mirror.refresh(copy_of(root) / "export")
    assert (copy_of(root) / "export" / "config.json").read_text() == "config.json"


@pytest.mark.slow
def test_of_a_folder_that_is_written_file_by_file_nothing_is_seen_before_it_is_whole(root):
    with files.atomic_write_folder(copy_of(root) / "export") as folder:
        files.write_json(folder / "config.json", {})
        (folder / "image_tokenizer").mkdir()
        files.write_json(folder / "image_tokenizer" / "config.json", {})
        assert list(objects.list_objects(root)) == []
    assert sorted(objects.list_objects(root)) == ["export/config.json", "export/image_tokenizer/config.json"]


def test_lists_are_paged(root):
    names = [f"{number:04d}.json" for number in range(1100)]
    folder = copy_of(root)
    folder.mkdir(parents=True)
    (folder / "one").write_text("{}")
    for _ in objects.in_threads(lambda name: objects.write_object_bytes(f"{root}/{name}", b"{}"), names):
        pass
    assert sorted(objects.list_objects(root)) == names


def test_only_one_creates_an_object(root):
    assert objects.create_object(f"{root}/x", b"1")
    assert not objects.create_object(f"{root}/x", b"2")
    # Of a try whose answer was lost.
    assert objects.create_object(f"{root}/x", b"1")
    assert objects.read_object_bytes(f"{root}/x") == b"1"
    objects.delete_object(f"{root}/x")
    objects.delete_object(f"{root}/x")
    assert objects.read_object_bytes(f"{root}/x") is None


def test_a_bucket_that_is_not_there(cache):
    for scheme in ("gs", "s3"):
        folder = Path(paths.local(f"{scheme}://nowhere/run", "--workdir"))
        mirror.refresh(folder)
        with pytest.raises(UserError, match=f"^{scheme}://nowhere/run/x.json cannot be written: no bucket"):
            files.write_json(folder / "x.json", 1)
        with pytest.raises(UserError, match="no bucket"):
            paths.writable_folder(folder, "--workdir")


@pytest.mark.slow
def test_what_is_unused_makes_room(root, elsewhere, monkeypatch):
    for name in ("old", "new"):
        with files.atomic_write(copy_of(root) / name / "x.npy") as temporary:
            temporary.write_bytes(bytes(600_000))
    fetch = (
        "import sys; from pathlib import Path; from cm3leon_jax import paths; from cm3leon_jax.storage import mirror\n"
        "folder = Path(paths.local(sys.argv[1], 'x')); mirror.refresh(folder); mirror.fetch_arrays([folder / 'x.npy'])"
    )
    elsewhere("second")
    monkeypatch.setenv("CM3LEON_CACHE_GB", "0.001")
    for name in ("old", "new"):
        subprocess.run([sys.executable, "-c", fetch, f"{root}/{name}"], check=True)
        assert (copy_of(root) / name / "x.npy").exists()
    assert not (copy_of(root) / "old" / "x.npy").exists()
    # What this process uses stays, and then it does not fit.
    mirror.refresh(copy_of(root) / "new")
    mirror.refresh(copy_of(root) / "old")
    with pytest.raises(UserError, match=r"need 0\.00 GB more than they may take: raise CM3LEON_CACHE_GB"):
        mirror.fetch_arrays([copy_of(root) / "old" / "x.npy"])
