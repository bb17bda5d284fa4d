"""The page that compares runs: what it marks, what it warns of, and what it takes as a run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from cm3leon_jax.cli import main
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.comparison import EvaluatedRun, render_comparison, short_names, table
from cm3leon_jax.evaluation.estimates import Estimate, flatten
from cm3leon_jax.evaluation.gallery import GALLERY, GalleryEntry, read_gallery, write_gallery


def evaluated(folder: Path, accuracy: Estimate, sha256: str = "aa", text: str = "a <b>") -> Path:
    """A run's folder after an evaluation of two requests."""
    folder.mkdir(parents=True)
    values = flatten({"step": 100.0, "accuracy": accuracy, f"only_{folder.name}": 1.0}) | {"coco_sha256": sha256}
    (folder / "evaluation.json").write_text(json.dumps(values))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0, "eval_loss": 2.5}\n')
    image = np.full((8, 8, 1), 200, np.uint8)
    entries = [
        GalleryEntry("", "seven", "seven", None, [image, image], "", ()),
        GalleryEntry("coco", "9", "", image, [], text, ("two cats",)),
    ]
    write_gallery(entries, folder / GALLERY)
    return folder


def test_intervals_that_lie_apart_are_marked(tmp_path: Path) -> None:
    spans = ((0.4, 0.5, 0.6), (0.55, 0.65, 0.75), (0.65, 0.7, 0.8))
    runs = [
        EvaluatedRun.read(evaluated(tmp_path / str(index), Estimate(value, low, high, 50)))
        for index, (low, value, high) in enumerate(spans)
    ]
    rows = dict(table(runs))
    assert [cell.differs for cell in rows["accuracy"] if cell] == [False, False, True]
    assert [cell is None for cell in rows["only_1"]] == [True, False, True]
    assert "accuracy_low" not in rows


def test_the_command_writes_one_page_without_outside_resources(tmp_path: Path) -> None:
    first = evaluated(tmp_path / "runs" / "first", Estimate(0.5, 0.4, 0.6, 50))
    second = evaluated(tmp_path / "runs" / "second", Estimate(0.9, 0.8, 0.95, 50), sha256="bb")
    page = tmp_path / "page.html"
    assert main(["compare", str(first), str(second), f"--output={page}"]) == 0
    html = page.read_text()
    for shown in ("first", "second", "0.4 to 0.6, n = 50", "a &lt;b&gt;", "<svg"):
        assert shown in html
    assert "Not comparable" in html and "coco had other files" in html.replace("\n", " ")
    assert html.count("data:image/png;base64,") == 4
    assert 'src="http' not in html


def test_equal_files_are_comparable(tmp_path: Path) -> None:
    runs = [EvaluatedRun.read(evaluated(tmp_path / name, Estimate(0.5, 0.4, 0.6, 5))) for name in ("a", "b")]
    assert "Not comparable" not in render_comparison(runs)


def test_other_weights_of_a_judge_are_not_comparable(tmp_path: Path) -> None:
    runs = [EvaluatedRun.read(evaluated(tmp_path / name, Estimate(0.5, 0.4, 0.6, 5))) for name in ("a", "b", "c")]
    hashes = ({"fid_weights_sha256": "1"}, {}, {"fid_weights_sha256": "2"})
    runs = [dataclasses.replace(run, hashes={**run.hashes, **more}) for run, more in zip(runs, hashes, strict=True)]
    # Where a run has no such metric there is nothing to compare.
    assert "Not comparable" not in render_comparison(runs[:2])
    assert "fid_weights had other files" in render_comparison(runs).replace("\n", " ")


def test_a_run_without_evaluation_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tmp_path)]) == 2
    assert "has no evaluation.json: run `cm3leon evaluate" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", '{"a": []}', '{"a": {}}'])
def test_a_damaged_evaluation_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(UserError, match="cannot be read"):
        EvaluatedRun.read(tmp_path)


def test_a_later_gallery_takes_the_place_of_the_earlier(tmp_path: Path) -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    write_gallery([GalleryEntry("", str(n), "p", None, [image], "", ()) for n in range(3)], tmp_path / "g")
    write_gallery([GalleryEntry("", "x", "p", None, [image], "t", ("r",))], tmp_path / "g")
    ((line, images),) = read_gallery(tmp_path / "g")
    assert (line["id"], line["text"], line["references"], len(images)) == ("x", "t", ["r"], 1)
    assert sorted(path.name for path in (tmp_path / "g").iterdir()) == ["00000_0.png", "samples.jsonl"]


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["runs/a", "runs/b"], ["a", "b"]),
        (["runs/a/x", "other/x"], ["runs/a/x", "other/x"]),
        (["runs/demo"], ["demo"]),
        (["runs/a", "runs/a"], ["a", "a"]),
    ],
)
def test_names_without_the_folders_they_share(names: list[str], short: list[str]) -> None:
    assert short_names(names) == short
