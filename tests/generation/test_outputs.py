"""The folder of answers: only what a run wrote there ever goes, whatever else it holds, wherever runs are killed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.generation.outputs import FAILURES_FILE, RESULTS_FILE, claimed, write_lines


def answer(index: int, *segments: str) -> dict:
    line = {"index": index, "prompt": "x", "task": "continue" if segments else "text_to_image", "image": None}
    return line | (
        {"segments": ["x", *({"image": n} for n in segments)]} if segments else {"image": f"{index:05d}.png"}
    )


def generate(path, *answers, failures=(), content="new") -> None:
    """What a run of `generate` does with its folder."""
    with claimed(path) as folder, folder.stage() as stage:
        for line in answers:
            for segment in line.get("segments", [{"image": line["image"]}]):
                if isinstance(segment, dict):
                    (stage / segment["image"]).write_text(content)
        for name, lines in ((RESULTS_FILE, answers), (FAILURES_FILE, failures)):
            if lines:
                write_lines(stage / name, lines)


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def tree(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "a" / "out"


def test_a_run_takes_the_place_of_the_one_before(out):
    generate(out, answer(0), answer(1), answer(2, "00002_1.png"), failures=[{"line": 4, "error": "x"}], content="old")
    assert names(out) == {"00000.png", "00001.png", "00002_1.png", RESULTS_FILE, FAILURES_FILE}
    (out / "notes.txt").write_text("mine")
    (out / "00005.jpg").write_text("mine")
    generate(out, answer(100_000), answer(1))
    assert names(out) == {"100000.png", "00001.png", RESULTS_FILE, "notes.txt", "00005.jpg"}
    assert (out / "00001.png").read_text() == "new"
    generate(out, failures=[{"line": 1, "error": "x"}])
    assert names(out) == {FAILURES_FILE, "notes.txt", "00005.jpg"}
    generate(out, answer(0))
    assert names(out) == {"00000.png", RESULTS_FILE, "notes.txt", "00005.jpg"}


@pytest.mark.parametrize(
    "name",
    [
        "00000.png",
        "00000.PNG",
        "00007_2.png",
        "holiday.jpg",
        "config.json",
        "checkpoints/x",
        "prompts.jsonl",
        "123456.png",
    ],
)
def test_a_folder_of_something_else_is_refused_and_left_alone(out, name):
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    with pytest.raises(UserError, match=r"is not empty .* name an empty or a new folder with --output"):
        generate(out, answer(0))
    assert tree(out) == {name: b"mine"}


@pytest.mark.parametrize(
    "name", ["00000.png", "00009.png", "00000.PNG", "00001_3.png", "Generations.jsonl", "failed.jsonl"]
)
def test_beside_answers_a_file_that_could_be_in_their_way_is_refused(out, name):
    generate(out, answer(3))
    (out / name).write_text("mine")
    before = tree(out)
    with pytest.raises(UserError, match="was not written by `generate`"):
        generate(out, answer(0))
    assert tree(out) == before


@pytest.mark.parametrize(
    "image",
    ["../mine.png", "/etc/passwd", "sub/00003.png", "..", "", "mine.png", "00004.png", "00003.png/..", "notes.txt", 7],
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_list_that_names_anything_else_is_not_believed(out, image, nested):
    out.mkdir(parents=True)
    for mine in (out / "mine.png", out.parent / "mine.png", out / "notes.txt"):
        mine.write_text("mine")
    line = answer(3) | ({"image": None, "segments": [{"image": image}]} if nested else {"image": image})
    (out / RESULTS_FILE).write_text(json.dumps(line) + "\n")
    before = tree(out.parent)
    with pytest.raises(UserError, match="is damaged or was not written by `generate`"):
        generate(out, answer(0))
    assert tree(out.parent) == before


@pytest.mark.parametrize("text", ["nonsense\n", "[1]\n", '{"text": "my own"}\n', "\xff", "[" * 100_000])
@pytest.mark.parametrize("name", [RESULTS_FILE, FAILURES_FILE])
def test_a_file_that_only_has_the_name_of_a_list_stays(out, name, text):
    out.mkdir(parents=True)
    (out / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="is damaged or was not written by"):
        generate(out, answer(0))
    assert (out / name).read_bytes() == text.encode("latin-1")


def test_links_are_neither_followed_nor_removed(out, tmp_path):
    generate(out, answer(0), answer(1))
    target = tmp_path / "precious.png"
    target.write_text("mine")
    (out / "00000.png").unlink()
    (out / "00000.png").symlink_to(target)
    with pytest.raises(UserError, match=r"00000.png has a name that a result may take"):
        generate(out, answer(0))
    assert target.read_text() == "mine" and (out / "00000.png").is_symlink()
    (out / "00000.png").unlink()
    (out / RESULTS_FILE).rename(tmp_path / "list")
    (out / RESULTS_FILE).symlink_to(tmp_path / "list")
    with pytest.raises(UserError, match="is damaged or was not written by"):
        generate(out, answer(0))


def test_a_folder_in_the_way_is_no_answer(out):
    generate(out, answer(0))
    (out / "00001.png").mkdir()
    (out / "00001.png" / "mine").write_text("mine")
    with pytest.raises(UserError, match="was not written by `generate`"):
        generate(out, answer(1))
    assert (out / "00001.png" / "mine").read_text() == "mine"


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini", ".nfs000"])
def test_what_desktops_leave_is_no_obstacle(out, name):
    out.mkdir(parents=True)
    (out / name).write_text("x")
    generate(out, answer(0))
    assert names(out) == {name, "00000.png", RESULTS_FILE}


def test_something_that_comes_while_answers_are_made_is_not_overwritten(out):
    with pytest.raises(UserError, match=r"00000.png is there"), claimed(out) as folder, folder.stage() as stage:
        (stage / "00000.png").write_text("new")
        write_lines(stage / RESULTS_FILE, [answer(0)])
        (out / "00000.png").write_text("mine")
    assert tree(out) == {"00000.png": b"mine"}


# Stops after so many renamed, removed and written files, as a kill would.
KILLED = """
import os, sys, pathlib
sys.path.insert(0, {root!r})
from tests.generation.test_outputs import answer, generate
left = int(sys.argv[2])
def counted(function):
    def call(*arguments, **named):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return function(*arguments, **named)
    return call
for name in ("rename", "unlink", "write_text", "replace"):
    setattr(pathlib.Path, name, counted(getattr(pathlib.Path, name)))
generate(pathlib.Path(sys.argv[1]), answer(1), answer(2))
"""


@pytest.mark.slow
def test_a_run_killed_anywhere_leaves_a_folder_that_the_next_one_takes(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(root=str(Path.cwd())))
    codes = []
    for steps in range(40):
        out = tmp_path / str(steps)
        generate(out, answer(0), answer(1), failures=[{"line": 3, "error": "x"}], content="old")
        (out / "notes.txt").write_text("mine")
        codes.append(subprocess.run([sys.executable, script, out, str(steps)], check=False).returncode)
        # A list never names what is not there.
        if (out / RESULTS_FILE).exists():
            named = [json.loads(line)["image"] for line in (out / RESULTS_FILE).read_text().splitlines()]
            assert set(named) <= names(out)
        generate(out, answer(5))
        assert names(out) == {"00005.png", RESULTS_FILE, "notes.txt"}
        if codes[-1] == 0:
            break
    assert codes == [9] * (len(codes) - 1) + [0] and len(codes) > 8


def test_two_runs_at_once(out):
    with claimed(out) as first:
        with pytest.raises(UserError, match=r"is in use by `cm3leon generate` .process"), claimed(out):
            pass
        with first.stage() as stage:
            write_lines(stage / RESULTS_FILE, [answer(0) | {"image": None}])
    generate(out, answer(0))
    assert names(out) == {"00000.png", RESULTS_FILE}


@pytest.mark.parametrize("name", ["file", "file/below", "nul\0", "n" * 300, "loop"])
def test_paths_that_cannot_be_folders(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    with (
        pytest.raises(UserError, match=r"cannot be made or used .*: name another with --output"),
        claimed(tmp_path / name),
    ):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_that_fails_leaves_no_folder_of_its_own(out):
    with pytest.raises(ZeroDivisionError), claimed(out) as folder, folder.stage() as stage:
        (stage / "00000.png").write_text("new")
        1 / 0  # noqa: B018
    assert not out.exists()
    generate(out, answer(0), content="old")
    with pytest.raises(ZeroDivisionError), claimed(out) as folder, folder.stage():
        1 / 0  # noqa: B018
    assert (out / "00000.png").read_text() == "old" and names(out) == {"00000.png", RESULTS_FILE}


def test_which_images_a_run_will_replace(out, tmp_path):
    generate(out, answer(0))
    (out / "mine.png").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "other").symlink_to(out / "00000.png")
    with claimed(out) as folder:
        assert folder.will_replace(out / "00000.png")
        assert folder.will_replace(out / ".." / "out" / "00000.png")
        assert folder.will_replace(tmp_path / "other")
        for name in ("mine.png", "00001.png", "\0", "\ud800", "n" * 300):
            assert not folder.will_replace(out / name)
        assert not folder.will_replace(tmp_path / "loop" / "00000.png")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_json_is_never_written(tmp_path, value):
    with pytest.raises(ValueError, match="JSON"):
        write_lines(tmp_path / "x.jsonl", [{"score": value}])
    assert not list(tmp_path.iterdir())
