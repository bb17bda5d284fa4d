"""Training of the transformer: what a run logs, when it stops, how it goes on, what it leaves behind."""

import dataclasses
import os
import signal
from argparse import Namespace

import jax
import pytest

from cm3leon_jax.checkpoints import Checkpoints
from cm3leon_jax.commands import train
from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.config import BatchConfig
from cm3leon_jax.data.corpus.config import CorpusConfig, VocabularyConfig
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.errors import UserError
from cm3leon_jax.models.config import MeshConfig
from cm3leon_jax.progress import read_step_log
from cm3leon_jax.training import transformer
from cm3leon_jax.training.config import OptimizerConfig, RecoveryConfig, TrainConfig
from cm3leon_jax.training.step import TrainStep


@pytest.fixture
def config(tmp_path, tiny_model, tiny_images, corpus, vocabulary) -> Config:
    vocabulary.save(tmp_path / "vocabulary")
    return Config(
        corpus=CorpusConfig(path=str(corpus.path)),
        vocabulary=VocabularyConfig(path=str(tmp_path / "vocabulary")),
        image_tokenizer=tiny_images,
        batch=BatchConfig(batch_size=8, sequence_length=48),
        model=tiny_model,
        optimizer=OptimizerConfig(peak_learning_rate=1e-3, warmup_steps=2),
        train=TrainConfig(
            compilation_cache="", num_tokens=8.0 * 48 * 6, log_every=2, save_every=100, eval_every=3, eval_batches=1
        ),
    )


def latest_step(folder) -> int | None:
    with Checkpoints(folder / "checkpoints", keep=1) as checkpoints:
        return checkpoints.latest_step


def steps(folder) -> list[int]:
    return [line["step"] for line in read_step_log(folder / "metrics.jsonl")]


# What tells how long a step took, and so differs from run to run.
TIMES = ("seconds", "tokens_per_second", "goodput")


def logged(folder) -> list[dict]:
    """What a run measured, without its times."""
    lines = read_step_log(folder / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not any(t in name for t in TIMES)} for line in lines]


def stopped_at(step):
    """In place of `iterate`: SIGTERM comes while the batch of this step is fetched."""

    def batches(source, first_step, num_steps):
        for index in range(first_step, num_steps):
            if index == step - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield source[index]

    return batches


def killed_at(step):
    """In place of `iterate`: the run ends, without any save, before this step."""

    def batches(source, first_step, num_steps):
        for index in range(first_step, num_steps):
            if index == step - 1:
                raise KeyboardInterrupt
            yield source[index]

    return batches


@pytest.mark.slow
def test_resume_after_kills_and_sigterm_has_the_bits_of_an_undisturbed_run(config, tmp_path, monkeypatch):
    # 47 documents, 8 x 48 tokens: every other step begins an epoch.
    parts = dict(num_tokens=8.0 * 48 * 14, log_every=1, save_every=3, num_microbatches=2)
    mesh = MeshConfig(replica=2, fsdp=2, tensor=2)
    config = dataclasses.replace(config, mesh=mesh, train=dataclasses.replace(config.train, **parts))
    assert train.run(config, tmp_path / "whole", Namespace(profile="")) == 0
    broken = tmp_path / "broken"
    for batches, code in ((killed_at(6), None), (stopped_at(8), 75), (killed_at(9), None), (stopped_at(13), 75)):
        with monkeypatch.context() as patch:
            patch.setattr(transformer, "iterate", batches)
            if code is None:
                with pytest.raises(KeyboardInterrupt):
                    train.run(config, broken, Namespace(profile=""))
            else:
                assert train.run(config, broken, Namespace(profile="")) == code
    assert train.run(config, broken, Namespace(profile="")) == 0
    assert logged(broken) == logged(tmp_path / "whole")
    assert steps(broken) == list(range(1, 15))


@pytest.mark.slow
def test_rollback_after_too_many_skipped_steps_skips_their_batches(config, tmp_path, monkeypatch, capsys):
    # So sharp a rule, so soon, takes one step in two for a spike.
    monkeypatch.setattr("cm3leon_jax.training.spikes.WINDOW", 3)
    config = dataclasses.replace(
        config,
        recovery=RecoveryConfig(spike_factor=1.0001, max_skipped=3, max_rollbacks=2),
        train=dataclasses.replace(config.train, num_tokens=8.0 * 48 * 60, log_every=1, save_every=2, eval_every=0),
    )
    workdir = tmp_path / "run"
    with pytest.raises(UserError, match=r"the run diverged: steps \d+ to \d+ were skipped, after 2 rollbacks"):
        train.run(config, workdir, Namespace(profile=""))
    said = capsys.readouterr().out
    assert "is skipped: loss" in said and "(1 of 2)" in said and "(2 of 2)" in said
    # Every step once, through both returns.
    assert steps(workdir) == list(range(1, steps(workdir)[-1] + 1))
    with Checkpoints(workdir / "checkpoints", keep=3) as checkpoints:
        meta = checkpoints.meta(checkpoints.latest_step)
    # The last return may have come to no checkpoint; a new start would come to it again.
    assert meta["num_rollbacks"] in (1, 2)
    assert all(stop - first >= 3 for first, stop in meta["skipped_batches"]) and meta["skipped_batches"]
    lines = read_step_log(workdir / "metrics.jsonl")
    assert lines[-1]["seconds_lost"] > 0
    # With a milder rule the same run goes on to its end, past the batches it left out.
    milder = dataclasses.replace(config, recovery=RecoveryConfig(spike_factor=0.0))
    assert train.run(milder, workdir, Namespace(profile="")) == 0
    assert steps(workdir) == list(range(1, 61))
    with Checkpoints(workdir / "checkpoints", keep=3) as checkpoints:
        assert checkpoints.meta(60)["skipped_batches"] == meta["skipped_batches"]


@pytest.mark.slow
def test_sigterm_saves_and_the_next_start_resumes(config, tmp_path, monkeypatch, capsys):
    workdir = tmp_path / "run"
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(transformer, "iterate", stopped_at(4))
        assert train.run(config, workdir, Namespace(profile="")) == 75
    assert signal.getsignal(signal.SIGTERM) is before
    assert "stopped and saved at step 4" in capsys.readouterr().out
    assert latest_step(workdir) == 4
    assert train.run(config, workdir, Namespace(profile="")) == 0
    assert steps(workdir) == [1, 2, 3, 4, 6]
    assert [line["step"] for line in logged(workdir) if "eval_loss" in line] == [3, 6]
    # A finished run says so and does nothing.
    assert train.run(config, workdir, Namespace(profile="")) == 0
    assert "finished: step 6 of 6" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("spoilt", "good"), [(4, 2), (5, 4), (6, 4)])
def test_nan_parameters_are_neither_saved_nor_finished(config, tmp_path, monkeypatch, capsys, spoilt, good):
    """The gradients of the step that spoils them are finite; all later ones are not, and are left out."""
    taken = TrainStep.step

    def step(self, state, batch):
        state, metrics = taken(self, state, batch)
        if int(state["step"]) == spoilt:
            state["parameters"] = jax.tree.map(lambda leaf: leaf * float("nan"), state["parameters"])
        return state, metrics

    monkeypatch.setattr(TrainStep, "step", step)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, save_every=2))
    with pytest.raises(UserError, match=rf"not finite since step {spoilt} \(.*; the checkpoint of step {good} is"):
        train.run(config, tmp_path / "run", Namespace(profile=""))
    assert "finished" not in capsys.readouterr().out


@pytest.mark.slow
def test_resume_refuses_another_corpus(config, tmp_path, corpus, monkeypatch):
    assert train.run(config, tmp_path / "run", Namespace(profile="")) == 0
    monkeypatch.setitem(corpus.manifest["tasks"]["second"], "rate", 3.0)
    monkeypatch.setattr(PreparedCorpus, "open", lambda path, vocabulary: corpus)
    with pytest.raises(UserError, match=r"corpus.tasks.second.rate was 1.0 and is 3.0"):
        train.run(config, tmp_path / "run", Namespace(profile=""))
