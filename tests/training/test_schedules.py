"""Learning-rate schedules."""

import optax
import pytest

from cm3leon_jax.training.config import OptimizerConfig
from cm3leon_jax.training.schedules import learning_rate

CONFIG = OptimizerConfig(peak_learning_rate=1e-3, warmup_steps=10)


def test_linear_decay_reaches_its_fraction_of_the_peak():
    rate = learning_rate(CONFIG, num_steps=110)
    assert [float(rate(step)) for step in (0, 5, 10, 60, 110)] == pytest.approx([0, 5e-4, 1e-3, 5.5e-4, 1e-4])


def test_cosine_decay_reaches_its_fraction_of_the_peak():
    rate = learning_rate(CONFIG, num_steps=110, decay="cosine")
    assert [float(rate(step)) for step in (0, 5, 10, 60, 110)] == pytest.approx([0, 5e-4, 1e-3, 5.5e-4, 1e-4])
    assert float(rate(35)) > float(learning_rate(CONFIG, num_steps=110)(35))


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_a_rate_that_falls_at_the_end_alone_is_the_peak_until_then_whenever_the_end_is(decay):
    config = OptimizerConfig(peak_learning_rate=1e-3, warmup_steps=10, decay_fraction=0.2)
    near, far = (learning_rate(config, num_steps, decay) for num_steps in (100, 400))
    assert [float(near(step)) for step in (0, 5, 10, 80, 90, 100)] == pytest.approx([0, 5e-4, 1e-3, 1e-3, 5.5e-4, 1e-4])
    assert all(float(near(step)) == float(far(step)) for step in range(80))
    assert float(far(320)) == pytest.approx(1e-3) and float(far(400)) == pytest.approx(1e-4)


@pytest.mark.parametrize("decay_fraction", [0.95, 1.0])
def test_a_decay_begins_after_the_warmup_at_the_earliest(decay_fraction):
    config = OptimizerConfig(peak_learning_rate=1e-3, warmup_steps=10, decay_fraction=decay_fraction)
    rate = learning_rate(config, 110)
    assert [float(rate(step)) for step in (5, 10, 60, 110)] == pytest.approx([5e-4, 1e-3, 5.5e-4, 1e-4])


def test_without_zero_the_first_step_of_the_warmup_counts():
    rate = learning_rate(CONFIG, num_steps=110, skip_zero=True)
    assert [float(rate(step)) for step in (0, 10)] == pytest.approx([1e-4, 1e-3])


@pytest.mark.parametrize("skip_zero", [False, True])
def test_no_warmup_begins_at_the_peak_and_a_longer_one_than_the_run_ends_there(skip_zero):
    config = OptimizerConfig(peak_learning_rate=1e-3, warmup_steps=0, final_learning_rate_fraction=1.0)
    assert float(learning_rate(config, 5, skip_zero=skip_zero)(0)) == pytest.approx(1e-3)
    config = OptimizerConfig(peak_learning_rate=1e-3, warmup_steps=1000)
    assert float(learning_rate(config, 5, skip_zero=skip_zero)(5)) == pytest.approx(1e-3)


def test_the_bits_are_those_of_optax_schedules_joined_by_hand():
    expected = optax.join_schedules(
        [optax.linear_schedule(1e-4, 1e-3, 10), optax.linear_schedule(1e-3, 1e-4, 100)], [10]
    )
    found = learning_rate(CONFIG, 110, skip_zero=True)
    assert all(float(found(step)) == float(expected(step)) for step in range(111))
