"""The loop around the step: what it says, when it stops, what it leaves behind."""

import dataclasses
import os
import signal
from argparse import Namespace

import pytest

from cm3leon_jax.checkpoints import Checkpoints
from cm3leon_jax.config import BatchConfig, Config, CorpusConfig, OptimizerConfig, TrainConfig, VocabularyConfig
from cm3leon_jax.data.corpus import PreparedCorpus
from cm3leon_jax.errors import UserError
from cm3leon_jax.progress import read_step_log
from cm3leon_jax.training import train


@pytest.fixture
def config(tmp_path, tiny_model, tiny_pictures, corpus, vocabulary) -> Config:
    vocabulary.save(tmp_path / "vocabulary")
    return Config(
        corpus=CorpusConfig(path=str(corpus.path)),
        vocabulary=VocabularyConfig(path=str(tmp_path / "vocabulary")),
        image_tokenizer=tiny_pictures,
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


@pytest.mark.slow
def test_a_signal_saves_and_the_next_run_goes_on(config, tmp_path, monkeypatch, capsys):
    def signalled(source, first_step, num_steps):
        for step in range(first_step, num_steps):
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield source[step]

    workdir = tmp_path / "run"
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(train, "iterate", signalled)
        assert train.run(config, workdir, Namespace(profile="")) == 75
    assert signal.getsignal(signal.SIGTERM) is before
    assert "stopped and saved at step 4" in capsys.readouterr().out
    assert latest_step(workdir) == 4
    assert train.run(config, workdir, Namespace(profile="")) == 0
    assert steps(workdir) == [1, 2, 3, 4, 6]
    logged = read_step_log(workdir / "metrics.jsonl")
    assert [line["step"] for line in logged if "held_out_loss" in line] == [3, 6]
    # A finished run says so and does nothing.
    assert train.run(config, workdir, Namespace(profile="")) == 0
    assert "finished: step 6 of 6" in capsys.readouterr().out


@pytest.mark.slow
def test_another_corpus_does_not_continue_the_run(config, tmp_path, corpus, monkeypatch):
    assert train.run(config, tmp_path / "run", Namespace(profile="")) == 0
    monkeypatch.setitem(corpus.manifest["tasks"]["second"], "rate", 3.0)
    monkeypatch.setattr(PreparedCorpus, "open", lambda path, vocabulary: corpus)
    with pytest.raises(UserError, match=r"corpus.tasks.second.rate was 1.0 and is 3.0"):
        train.run(config, tmp_path / "run", Namespace(profile=""))
