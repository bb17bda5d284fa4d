"""A file is whole or absent."""

import os
import threading

import numpy as np
import pytest
import safetensors.numpy

from cm3leon_jax.errors import UserError
from cm3leon_jax.files import atomic_write, read_json, read_object, remove_partial_files, wait_for, write_json


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a" / "file.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("first")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("sec")
        raise RuntimeError
    assert path.read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_json_comes_back_or_is_named(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1, 2.5, "ü"]})
    assert read_json(tmp_path / "x.json", "the thing") == {"a": [1, 2.5, "ü"]}
    with pytest.raises(UserError, match=r"the thing is missing: no file .*y.json"):
        read_json(tmp_path / "y.json", "the thing")
    (tmp_path / "y.json").write_text("{")
    with pytest.raises(UserError, match=r"the thing is damaged: .*y.json"):
        read_json(tmp_path / "y.json", "the thing")


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_files_have_the_mode_that_the_umask_gives(tmp_path, umask):
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "weights") as temporary:
            # Written for its owner alone by the library.
            safetensors.numpy.save_file({"a": np.zeros(2)}, temporary)
        write_json(tmp_path / "x.json", {})
    finally:
        os.umask(before)
    for name in ("weights", "x.json"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b"1" * 5_000, b"{'a': 1}", b'{"a": 1', b"\0"])
def test_what_is_not_json_is_named_in_a_line(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=r"the thing is damaged: .*x.json is not JSON") as refused:
        read_json(tmp_path / "x.json", "the thing")
    assert "\n" not in str(refused.value)


def test_what_is_no_ordinary_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    for name, message in (("pipe", "no ordinary file"), ("folder", "no ordinary file"), ("sparse", "longer than")):
        with pytest.raises(UserError, match=message):
            read_json(tmp_path / name, "the thing")


@pytest.mark.parametrize("value", ["[]", "null", "3", '"a"', "true"])
def test_an_object_is_not_something_else(tmp_path, value):
    (tmp_path / "x.json").write_text(value)
    with pytest.raises(UserError, match=r"the thing is damaged: .* not an object"):
        read_object(tmp_path / "x.json", "the thing")


def test_left_overs_of_killed_processes_are_removed(tmp_path):
    for name in ("a/.file.txt.12.partial", "a/b/.folder.13.partial/inside", "a/file.txt", "a/.hidden"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    remove_partial_files(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {"a", "a/b", "a/file.txt", "a/.hidden"}
    remove_partial_files(tmp_path / "absent")


def test_a_file_of_another_process_is_waited_for(tmp_path):
    threading.Timer(0.2, (tmp_path / "file").touch).start()
    assert wait_for(tmp_path / "file", 20.0).exists()
    with pytest.raises(UserError, match=r"absent was written by another process .* folder that all processes share"):
        wait_for(tmp_path / "absent", 0.1)
