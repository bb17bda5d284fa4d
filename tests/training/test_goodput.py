"""Every second of a run has one name, through stops and faults."""

import time
from itertools import pairwise

import pytest

from cm3leon_jax.training import goodput
from cm3leon_jax.training.goodput import NO_SECONDS, PARTS, RunClock, StepWork

WORK = StepWork(num_tokens=100, flops_per_token=6e9, num_devices=4, peak_flops=1e12)


@pytest.fixture
def now(monkeypatch):
    """A clock that is set by hand."""
    hands = [0.0]
    monkeypatch.setattr(goodput.time, "perf_counter", lambda: hands[0])

    def passes(seconds):
        hands[0] += seconds

    yield passes
    assert time.perf_counter() == hands[0]


def spend(clock, part, now, seconds):
    with clock.timed(part):
        now(seconds)


def counted(values):
    return values["seconds_total"] - sum(values[f"seconds_{part}"] for part in PARTS)


def test_lap_rates_and_seconds_per_part(now):
    clock = RunClock()
    now(3)
    spend(clock, "compile", now, 4)
    now(1)
    clock.start_steps(5)
    for _ in range(10):
        spend(clock, "data_wait", now, 0.5)
        now(1.5)
    for seconds in (1, 4, 2):
        with clock.timed_save():
            now(seconds)
    lap = clock.lap(15, WORK.rates)
    assert lap["step_seconds"] == pytest.approx(2.0)
    assert lap["data_wait_seconds"] == pytest.approx(0.5)
    assert lap["tokens_per_second"] == pytest.approx(50.0)
    assert lap["tokens_per_second_per_device"] == pytest.approx(12.5)
    assert (lap["seconds_startup"], lap["seconds_compile"], lap["seconds_save"]) == (4, 4, 7)
    assert lap["seconds_total"] == 35
    assert lap["goodput"] == pytest.approx(15 / 35)
    assert clock.longest_save == 4
    assert "goodput: 42.9% of 35 s; startup 11.4%" in clock.summary()
    # The next lap starts from zero.
    now(3)
    assert clock.lap(16, WORK.rates)["step_seconds"] == pytest.approx(3.0)


def test_goodput_loses_only_the_steps_after_the_checkpoint_of_a_failed_start(now):
    first = RunClock()
    now(2)
    first.start_steps(0)
    now(10)
    saved = first.values()
    now(6)
    spend(first, "evaluation", now, 5)
    last = first.values()

    again = RunClock()
    now(3)
    again.continue_from(saved, last)
    again.start_steps(10)
    now(4)
    values = again.values()
    assert values["seconds_lost"] == 6
    assert values["seconds_startup"] == 5
    assert values["seconds_evaluation"] == 5
    assert values["seconds_total"] == 2 + 10 + 6 + 5 + 3 + 4
    assert counted(values) == 10 + 4

    # A rollback loses the steps since the checkpoint.
    again.roll_back(saved)
    assert again.values()["seconds_lost"] == 6 + 4
    assert counted(again.values()) == 10


def test_goodput_loses_a_start_killed_before_its_first_checkpoint(now):
    first = RunClock()
    now(2)
    first.continue_from(NO_SECONDS, NO_SECONDS)
    first.start_steps(0)
    now(7)
    last = first.values()
    again = RunClock()
    now(3)
    again.continue_from(NO_SECONDS, last)
    again.start_steps(0)
    values = again.values()
    assert (values["seconds_lost"], values["seconds_startup"], values["seconds_total"]) == (7, 5, 12)
    assert counted(values) == 0


def test_goodput_loses_nothing_at_a_stop_with_a_save(now):
    first = RunClock()
    now(1)
    first.start_steps(0)
    now(8)
    saved = first.values()
    again = RunClock()
    now(2)
    again.continue_from(saved, saved)
    again.start_steps(8)
    assert again.values()["seconds_lost"] == 0
    assert again.values()["seconds_total"] == 11


def test_seconds_total_grows_and_startup_is_counted_once(now):
    clock = RunClock()
    seen = []
    for _ in range(5):
        now(1)
        clock.start_steps(0)
        seen.append(clock.values()["seconds_total"])
    assert all(later > earlier for earlier, later in pairwise(seen))
    assert clock.values()["seconds_startup"] == 1
