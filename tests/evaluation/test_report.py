"""The page holds what it was given, escapes it, and draws its curves."""

import re
from types import SimpleNamespace

import numpy as np

from cm3leon_jax.config import Config
from cm3leon_jax.evaluation.config import EvaluateConfig
from cm3leon_jax.evaluation.context import EvaluationContext
from cm3leon_jax.evaluation.report import loss_curves, masked_images, render_report
from cm3leon_jax.generation.captioned import CaptionedImages


def test_the_page_shows_everything():
    rng = np.random.default_rng(0)

    def images(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, (*shape, 8, 8, 1), dtype=np.uint8)

    evaluation = object.__new__(EvaluationContext)
    evaluation.__dict__.update(
        config=Config(evaluate=EvaluateConfig(prompts=("a handwritten <seven>",), samples_per_prompt=3)),
        sampled_images=images(3),
        originals=images(2),
        reconstructions=images(2),
        held_out=CaptionedImages(["true & one", "esc\x1b[31m \u202eback"], np.zeros((2, 16), np.int32)),
        held_out_images=images(2),
        infilled_images=images(2),
        captions=["written one", "two"],
        captions_left_to_right=["read one", "two"],
        mask=np.arange(16) // 4 == 1,
        model=SimpleNamespace(step=1200),
    )
    values = {"step": 1200.0, "caption_accuracy": 0.905, "eval_loss": 1.5}
    headlines = {"caption_accuracy": "of images are captioned right", "absent": "of nothing"}
    log = [{"step": 1, "loss": 5.0, "loss_text": 4.0}, {"step": 2, "loss": 4.0, "eval_loss": 4.5}]
    page = render_report(evaluation, "a run", values, headlines, log)
    assert "90.5%" in page and "captioned right" in page
    for shown in (
        "90.5%",
        "captioned right",
        "a handwritten &lt;seven&gt;",
        "true &amp; one",
        "written one",
        "read one",
        "<svg",
        "1,200",
    ):
        assert shown in page
    assert r"esc\x1b[31m \u202eback" in page and "\x1b" not in page and "\u202e" not in page
    # Samples; held-out, hidden and infilled; captioned; original and reconstruction.
    assert page.count("data:image/png;base64,") == 3 + 3 * 2 + 2 + 2 * 2
    assert not re.search(r'(src|href)="http', page)
    assert len(re.findall("<img [^>]*alt=", page)) == page.count("<img ")


def test_no_logged_steps_no_curves():
    assert loss_curves([]) == ""


def test_the_masked_region_is_gray():
    hidden = masked_images(np.zeros((1, 8, 8, 1), np.uint8), np.arange(16) // 4 == 1)[0, :, :, 0]
    assert (hidden[2:4] == 170).all()
    assert not hidden[:2].any()
    assert not hidden[4:].any()
