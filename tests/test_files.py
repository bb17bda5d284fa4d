"""A file is whole or absent."""

import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.files import read_json, replacing, write_json


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
