"""Copies of buckets on a disk that is small, and full: what is unused makes room, and nothing half-written stays."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cm3leon_jax import paths
from cm3leon_jax.errors import UserError
from cm3leon_jax.storage import mirror, objects
from tests.storage.servers import forget_stores

SIZE = 6 << 20
FETCH = (
    "import sys; from pathlib import Path; from cm3leon_jax import paths; from cm3leon_jax.storage import mirror\n"
    "folder = Path(paths.local(sys.argv[1], 'x')); mirror.refresh(folder); mirror.fetch_arrays([folder / 'x.npy'])"
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def objects_there(root, disk, monkeypatch) -> str:
    """Three objects of which two fit on the disk, where the copies are."""
    for name in ("a", "b", "c"):
        objects.write_object_bytes(f"{root}/{name}/x.npy", name.encode() * SIZE)
    monkeypatch.setenv("CM3LEON_CACHE", str(disk / "cache"))
    forget_stores()
    return root


def copy_of(address: str) -> Path:
    return Path(paths.local(address, "--workdir"))


def fetched_elsewhere(address: str) -> None:
    """Another process copies an object, and ends."""
    subprocess.run([sys.executable, "-c", FETCH, address], check=True)


def copies(root: str) -> list[str]:
    return [name for name in ("a", "b", "c") if (copy_of(root) / name / "x.npy").exists()]


def partial_files(folder: Path) -> list[Path]:
    return list(folder.rglob("*.partial"))


@pytest.mark.slow
def test_the_longest_unused_copies_make_room(objects_there, disk):
    for name, kept in (("a", ["a"]), ("b", ["a", "b"]), ("a", ["a", "b"]), ("c", ["a", "c"])):
        fetched_elsewhere(f"{objects_there}/{name}")
        assert copies(objects_there) == kept
    assert (copy_of(objects_there) / "c/x.npy").read_bytes() == b"c" * SIZE
    # What others put there is not touched.
    (disk / "mine").write_bytes(bytes(2 << 20))
    fetched_elsewhere(f"{objects_there}/b")
    assert ((disk / "mine").exists() and copies(objects_there) == ["b"]) or copies(objects_there) == ["b", "c"]
    assert partial_files(disk) == []


def test_what_does_not_fit_is_one_line_and_leaves_nothing(objects_there, disk):
    for name in ("a", "b"):
        folder = copy_of(f"{objects_there}/{name}")
        mirror.refresh(folder)
        mirror.fetch_arrays([folder / "x.npy"])
    third = copy_of(f"{objects_there}/c")
    mirror.refresh(third)
    with pytest.raises(UserError, match=r"need 0\.0\d GB more than they may take: .*free some of the disk") as refused:
        mirror.fetch_arrays([third / "x.npy"])
    assert "\n" not in str(refused.value)
    assert copies(objects_there) == ["a", "b"] and partial_files(disk) == []


def test_a_disk_that_is_filled_while_an_object_comes_is_no_fault_of_the_store(objects_there, disk, monkeypatch):
    """Room is made again, once; the store is not asked for minutes."""
    (disk / "others").write_bytes(bytes(12 << 20))
    calls = []

    def room(size):
        calls.append(size)
        if len(calls) == 2:
            (disk / "others").unlink()

    monkeypatch.setattr(mirror, "make_room", room)
    monkeypatch.setattr(objects, "_TRIES", 1)
    folder = copy_of(f"{objects_there}/a")
    mirror.refresh(folder)
    mirror.fetch_arrays([folder / "x.npy"])
    assert calls == [SIZE, SIZE] and (folder / "x.npy").read_bytes() == b"a" * SIZE
    # Where it stays full, that is what is said.
    (disk / "others").write_bytes(bytes(5 << 20))
    second = copy_of(f"{objects_there}/b")
    mirror.refresh(second)
    with pytest.raises(OSError) as refused:
        mirror.fetch_arrays([second / "x.npy"])
    assert refused.value.errno == errno.ENOSPC
    assert copies(objects_there) == ["a"] and partial_files(disk) == []


@pytest.mark.slow
def test_a_command_says_in_a_line_that_the_disk_is_full(objects_there, disk):
    objects.write_object_bytes(f"{objects_there}/run/config.json", b"{" + b" " * (20 << 20) + b"}")
    command = ["train", f"--config={objects_there}/run/config.json"]
    ended = subprocess.run(
        [sys.executable, "-m", "cm3leon_jax", *command], capture_output=True, text=True, env=os.environ
    )
    assert ended.returncode == 2, ended.stderr
    (line,) = (each for each in ended.stderr.splitlines() if each.startswith("cm3leon train:"))
    assert "free some of the disk" in line and "Traceback" not in ended.stderr
    assert partial_files(disk) == []
