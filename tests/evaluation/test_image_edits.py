"""Distances between edited images and their targets, and the fractions of codes that an edit changed."""

import numpy as np
import pytest

from cm3leon_jax.encoders.base import Encoder
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.image_edits import ImageEdits, code_changes, pixel_differences
from cm3leon_jax.evaluation.set_results import ComparedEdits
from tests.evaluation.contexts import evaluation_with

SOURCES = np.array([[1, 2, 3, 4], [1, 2, 3, 4], [5, 6, 7, 8]])
EDITED = np.array([[9, 2, 3, 4], [1, 2, 3, 4], [5, 0, 0, 8]])
MASKS = np.array([[True, True, False, False], [True, False, False, False], [False, False, False, False]])


def test_pixels_are_from_0_to_1():
    black, gray = np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 4, 4, 3), 51, np.uint8)
    gray[1] = 255
    l1, l2 = pixel_differences(black, gray)
    np.testing.assert_allclose(l1, [0.2, 1])
    np.testing.assert_allclose(l2, [0.04, 1])


def test_changed_codes_inside_and_outside_of_the_mask():
    found = {name: each.value for name, each in code_changes(SOURCES, EDITED, MASKS).items()}
    assert found == {
        "edits_changed": pytest.approx((0.25 + 0 + 0.5) / 3),
        "edits_unedited": pytest.approx(1 / 3),
        # The last has no mask.
        "edits_changed_inside": 0.25,
        "edits_changed_outside": 0,
    }


def test_without_masks_there_is_no_inside():
    assert set(code_changes(SOURCES, EDITED, np.zeros_like(MASKS))) == {"edits_changed", "edits_unedited"}


class MeanColorEncoder(Encoder):
    family = "mean_color"

    def encode_images(self, images, dropout=0.0, keys=None):
        means = images.mean(axis=(1, 2), dtype=np.float32)
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def encode_texts(self, texts, dropout=0.0, keys=None):
        return np.array([{"red": [1, 0, 0], "green": [0, 1, 0]}[text] for text in texts], np.float32)


def edits(captions: list[str]) -> EvaluationContext:
    """Three edited images, red, of targets that are red, red and green."""
    edited, targets = np.zeros((2, 3, 4, 4, 3), np.uint8)
    edited[..., 0] = 255
    targets[:2, ..., 0], targets[2, ..., 1] = 255, 255
    found = ComparedEdits(
        ids=["a", "b", "c"],
        instructions=["paint it"] * 3,
        sources=edited,
        edited=edited,
        targets=targets,
        source_codes=SOURCES,
        edited_codes=EDITED,
        target_codes=EDITED,
        masks=MASKS,
        target_captions=captions,
    )
    return evaluation_with(edited=lambda name: found)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_the_metric(monkeypatch, batch_size):
    monkeypatch.setattr("cm3leon_jax.evaluation.image_edits.load_encoder", lambda path: MeanColorEncoder({}))
    found = ImageEdits("magicbrush", encoder="clip", batch_size=batch_size)(edits(["red", "", "green"]))
    assert found["edits_l1"].value == pytest.approx(2 / 9)
    assert found["edits_l2"].value == pytest.approx(2 / 9)
    assert found["edits_clip_i"].value == pytest.approx(2 / 3)
    assert (found["edits_clip_t"].value, found["edits_clip_t"].n) == (0.5, 2)
    assert found["edits_unedited"].value == pytest.approx(1 / 3)


def test_without_an_encoder_or_captions_there_is_no_clip(monkeypatch):
    assert not {"edits_clip_i", "edits_clip_t"} & set(ImageEdits("magicbrush")(edits(["red"] * 3)))
    monkeypatch.setattr("cm3leon_jax.evaluation.image_edits.load_encoder", lambda path: MeanColorEncoder({}))
    assert "edits_clip_t" not in ImageEdits("magicbrush", encoder="clip")(edits(["", " ", ""]))


def test_a_set_without_edits_is_refused():
    no_images, no_codes = np.zeros((0, 4, 4, 3), np.uint8), np.zeros((0, 4), int)
    none = ComparedEdits([], [], *[no_images] * 3, *[no_codes] * 3, no_codes.astype(bool), [])
    with pytest.raises(UserError, match="the evaluation set 'magicbrush' has no edits"):
        ImageEdits("magicbrush")(evaluation_with(edited=lambda name: none))
