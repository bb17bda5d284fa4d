"""Where a run starts, when its checkpoints are damaged too."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from cm3leon_jax.checkpoints import Checkpoints
from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.config import BatchConfig
from cm3leon_jax.data.corpus.config import CorpusConfig, VocabularyConfig
from cm3leon_jax.errors import UserError
from cm3leon_jax.training.config import TrainConfig
from cm3leon_jax.training.resume import restore_or_init
from cm3leon_jax.training.schedules import learning_rate
from cm3leon_jax.training.transformer import TransformerTraining


@pytest.fixture(scope="module")
def setup(tmp_path_factory, tiny_images, corpus, vocabulary) -> TransformerTraining:
    from cm3leon_jax.models.config import ModelConfig

    folder = tmp_path_factory.mktemp("start")
    vocabulary.save(folder / "vocabulary")
    config = Config(
        corpus=CorpusConfig(path=str(corpus.path)),
        vocabulary=VocabularyConfig(path=str(folder / "vocabulary")),
        image_tokenizer=tiny_images,
        batch=BatchConfig(batch_size=8, sequence_length=48),
        model=ModelConfig(num_layers=2, model_dim=32, num_heads=4, compute_dtype="float32", remat="none"),
        train=TrainConfig(num_tokens=8.0 * 48 * 10, sample_every=0),
    )
    return TransformerTraining.open(config, folder / "run")


META = {
    "batch_hint": [0, 0],
    "skipped_batches": [[1, 2]],
    "num_rollbacks": 1,
    "origin": "random numbers",
    "seconds": {},
}


@pytest.fixture(scope="module")
def saved(setup, tmp_path_factory) -> tuple[Path, dict]:
    """Checkpoints of steps 3 and 6, and the state of each."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    states = {step: setup.compiled.init() | {"step": jax.numpy.int32(step)} for step in (3, 6)}
    with Checkpoints(folder, keep=3) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state, setup.identity | META)
    return folder, {step: jax.device_get(state) for step, state in states.items()}


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved[0], tmp_path / "checkpoints"))


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def cut_off(step: Path) -> None:
    file = largest(step)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change_a_bit(step: Path) -> None:
    """In the middle of the parameters, where nothing but a sum can tell."""
    file = largest(step)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


DAMAGES = {
    "cut off": cut_off,
    "a bit changed": change_a_bit,
    "a file gone": lambda step: largest(step).unlink(),
    "all arrays gone": lambda step: shutil.rmtree(step / "state"),
    "no record": lambda step: (step / "meta" / "metadata").unlink(),
    "half a record": lambda step: (step / "meta" / "metadata").write_text('{"vocabulary": "'),
    "no description": lambda step: (step / "state" / "_METADATA").write_text(""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_quarantined_and_the_one_before_is_used(setup, saved, folder, damage, capsys):
    DAMAGES[damage](folder / "6")
    with Checkpoints(folder, keep=3) as checkpoints:
        start = restore_or_init(setup.run(), checkpoints)
        assert checkpoints.steps == [3]
        assert (start.step, start.skipped, start.num_rollbacks) == (3, ((1, 2),), 1)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(start.state), saved[1][3])
        # Its number is free again.
        checkpoints.save(6, start.state, setup.identity | META)
        checkpoints.wait()
        assert checkpoints.steps == [3, 6]
    said = capsys.readouterr().err
    assert f"damaged: {folder}/6" in said and "now called damaged-6" in said
    assert (folder / "damaged-6").is_dir()


def test_damaged_checkpoints_only_end_the_run(setup, folder):
    for step in ("3", "6"):
        cut_off(folder / step)
    with (
        Checkpoints(folder, keep=3) as checkpoints,
        pytest.raises(UserError, match=r"no checkpoint is left to continue from: .*/3 .*; bring back one"),
    ):
        restore_or_init(setup.run(), checkpoints)
    assert (folder / "3").is_dir()


def test_partial_checkpoint_of_a_killed_save_is_removed(setup, folder):
    shutil.copytree(folder / "6", folder / "9.orbax-checkpoint-tmp")
    with Checkpoints(folder, keep=3, read_only=True):
        pass
    # Another run may be writing it: only the one that trains here clears it.
    assert (folder / "9.orbax-checkpoint-tmp").exists()
    with Checkpoints(folder, keep=3) as checkpoints:
        assert restore_or_init(setup.run(), checkpoints).step == 6
    assert not (folder / "9.orbax-checkpoint-tmp").exists()


def test_a_whole_checkpoint_of_another_shape_is_refused_and_stays(setup, saved, folder):
    model = dataclasses.replace(setup.config.model, model_dim=64)
    wider = TransformerTraining.open(dataclasses.replace(setup.config, model=model), setup.workdir)
    with Checkpoints(folder, keep=3) as checkpoints:
        # As if it were the wider model's.
        checkpoints.save(9, saved[1][6], wider.identity | META)
        checkpoints.wait()
        with pytest.raises(UserError, match="does not fit the model"):
            restore_or_init(wider.run(), checkpoints)
    assert (folder / "9").is_dir()


def test_resume_logs_fields_that_may_change_and_refuses_others(setup, folder, capsys):
    def changed(**fields):
        train = dataclasses.replace(setup.config.train, **fields)
        return TransformerTraining.open(dataclasses.replace(setup.config, train=train), setup.workdir)

    with Checkpoints(folder, keep=3) as checkpoints:
        assert restore_or_init(changed(save_every=7).run(), checkpoints).step == 6
        assert "changed: config.train.save_every was 1000 and is 7" in capsys.readouterr().out
        with pytest.raises(UserError, match=r"config.train.seed was 0 and is 1; use those again"):
            restore_or_init(changed(seed=1).run(), checkpoints)


def of_length(setup, num_steps):
    """The same run with another end."""
    train = dataclasses.replace(setup.config.train, num_tokens=8.0 * 48 * num_steps)
    return TransformerTraining.open(dataclasses.replace(setup.config, train=train), setup.workdir)


@pytest.mark.parametrize("num_steps", [7, 9, 20, 1000])
def test_resume_with_another_length_logs_the_new_schedule(setup, saved, folder, capsys, num_steps):
    moved = of_length(setup, num_steps)
    with Checkpoints(folder, keep=3) as checkpoints:
        start = restore_or_init(moved.run(), checkpoints)
    assert start.step == 6
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(start.state), saved[1][6])
    schedule = learning_rate(setup.config.optimizer, num_steps)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("schedule: ")]
    # No step of this run was taken yet.
    assert said == [
        f"schedule: the run ends at step {num_steps:,}, not 10: the learning rate is {float(schedule(0)):.3g} from "
        f"here on, not 0, and falls to {float(schedule(num_steps)):.3g} at the end"
    ]


def test_a_run_that_ends_where_it_is_is_finished_and_one_that_is_past_its_end_is_refused(setup, folder, capsys):
    with Checkpoints(folder, keep=3) as checkpoints:
        start = restore_or_init(of_length(setup, 6).run(), checkpoints)
        assert (start.step, start.state) == (6, {})
        with pytest.raises(UserError, match="ends the run at step 5, but it is at step 6 already: give at least 2,304"):
            restore_or_init(of_length(setup, 5).run(), checkpoints)
    assert "schedule" not in capsys.readouterr().out


def test_more_steps_than_can_be_counted(setup):
    config = dataclasses.replace(setup.config, train=TrainConfig(num_tokens=1e30))
    with pytest.raises(UserError, match=r"train\.num_tokens 1e\+30 takes .* steps"):
        TransformerTraining.open(config, setup.workdir)
