"""Paths that users give, and what the system says against one."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax import paths
from cm3leon_jax.errors import UserError


@pytest.mark.parametrize("scheme", ["hdfs", "file", "https", "S3"])
def test_schemes_are_refused(scheme):
    with pytest.raises(
        UserError, match=rf"^--output={scheme}://b/x: {scheme}:// is not supported, gs:// and s3:// are: mount"
    ):
        paths.local(f"{scheme}://b/x", "--output")


def test_a_home_folder_is_written_out(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert paths.local("~/x", "--output") == "/home/me/x"
    assert paths.local("a~/x", "--output") == "a~/x"


@settings(deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
def test_other_text_is_kept_as_it_is_or_is_a_mistake(text):
    try:
        assert paths.local(text, "--output") == text or text.startswith("~")
    except UserError:
        assert not text.strip() or "://" in text or text.startswith("~")


@settings(deadline=None)
@given(text=st.one_of(st.text(), st.binary().map(os.fsdecode)))
def test_any_text_is_a_folder_that_can_be_written_or_one_line(text):
    try:
        folder = Path(paths.local(text, "--output"))
        paths.writable_folder(folder, "--output")
    except UserError as error:
        assert str(error).startswith("--output") and "\n" not in str(error)


def test_looking_leaves_nothing_behind(tmp_path):
    for folder in (tmp_path, tmp_path / "a" / "b"):
        assert paths.writable_folder(folder, "--output") == folder
    assert not list(tmp_path.iterdir())


def odd_places(tmp_path: Path) -> dict[str, Path]:
    """Places that cannot be written, by what the system says; root may write what its permissions forbid."""
    file = tmp_path / "file"
    file.touch()
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    return {
        "Not a directory": file,
        "Not a directory;": file / "x" / "y",
        "No such file": Path("/proc/cm3leon/x"),
        "Operation not permitted|Permission denied|Read-only": Path("/sys/cm3leon"),
        "File name too long": tmp_path / ("x" * 300) / "y",
        "too long": Path("x/" * 3000),
        "File exists|Too many levels|symbolic": loop / "x",
    }


@pytest.mark.parametrize("place", range(7))
def test_a_folder_that_cannot_be_written(tmp_path, place):
    said, folder = list(odd_places(tmp_path).items())[place]
    with pytest.raises(UserError, match=rf"(?s)^--output=.* cannot be written: .*({said}).*; ") as caught:
        paths.output_folder("--output")(str(folder))
    assert "partial" not in str(caught.value)


def test_a_file_to_be_written(tmp_path):
    assert paths.output_file("--json")(str(tmp_path / "new" / "plan.json")) == tmp_path / "new" / "plan.json"
    with pytest.raises(UserError, match=r"--json=.*Is a directory; a folder is where a file has to be"):
        paths.output_file("--json")(str(tmp_path))


@pytest.mark.parametrize("number", sorted(paths._REMEDIES))
def test_what_the_system_says_names_the_path_and_helps(number):
    said = paths.refusal(OSError(number, os.strerror(number), "/data/.tokenizer.json.4711.partial"))
    assert said.startswith(f"/data/tokenizer.json: {os.strerror(number)}; ")
    assert paths.refusal(OSError(number, os.strerror(number))) is None


def test_only_the_cause_of_an_error_speaks_for_it():
    def raised(cause: OSError | None) -> Exception:
        try:
            try:
                raise OSError(errno.ENOENT, "none", "/a")
            except OSError:
                raise KeyError("x") from cause
        except KeyError as error:
            return error

    assert paths.refusal(raised(None)) is None
    assert paths.refusal(raised(OSError(errno.EACCES, "", "/b"))).startswith("/b: Permission denied")
