"""The page holds what it was given, escapes it, and draws its curves."""

import re

import numpy as np

from cm3leon_jax.evaluation.report import Report, loss_curves, masked_images, write_report


def test_the_page_shows_everything(tmp_path):
    rng = np.random.default_rng(0)

    def images(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, (*shape, 8, 8, 1), dtype=np.uint8)

    report = Report(
        title="a run",
        values={"step": 1200.0, "caption_accuracy": 0.905, "eval_loss": 1.5},
        headlines={"caption_accuracy": "of images are captioned right", "absent": "of nothing"},
        log=[{"step": 1, "loss": 5.0, "loss_text": 4.0}, {"step": 2, "loss": 4.0, "eval_loss": 4.5}],
        prompts=["a handwritten <seven>"],
        sampled=images(1, 3),
        originals=images(2),
        reconstructions=images(2),
        held_out=images(2),
        infilled=images(2),
        texts=["true & one", "esc\x1b[31m \u202eback"],
        captions=["written one", "two"],
        captions_left_to_right=["read one", "two"],
        mask=np.arange(16) // 4 == 1,
    )
    write_report(report, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
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
