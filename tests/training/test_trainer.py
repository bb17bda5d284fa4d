"""The loop around any step: resume, preemption, rollback and callbacks, on a model of one number."""

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3leon_jax.checkpoints import Checkpoints, abstract_on
from cm3leon_jax.errors import UserError
from cm3leon_jax.progress import read_step_log
from cm3leon_jax.training.config import RecoveryConfig
from cm3leon_jax.training.run import Evaluation, Images, Start, TrainingRun, batch_index
from cm3leon_jax.training.spikes import SpikeState, select
from cm3leon_jax.training.trainer import train

RECOVERY = RecoveryConfig(spike_factor=0.0, max_skipped=3, max_rollbacks=2)


@jax.jit
def step(state, batch):
    """Adds the batch's number to the weight; skips batches that are not finite."""
    apply = state["spikes"].should_apply(batch, batch, RECOVERY)
    spikes = state["spikes"].update(batch, apply)
    metrics = {"loss": batch, "grad_norm": batch, "skipped_in_a_row": spikes.skipped_in_a_row}
    return {"weight": select(apply, 0.9 * state["weight"] + batch, state["weight"]), "spikes": spikes}, metrics


def number(index: int) -> float:
    return float(np.random.Generator(np.random.Philox(key=[7, index])).random())


@pytest.fixture
def run(tmp_path) -> TrainingRun:
    """20 steps, of which every 4th is saved."""
    state = {"weight": jnp.zeros(()), "spikes": SpikeState.initial()}
    return TrainingRun(
        name="toy",
        num_steps=20,
        init=lambda checkpoints: Start(0, state),
        abstract_state=abstract_on(state, jax.tree.map(lambda leaf: leaf.sharding, state)),
        step=step,
        batches=lambda first, stop, hint: (jnp.float32(number(index)) for index in range(first, stop)),
        identity={"data": "numbers", "values": {"num_steps": 20, "rate": 0.9}},
        may_change=["values.num_steps"],
        length_field="config.toy.num_steps",
        fix="lower config.toy.rate",
        workdir=tmp_path,
        checkpoints=tmp_path / "checkpoints",
        save_every=4,
        log_every=1,
        loggers=("jsonl",),
        config={},
        describe=lambda values: f"loss {values['loss']:.3f}",
        rates=lambda seconds: {"steps_per_second": 1 / seconds},
    )


def with_batches(run, changed) -> TrainingRun:
    """The same run with `changed(index)`, or the usual number where it returns None."""

    def batches(first, stop, hint):
        for index in range(first, stop):
            value = changed(index)
            yield jnp.float32(number(index) if value is None else value)

    return dataclasses.replace(run, batches=batches)


def logged(run) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_step_log(run.workdir / "metrics.jsonl")]


def expected_weight(indices) -> float:
    state = {"weight": jnp.zeros(()), "spikes": SpikeState.initial()}
    for index in indices:
        state, _ = step(state, jnp.float32(number(index)))
    return float(state["weight"])


def kill_at(stop):
    def kill(index):
        if index == stop:
            raise KeyboardInterrupt

    return kill


def sigterm_at(stop):
    def terminate(index):
        if index == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    return terminate


@pytest.mark.parametrize("killed", [[0], [3, 5, 4], [7, 18], [19]])
def test_killed_runs_end_with_the_same_bits_and_log_every_step_once(run, killed):
    for index in killed:
        with pytest.raises(KeyboardInterrupt):
            train(with_batches(run, kill_at(index)))
    result = train(run)
    assert result.exit_code == 0
    assert float(result.state["weight"]) == expected_weight(range(20))
    assert logged(run) == [(index + 1, pytest.approx(number(index))) for index in range(20)]


def test_sigterm_saves_once_the_step_is_done_and_the_next_start_goes_on(run, capsys):
    before = signal.getsignal(signal.SIGTERM)
    result = train(with_batches(run, sigterm_at(5)))
    assert result.is_stopped and result.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) is before
    assert "stopped and saved at step 6; run the same command again to continue" in capsys.readouterr().out
    result = train(run)
    assert float(result.state["weight"]) == expected_weight(range(20))
    assert [step for step, _ in logged(run)] == list(range(1, 21))


def test_a_finished_run_restores_its_state_only_if_it_is_needed(run, capsys):
    state = train(run).state
    assert train(run).state == {}
    assert "finished: step 20 of 20 is the last one" in capsys.readouterr().out
    again = train(dataclasses.replace(run, restore_finished=True)).state
    assert float(again["weight"]) == float(state["weight"])


def test_rollback_skips_the_bad_batches_for_good(run, capsys):
    bad = with_batches(run, lambda index: np.nan if 9 <= index < 12 else None)
    result = train(dataclasses.replace(bad, recovery=RECOVERY))
    indices = [index for index in range(23) if not 9 <= index < 12]
    assert float(result.state["weight"]) == expected_weight(indices)
    said = capsys.readouterr().out
    assert "step 10 is skipped: loss nan" in said
    assert "rolling back: steps 10 to 12 were skipped" in said and "without batches 9 to 11 (1 of 2)" in said
    assert [loss for _, loss in logged(run)] == [pytest.approx(number(index)) for index in indices]
    with Checkpoints(run.checkpoints, keep=2) as checkpoints:
        meta = checkpoints.meta(20)
    assert (meta["skipped_batches"], meta["num_rollbacks"]) == ([[9, 12]], 1)


def test_a_run_that_diverges_after_its_last_rollback_ends(run):
    bad = with_batches(run, lambda index: np.nan if index >= 9 else None)
    with pytest.raises(UserError, match=r"the run diverged: steps 10 to 12 were skipped, after 2 rollbacks; .* lower"):
        train(dataclasses.replace(bad, recovery=RECOVERY))


def test_without_recovery_a_loss_that_is_not_finite_ends_the_run(run):
    with pytest.raises(UserError, match=r"the toy's loss is nan since step 7: lower config.toy.rate"):
        train(with_batches(run, lambda index: np.nan if index == 6 else None))
    with Checkpoints(run.checkpoints, keep=2) as checkpoints:
        assert checkpoints.steps == [4]


def test_evaluations_join_the_line_and_images_come_after_the_save(run):
    made = []

    def image(step, state):
        made.append((step, sorted(int(path.name) for path in run.checkpoints.iterdir() if path.name.isdigit())))

    run = dataclasses.replace(
        run,
        log_every=100,
        evaluations=[Evaluation(6, lambda step, state: {"eval_weight": float(state["weight"])})],
        images=[Images(8, "samples", image), Images(0, "nothing", image)],
    )
    train(run)
    lines = read_step_log(run.workdir / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 6, 12, 18, 20]
    assert [line.get("eval_weight") for line in lines][1:] == [
        pytest.approx(expected_weight(range(last))) for last in (6, 12, 18, 20)
    ]
    assert [step for step, _ in made] == [8, 16, 20]


def test_what_may_change_is_logged_and_what_may_not_is_refused(run, capsys):
    train(run)
    longer = {"data": "numbers", "values": {"num_steps": 24, "rate": 0.9}}
    longer = dataclasses.replace(run, num_steps=24, identity=longer)
    assert float(train(longer).state["weight"]) == expected_weight(range(24))
    assert "changed: values.num_steps was 20 and is 24" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"config.toy.num_steps ends the run at step 20, but it is at step 24 already"):
        train(run)
    with pytest.raises(UserError, match=r"values.rate was 0.9 and is 0.5; use those again"):
        train(dataclasses.replace(longer, identity={"values": {"num_steps": 24, "rate": 0.5}}))


def test_batches_after_skipped_ranges():
    assert [batch_index(step, ((3, 5), (9, 10))) for step in range(9)] == [0, 1, 2, 5, 6, 7, 8, 10, 11]
