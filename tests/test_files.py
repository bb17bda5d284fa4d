"""A file is whole or absent."""

import threading

import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.files import read_json, remove_left_overs, replacing, wait_for, write_json


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("first")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
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


def test_left_overs_of_killed_processes_are_removed(tmp_path):
    for name in ("a/.file.txt.12.partial", "a/b/.folder.13.partial/inside", "a/file.txt", "a/.hidden"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    remove_left_overs(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {"a", "a/b", "a/file.txt", "a/.hidden"}
    remove_left_overs(tmp_path / "absent")


def test_a_file_of_another_process_is_waited_for(tmp_path):
    threading.Timer(0.2, (tmp_path / "file").touch).start()
    assert wait_for(tmp_path / "file", 20.0).exists()
    with pytest.raises(UserError, match=r"absent was written by another process .* folder that all processes share"):
        wait_for(tmp_path / "absent", 0.1)
