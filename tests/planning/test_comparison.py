"""Plans side by side, from the table to the command line, without a compiler."""

import json

import pytest

from cm3leon_jax.cli import main
from cm3leon_jax.commands import plan as command
from cm3leon_jax.errors import UserError
from cm3leon_jax.planning import comparison, report
from cm3leon_jax.planning.accelerator_types import find_pod
from cm3leon_jax.planning.comparison import ComparedPlan
from cm3leon_jax.planning.costs import Rates
from cm3leon_jax.planning.units import amount
from tests.planning.pod_plans import make_pod_plan


def compared(*topologies):
    return [ComparedPlan("a.py", find_pod(name), make_pod_plan(name)) for name in topologies]


def cells(text, name):
    """The cells of a row of the table, from all of its blocks."""
    rows = [line[2:] for line in text if line.startswith(f"  {name} ")]
    return [cell for row in rows for cell in row.removeprefix(name).strip().split("  ") if cell]


def test_every_plan_is_a_column_with_the_numbers_of_its_own_report():
    found = compared("v5p-1024", "h100-256")
    text = comparison.lines(found, Rates())
    assert text[0].startswith("A  a.py on 512 x v5p")
    assert text[1].startswith("B  a.py on 256 x h100")
    steps = [one.planned.estimate for one in found]
    expected = [f"{one.seconds:.2f} s ({one.least:.3g} to {one.most:.3g} s)" for one in steps]
    assert [cell.strip() for cell in cells(text, "step, expected")] == expected
    days = [one.planned.config.num_steps * one.planned.estimate.seconds / 86400 for one in found]
    assert [cell.split()[0] for cell in cells(text, "run, expected")] == [f"{one:.1f}" for one in days]
    hours = [day * 24 * chips for day, chips in zip(days, (512, 256), strict=True)]
    assert [cell.strip() for cell in cells(text, "chip-hours")] == [amount(hour) for hour in hours]


def test_many_plans_are_several_tables_that_fit_the_width():
    found = compared(*["v5p-1024", "v5e-256", "v6e-256", "h100-256", "b200-256", "v4-128"] * 5)
    text = comparison.lines(found, Rates())
    assert max(map(len, text)) <= 120
    assert len([cell.strip() for cell in cells(text, "mesh")]) == 30
    headers = " ".join(line for line in text if line.startswith("   ")).split()
    assert headers == [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "AA", "AB", "AC", "AD"]


def test_what_does_not_fit_or_is_refused_has_no_times():
    pod = find_pod("v5e-256")
    found = [
        *compared("v5p-1024"),
        ComparedPlan("b.py", pod, make_pod_plan("v5e-256", fits=False)),
        ComparedPlan("c.py", pod, None, "the batch does not divide"),
    ]
    text = comparison.lines(found, Rates())
    assert [cell.strip() for cell in cells(text, "verdict")] == ["fits", "DOES NOT FIT", "refused"]
    assert [cell.strip() for cell in cells(text, "run, expected")][1:] == ["-", "-"]
    assert "   C refused: the batch does not divide" in text
    plans = comparison.as_json(found, Rates())["plans"]
    assert [one.get("refused") for one in plans] == [None, None, "the batch does not divide"]
    assert plans[0]["expected"]["run_days"] == found[0].planned.expected_days[1]


def test_causes_are_named_from_the_largest_and_add_up():
    estimate = make_pod_plan("v5p-1024").estimate
    assert sum(estimate.seconds_by_cause.values()) == pytest.approx(estimate.seconds)
    fraction = estimate.seconds_by_cause["matmuls"] / estimate.seconds
    assert report.largest_causes(estimate, most=1) == f"matmuls {fraction:.0%}"


@pytest.fixture
def asked(monkeypatch):
    """What the command wants compiled; the pod of 128 devices refuses it."""
    seen = []

    def make_plan(config, vocabulary_size, pod, say):
        seen.append((config.model.num_layers, config.batch.batch_size, pod.name))
        if pod.num_devices == 128:
            raise UserError("the mesh does not make 128 devices")
        return make_pod_plan(pod.name, fits=pod.num_devices > 16)

    monkeypatch.setattr(command, "make_plan", make_plan)
    monkeypatch.setattr(command.topology, "require_compiler", lambda pod: None)
    return seen


def plan(*arguments):
    return main(["plan", "--config=cm3leon_350m", "--config.batch.batch_size=64", *arguments])


def test_configs_and_topologies_of_the_command_line(asked, tmp_path, capsys):
    file = tmp_path / "plan.json"
    others = ("--compare=cm3leon_760m", "--compare=cm3leon_7b@v6e-256,v5e-128")
    assert plan("--topology=v5p-1024,v5e-256", *others, f"--json={file}") == 0
    assert asked == [
        (24, 64, "v5p:8x8x8"),
        (24, 64, "v5e:16x16"),
        (24, 64, "v5p:8x8x8"),
        (24, 64, "v5e:16x16"),
        (32, 64, "v6e:16x16"),
        (32, 64, "v5e:8x16"),
    ]
    shown = capsys.readouterr().out
    assert "C  cm3leon_760m on 512 x v5p" in shown
    assert "F refused: the mesh does not make 128 devices" in shown
    plans = json.loads(file.read_text())["plans"]
    assert [one["config"] for one in plans] == ["cm3leon_350m"] * 2 + ["cm3leon_760m"] * 2 + ["cm3leon_7b"] * 2


def test_the_exit_code_of_a_comparison_says_whether_anything_fits(asked):
    assert plan("--topology=v5e-16,v5e-256") == 0
    assert plan("--topology=v5e-16,v5e-128") == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--topology=v5p-1024,"], "--topology=: write CHIP:SHAPE"),
        (["--topology=v5p-1024", "--compare=cm3leon_7b@v5p-7"], "--topology=v5p-7: there is none"),
        (["--topology=v5p-1024", "--compare=nowhere.py"], "nowhere.py"),
    ],
)
def test_a_wrong_name_is_one_line_before_anything_is_compiled(arguments, said, asked, capsys):
    assert plan(*arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert said in error
    assert asked == []
