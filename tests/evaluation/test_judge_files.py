"""The hashes of what judges: each option that is a judge, and nothing else."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from cm3leon_jax.evaluation.judge_files import JudgePath, files_of, judge_hashes
from cm3leon_jax.evaluation.metrics import build_metrics
from cm3leon_jax.evaluation.registry import DETECTORS


@dataclass(frozen=True)
class Detector:
    weights: JudgePath


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setitem(DETECTORS, "mine", f"{__name__}:Detector")
    (tmp_path / "encoder").mkdir()
    for name in ("encoder/config.json", "encoder/model.safetensors", "inception", "lpips", "detector", "found.jsonl"):
        (tmp_path / name).write_text(name)
    return {path.name: str(path) for path in tmp_path.iterdir()}


def sha256(*names: str) -> str:
    return hashlib.sha256("".join(names).encode()).hexdigest()


def test_every_option_that_judges_has_its_hash(files: dict[str, str]) -> None:
    encoder = {"encoder": files["encoder"]}
    metrics = build_metrics(
        {
            "loss": {"type": "loss"},
            "fid": {"type": "fid", "weights": files["inception"], "reference": files["encoder"]},
            "near": {"type": "encoder_distance", **encoder},
            "clip": {"type": "clip_score", **encoder},
            "copies": {"type": "copies", **encoder},
            "edits": {"type": "edits", "set": "mine", **encoder},
            "none": {"type": "edits", "set": "other"},
            "both": {
                "type": "reconstruction",
                "lpips_weights": files["lpips"],
                "inception_weights": files["inception"],
            },
            "objects": {
                "type": "objects",
                "set": "mine",
                "detector": "mine",
                "detector_options": {"weights": files["detector"]},
                "colors": "encoder",
                "color_options": encoder,
            },
            "read": {"type": "objects", "set": "mine", "detections": files["found.jsonl"]},
        }
    )
    weights = sha256("encoder/model.safetensors")
    assert judge_hashes(metrics) == {
        "fid_weights_sha256": sha256("inception"),
        "near_encoder_sha256": weights,
        "clip_encoder_sha256": weights,
        "copies_encoder_sha256": weights,
        "edits_encoder_sha256": weights,
        "both_lpips_weights_sha256": sha256("lpips"),
        "both_inception_weights_sha256": sha256("inception"),
        "objects_detector_weights_sha256": sha256("detector"),
        "objects_colors_encoder_sha256": weights,
        "read_detections_sha256": sha256("found.jsonl"),
    }


def test_a_folder_that_is_no_encoder_is_all_its_files(tmp_path: Path) -> None:
    for name in ("b.bin", "a.json", ".hidden"):
        (tmp_path / name).write_text(name)
    (tmp_path / "more").mkdir()
    assert files_of(tmp_path) == [tmp_path / "a.json", tmp_path / "b.bin"]
