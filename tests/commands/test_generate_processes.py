"""Generation by several processes: the same bytes as by one, and a mistake is one line."""

import json

import pytest

from tests import launched
from tests.commands.test_generate import ALL_TASKS


@pytest.mark.slow
def test_two_processes_write_what_one_does(saved_run):
    folder, lines = saved_run.parent, (ALL_TASKS[0], ALL_TASKS[1], ALL_TASKS[3], {"promt": 1})
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["generate", f"--config={saved_run}/config.json", f"--prompts={folder}/prompts.jsonl", "--samples=2"]
    arguments += ["--config.sampling.candidates=3", "--config.sampling.scorer=caption"]
    started = launched.start([*arguments, f"--output={folder}/two"], processes=2)
    found = launched.ended(started, seconds=480)
    assert [code for code, _ in found] == [2, 2], found
    assert "6 samples of the checkpoint of step 3" in found[0][1] and "1 of 4 records" in found[0][1]
    assert "samples of" not in found[1][1] and "records" not in found[1][1]
    launched.ended(launched.start([*arguments, f"--output={folder}/one"], devices=2), seconds=480)
    one, two = launched.files_below(folder / "one"), launched.files_below(folder / "two")
    assert {"generations.jsonl", "failed.jsonl", "00000.png"} <= one.keys()
    assert one == two


@pytest.mark.slow
def test_a_folder_that_is_refused_is_refused_to_both(saved_run, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    arguments = ["generate", f"--config={saved_run}/config.json", "--prompt=zero", f"--output={tmp_path}"]
    found = launched.ended(launched.start(arguments, processes=2), seconds=480)
    assert [code for code, _ in found] == [2, 2], found
    assert "is not empty" in found[0][1] and "refused to process 0" in found[1][1]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
