"""The comparison of benchmarks/yardstick.py: no difference is missed, and names alone are none."""

import copy
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from yardstick import main, stages_to_run
from yardstick_comparison import Explanations, compared
from yardstick_product import STAGES, Stage

SEEDS = range(8)


def random_rows(rng: np.random.Generator) -> dict:
    """Losses by step, sums of files, texts."""
    losses = {key: {str(step): float(rng.normal()) for step in range(1, 12)} for key in ("loss", "loss_image")}
    files = {f"task/train/{name}.bin": {"bytes": rng.bytes(8).hex()} for name in ("neighbours", "tokens")}
    texts = {"text": {f"{i}.0": "é" * int(rng.integers(3)) for i in range(4)}, "score": {"0": None, "1": math.nan}}
    return {"metrics": losses, "files": files, "answers": texts}


def results(old: dict, new: dict, **explanations: dict) -> dict[str, str]:
    return {each.row: each.result for each in compared(old, new, Explanations(**explanations))}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_record_is_equal_to_itself_from_a_file(seed):
    rows = random_rows(np.random.default_rng(seed))
    assert set(results(rows, json.loads(json.dumps(rows))).values()) == {"equal"}


@pytest.mark.parametrize("seed", SEEDS)
def test_any_change_of_any_value_is_found(seed):
    rng = np.random.default_rng(seed)
    rows = random_rows(rng)
    for row, columns in rows.items():
        for key, column in columns.items():
            for position, value in column.items():
                last_bit = value if not isinstance(value, float) else float(np.nextafter(value, np.inf))
                changes = [last_bit if last_bit == last_bit and last_bit != value else "another", True]
                for changed in (*changes, ...):
                    new = copy.deepcopy(rows)
                    if changed is ...:
                        del new[row][key][position]
                    else:
                        new[row][key][position] = changed
                    for verdicts in (compared(rows, new, Explanations()), compared(new, rows, Explanations())):
                        (found,) = (each for each in verdicts if each.result != "equal")
                        assert (found.row, found.result) == (row, "differs")
                        assert found.first.startswith(f"{key} at {position}: ")
                        assert found.first.endswith("(1 differ)")


def test_the_first_difference_is_that_of_the_first_step_and_the_largest_is_relative():
    old = random_rows(np.random.default_rng(0))
    new = copy.deepcopy(old)
    new["metrics"]["loss"]["7"] *= 1.5
    new["metrics"]["loss_image"]["3"] *= 1 + 1e-6
    verdict = compared(old, new, Explanations())[0]
    assert verdict.first.startswith("loss_image at 3: ")
    assert verdict.largest_relative == pytest.approx(0.5)


@pytest.mark.parametrize("seed", SEEDS)
def test_names_alone_are_no_difference(seed):
    rows = random_rows(np.random.default_rng(seed))
    new = {
        "curves": {"loss/all": rows["metrics"]["loss"], "loss/image": rows["metrics"]["loss_image"]},
        "files": {name.replace("neighbours", "neighbors"): found for name, found in rows["files"].items()},
        "answers": rows["answers"],
    }
    assert "differs" in results(rows, new).values()
    renamed = {
        "metrics": "curves",
        "metrics: loss": "loss/all",
        "loss_image": "loss/image",
        "neighbours": "neighbors",
        "nothing": "at all",
    }
    explanations = Explanations(renamed)
    found = {each.row: each.result for each in compared(rows, new, explanations)}
    assert found == {"metrics -> curves": "renamed", "files": "renamed", "answers": "equal"}
    assert explanations.unused == ["nothing"]
    # A new name hides no other value.
    new = copy.deepcopy(new)
    new["curves"]["loss/image"]["3"] += 1e-12
    assert results(rows, new, renamed=renamed)["metrics -> curves"] == "differs"


def test_two_keys_cannot_become_one():
    rows = random_rows(np.random.default_rng(0))
    with pytest.raises(ValueError, match="metrics: two keys"):
        compared(rows, rows, Explanations({"loss_image": "loss"}))


def test_a_reason_explains_its_key_and_no_other():
    old = random_rows(np.random.default_rng(0))
    new = copy.deepcopy(old)
    new["files"]["sums.json"] = {"bytes": "00"}
    explained = {"files: sums.json": "sums are stored"}
    assert results(old, new) == {"metrics": "equal", "files": "differs", "answers": "equal"}
    assert results(old, new, explained=explained)["files"] == "explained"
    new["files"]["task/train/tokens.bin"]["bytes"] = "00"
    assert results(old, new, explained=explained)["files"] == "differs"
    assert results(old, new, explained={"files": "another format"})["files"] == "explained"


def test_a_row_that_is_in_one_record_differs():
    old = random_rows(np.random.default_rng(0))
    new = {name: row for name, row in old.items() if name != "files"}
    for pair, where in (((old, new), "old"), ((new, old), "new")):
        (found,) = (each for each in compared(*pair, Explanations()) if each.result != "equal")
        assert (found.row, found.result, found.first) == ("files", "differs", f"only in the {where} record")


def test_the_command_says_what_differs_and_ends_with_1(tmp_path, capsys):
    rows = random_rows(np.random.default_rng(0))
    made_by = {"commit": "abc", "machine": "a CPU", "versions": {}}
    files = [tmp_path / name for name in ("old.json", "new.json", "renamed.json")]
    files[0].write_text(json.dumps({"made_by": made_by, "rows": {"a-stage": rows}}))
    arguments = ["compare", str(files[0]), str(files[1])]
    files[1].write_text(files[0].read_text())
    assert main(arguments) == 0
    assert "0 of 3 rows differ" in capsys.readouterr().out
    rows["metrics"]["loss"]["5"] = 0.0
    files[1].write_text(json.dumps({"made_by": made_by | {"machine": "another"}, "rows": {"a-stage": rows}}))
    assert main(arguments) == 1
    shown = capsys.readouterr().out
    assert "another machine" in shown and "loss at 5: " in shown and "1.0e+00" in shown
    files[2].write_text(json.dumps({"explained": {"metrics: loss": "a better loss"}}))
    assert main([*arguments, f"--renamed={files[2]}"]) == 0
    assert "because: a better loss" in capsys.readouterr().out


def test_only_what_is_missing_is_run_again():
    def stage(name: str, *needs: str) -> Stage:
        return Stage(name, needs, (), lambda work: {})

    stages = [stage("a"), stage("b", "a"), stage("c", "b"), stage("d")]

    def names(only=(), recorded=(), made=()):
        return "".join(each.name for each in stages_to_run(stages, only, dict.fromkeys(recorded), made.__contains__))

    assert names() == "abcd"
    assert names(recorded="abcd") == ""
    assert names(recorded="ab", made="ab") == "cd"
    # The files of a recorded stage are gone, and another needs them.
    assert names(recorded="abd", made="a") == "bc"
    assert names(only=("c",)) == "abc"
    assert names(only=("d",), recorded="d") == ""


def test_stages_need_what_comes_before_them():
    seen: set[str] = set()
    for stage in STAGES:
        assert stage.name not in seen and set(stage.needs) <= seen
        seen.add(stage.name)
