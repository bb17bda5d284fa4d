"""Goodput under failures: beside a simulation, and the best interval beside a search."""

import math
import random

import pytest

from cm3leon_jax.planning.goodput import best_interval, expected_goodput

HOUR = 3600.0


def test_by_hand():
    # One failure in e intervals: the time of an interval with its save, over and over, until one is without a failure.
    seconds = 1000.0 * math.exp(0.1) * (math.e - 1)
    assert expected_goodput(900.0, 100.0, 100.0, 1000.0) == pytest.approx(900 / seconds)


def test_without_failures_only_the_saves_are_lost():
    assert expected_goodput(990.0, 10.0, 600.0, 1e12) == pytest.approx(0.99)


def test_hopeless_intervals_have_no_goodput():
    assert expected_goodput(1e9, 1.0, 1.0, 10.0) == 0


@pytest.mark.parametrize(
    ("interval", "pause", "restart"), [(1000.0, 60.0, 600.0), (4000.0, 10.0, 1200.0), (9000.0, 300.0, 60.0)]
)
def test_beside_simulated_failures(interval, pause, restart):
    between, random_numbers = 3 * HOUR, random.Random(0)
    now = done = 0.0
    failure = random_numbers.expovariate(1 / between)
    while done < 20_000 * interval:
        if failure >= now + interval + pause:
            now, done = now + interval + pause, done + interval
            continue
        while failure < now + interval + pause:
            # Restarts can fail too.
            now = failure
            failure = now + random_numbers.expovariate(1 / between)
            if failure >= now + restart:
                now += restart
                break
    assert expected_goodput(interval, pause, restart, between) == pytest.approx(done / now, abs=0.005)


@pytest.mark.parametrize("pause", [0.1, 5.0, 60.0, 900.0])
@pytest.mark.parametrize("between", [0.5 * HOUR, 3 * HOUR, 100 * HOUR])
def test_no_interval_is_much_better_than_the_best(pause, between):
    found = best_interval(pause, between)
    highest = max(expected_goodput(found * 1.02**power, pause, 600.0, between) for power in range(-200, 200))
    assert expected_goodput(found, pause, 600.0, between) == pytest.approx(highest, rel=1e-3)


@pytest.mark.parametrize(("between", "minutes"), [(24 * HOUR, 117.0), (6 * HOUR, 57.0), (0.25 * HOUR, 9.1)])
def test_the_intervals_that_daly_published(between, minutes):
    # His figures 3 to 5, for saves of 5 minutes.
    assert best_interval(300.0, between) / 60 == pytest.approx(minutes, rel=0.01)


def test_for_short_saves_the_best_interval_is_youngs():
    assert best_interval(1.0, 1e6) == pytest.approx(math.sqrt(2 * 1e6), rel=2e-3)


def test_saves_longer_than_the_time_between_failures():
    assert best_interval(100.0, 10.0) == 10.0
