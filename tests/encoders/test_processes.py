"""The trainings of image tokenizers and encoders in processes of their own: stopped, killed and continued."""

import signal
from pathlib import Path
from subprocess import Popen

import numpy as np
import pytest

from cm3leon_jax.images import encode_png
from cm3leon_jax.progress import read_step_log
from cm3leon_jax.vocabulary import Vocabulary
from tests.launched import ended, start, wait_until

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    config = ConfigDict()
    config.corpus = dict(mixture="folder:{folder}/images", path="{folder}/corpus")
    config.vocabulary = dict(path="{folder}/vocabulary", num_text_tokens=288, num_masks=8)
    config.image_tokenizer = dict(
        resolution=8, in_channels=3, base_channels=4, channel_multipliers=(1, 2), num_res_blocks=1,
        latent_channels=4, embedding_dim=3, codebook_size=32)
    config.image_tokenizer.training = dict(
        num_steps=60, batch_size=8, peak_learning_rate=1e-3, codebook_update="ema", discriminator_layers=1,
        discriminator_channels=4, discriminator_start=20, flip=True, log_every=1, save_every=15)
    config.encoder = dict(
        embedding_dim=16, resolution=8, patch_size=4, image_layers=1, image_dim=16, image_heads=2, max_text_tokens=8,
        text_layers=1, text_dim=16, text_heads=2)
    config.encoder.training = dict(num_steps=60, batch_size=8, warmup_steps=5, log_every=1, save_every=15)
    config.distributed = dict(initialization_seconds=60, heartbeat_seconds=10)
    return config
"""
NUM_DEVICES, NUM_STEPS = 4, 60
COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 230), "white": (235, 235, 235)}


@pytest.fixture
def command(tmp_path):
    """Starts a command on four virtual devices, however many processes they belong to."""
    rng, folder = np.random.default_rng(0), tmp_path / "images"
    folder.mkdir()
    for index in range(80):
        name = list(COLORS)[index % len(COLORS)]
        image = np.full((8, 8, 3), COLORS[name]) + rng.integers(-20, 20, (8, 8, 3))
        (folder / f"{index:03}.png").write_bytes(encode_png(image.clip(0, 255).astype(np.uint8)))
        (folder / f"{index:03}.txt").write_text(f"a {name} square, number {index}")
    Vocabulary.train([f"a {name} square" for name in COLORS], 288, 32, 8, progress=False).save(tmp_path / "vocabulary")
    config = tmp_path / "tiny.py"
    config.write_text(CONFIG.replace("{folder}", str(tmp_path)))
    started: list[Popen] = []

    def run(name: str, workdir: Path, processes: int) -> list[Popen]:
        found = start([name, f"--config={config}", f"--workdir={workdir}"], processes, NUM_DEVICES // processes)
        started.extend(found)
        return found

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("trained", ["image_tokenizer", "encoder"])
def test_stopped_and_killed_trainings_end_with_the_bits_of_an_undisturbed_one(command, tmp_path, trained, processes):
    name = f"train-{trained.replace('_', '-')}"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    found = ended(command(name, whole, processes), 480.0)
    assert [code for code, _ in found] == [0] * processes, found

    def steps() -> list[int]:
        return [line["step"] for line in read_step_log(broken / f"{trained}_metrics.jsonl")]

    def disturb(step: int, number: signal.Signals) -> list[int]:
        running = command(name, broken, processes)
        wait_until(lambda: bool(steps()) and steps()[-1] >= step, running[0])
        running[-1].send_signal(number)
        return [code for code, _ in ended(running, 480.0)]

    assert disturb(10, signal.SIGTERM) == [75] * processes
    stopped_at = steps()[-1]
    assert stopped_at < NUM_STEPS
    *others, killed = disturb(stopped_at + 15, signal.SIGKILL)
    assert killed == -signal.SIGKILL and others == [75] * (processes - 1)
    assert steps()[-1] < NUM_STEPS
    found = ended(command(name, broken, processes), 480.0)
    assert [code for code, _ in found] == [0] * processes, found
    assert "continued from the checkpoint of step" in found[0][1] or "finished" in found[0][1]

    weights = [(folder / trained / "model.safetensors").read_bytes() for folder in (whole, broken)]
    assert weights[0] == weights[1]
    logged = [read_step_log(folder / f"{trained}_metrics.jsonl") for folder in (whole, broken)]
    assert [line["step"] for line in logged[1]] == list(range(1, NUM_STEPS + 1))
    assert [line["loss"] for line in logged[0]] == [line["loss"] for line in logged[1]]
