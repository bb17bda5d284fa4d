"""A metric of the user's own: a module that the config names, and no file of the package changed."""

import json

import pytest

from cm3leon_jax.cli import main
from cm3leon_jax.images import encode_png
from examples.digits import images as digits
from tests.test_whole_path import CONFIG

MODULE = '''
from dataclasses import dataclass

from cm3leon_jax.evaluation.registry import METRICS

METRICS.add("brightness", "brightness_metric:Brightness")


@dataclass(frozen=True)
class Brightness:
    """The fraction of pixels of the sampled images that are brighter than a threshold."""

    threshold: int = 128

    def __call__(self, evaluation):
        held_out = evaluation.held_out_images > self.threshold
        sampled = evaluation.sampled_images > self.threshold
        return {"brightness": float(sampled.mean()), "held_out_brightness": float(held_out.mean())}
'''


@pytest.mark.slow
def test_a_metric_from_outside_the_package_is_measured(tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    pixels, labels = digits.load("train")
    for index in range(60):
        (images / f"{index:03d}.png").write_bytes(encode_png(pixels[index]))
        (images / f"{index:03d}.txt").write_text(digits.caption(int(labels[index]), index))
    (tmp_path / "brightness_metric.py").write_text(MODULE)
    (tmp_path / "tiny.py").write_text(CONFIG.replace("{folder}", str(images)))
    arguments = [
        *(f"--config={tmp_path}/tiny.py", f"--workdir={tmp_path}/run"),
        *("--config.train.num_tokens=512", "--config.modules=brightness_metric"),
        "--config.evaluate.metrics={'bright': {'type': 'brightness', 'threshold': 100}}",
    ]
    for command in ("train-text-tokenizer", "train-image-tokenizer", "prepare", "train", "evaluate"):
        assert main([command, *arguments]) == 0
    values = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert values.keys() == {"step", "brightness", "held_out_brightness"}
    assert all(0 < values[name] < 1 for name in ("brightness", "held_out_brightness"))

    # One option from the command line; another name, or an option that it does not have, is one line.
    assert main(["evaluate", *arguments, "--config.evaluate.metrics.bright.threshold=255"]) == 0
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["brightness"] == 0
    capsys.readouterr()
    for argument, message in (
        ("bright.treshold=3", "metrics.bright.treshold: no such field; did you mean threshold?"),
        ("bright.type=brightnes", "'brightnes', which no module registers: did you mean 'brightness'?"),
        ("bright.threshold=dark", "metrics.bright.threshold is 'dark', a str: it must be a int"),
    ):
        assert main(["evaluate", *arguments, f"--config.evaluate.metrics.{argument}"]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
