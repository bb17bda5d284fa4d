"""CLIP score: wrong prompts lower it, prompts without a word do not count."""

import numpy as np
import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation import clip_score
from cm3leon_jax.evaluation.clip_score import ClipScore
from tests.evaluation.stand_in import ColorEncoder, given_images

COLORS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}


def vector(text: str) -> np.ndarray:
    return np.tile(np.array(COLORS[text]) - 100.0, 4) if text in COLORS else np.zeros(12)


def images(*names: str) -> np.ndarray:
    return np.stack([np.full((4, 4, 3), COLORS[name], np.uint8) for name in names])


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_score, "load_encoder", lambda path: ColorEncoder(vector))


def test_images_of_their_prompts_score_100_and_of_others_less():
    names = ["red", "green", "blue"]
    right = ClipScore(encoder="e")(given_images(images(*names), images("red"), names))
    assert right["clip_score"].value == pytest.approx(100, abs=1e-4)
    wrong = ClipScore(encoder="e")(given_images(images(*names), images("red"), names[1:] + names[:1]))
    assert wrong["clip_score"].value < 50
    assert right.keys() == {"clip_score", "clip_score_unread"}


def test_the_best_image_of_each_prompt_has_a_value_of_its_own():
    evaluation = given_images(
        images("red", "blue", "green", "green"), images("red"), ["red", "red", "green", "green"], 2
    )
    found = ClipScore(encoder="e", name="fit")(evaluation)
    assert found["fit_best"].value == pytest.approx(100, abs=1e-4)
    assert found["fit"].value < found["fit_best"].value
    assert (found["fit"].n, found["fit_best"].n) == (4, 2)


def test_prompts_without_a_word_are_counted_and_do_not_count():
    found = ClipScore(encoder="e")(given_images(images("red", "blue"), images("red"), ["red", "???"]))
    assert found["clip_score"].value == pytest.approx(100, abs=1e-4)
    assert found["clip_score"].n == 1 and found["clip_score_unread"] == 1
    with pytest.raises(UserError, match="reads no token of any prompt"):
        ClipScore(encoder="e")(given_images(images("red"), images("red"), ["???"]))


def test_an_encoder_of_images_alone_is_refused(monkeypatch):
    monkeypatch.setattr(clip_score, "load_encoder", lambda path: ColorEncoder())
    with pytest.raises(UserError, match="cannot use the encoder e: it does not compare texts with images"):
        ClipScore(encoder="e")(given_images(images("red"), images("red")))
