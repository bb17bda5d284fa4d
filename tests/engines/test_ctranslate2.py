"""CTranslate2 generates from an exported folder with materialized norms: the same greedy tokens."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.huggingface.conftest import greedy

PYTHON = os.environ["ENGINES_PYTHON"]
ROOT = Path(__file__).parents[2]


def run_there(*arguments: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([PYTHON, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("quantization", "least_equal"), [("float32", 40), ("int8", 1)])
def test_greedy_tokens_equal_ours(make_run, quantization, least_equal):
    """With int8 weights the first tokens are: a random model's scores are close to each other."""
    run = make_run(sequence_length=64, num_layers=3)
    folder = run.export(materialize_norms=True)
    prompt = np.random.default_rng(0).integers(4, run.vocabulary.size - 1, 10).tolist()
    (folder / "request.json").write_text(json.dumps({"prompt": prompt, "max_tokens": 40}))
    convert = ("-m", "examples.ctranslate2_convert", str(folder), str(folder / "converted"))
    run_there(*convert, f"--quantization={quantization}")
    script = Path(__file__).with_name("run_ctranslate2.py")
    run_there(str(script), *(str(folder / name) for name in ("converted", "request.json", "answer.json")))
    found = json.loads((folder / "answer.json").read_text())
    assert len(found) == 40 and found[:least_equal] == greedy(run.model, prompt, 40)[:least_equal]
