"""A text model that learns images, beside the same model from scratch: held-out emoji, and what its texts lose.

    python benchmarks/text_model_images.py runs/smollm2/folder runs/smollm2/images --steps=300

The folder is SmolLM2's (`benchmarks/text_models.py unpack`). Both models are trained on captioned emoji for as many
steps, with the same batches and the vocabulary of the import: one starts from the folder's weights with new rows for
image codes, the other from random numbers. Then both are measured on held-out emoji (nats per token of captions and of
codes, captions by infill), and on a plain text, of which neither has seen anything here. All that is done stays done:
the same command goes on, with more steps, too.

A step takes about 0.3 TFLOPs for each model: some ten seconds on a CPU core.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from ml_collections import ConfigDict

from benchmarks.text_models import ROW_LENGTH, losses_of_rows, newest_model, rows_of_text
from cm3leon_jax import config_file
from cm3leon_jax.evaluation.estimates import mean
from configs import emoji, smollm2_135m_images

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = "benchmarks/text_model_images.py"
# What its values begin with, and how they are called here.
MEASURES = {
    "likelihood_loss_text": "nats per token of held-out captions",
    "likelihood_loss_image": "nats per code of held-out images",
    "captions_cider": "CIDEr of captions of held-out images",
    "captions_exact": "captions that are the true one",
}


def get_config(start: str = "tuned") -> ConfigDict:
    """The config of both runs, "tuned" and "scratch"."""
    config, text_model = emoji.get_config(), smollm2_135m_images.get_config()
    config.vocabulary = dict(num_text_tokens=text_model.vocabulary.num_text_tokens, num_masks=16)
    config.retrieval = dict(enabled=False)
    # A row is one emoji with its name, or two.
    config.batch = dict(batch_size=4, sequence_length=160)
    config.model = text_model.model
    config.model.update(compute_dtype="float32", remat="none", init_std=0.02)
    config.optimizer = dict(peak_learning_rate=1e-3, warmup_steps=30, decay_fraction=0.2)
    if start == "tuned":
        config.optimizer.learning_rate_factors = text_model.optimizer.learning_rate_factors
    config.train = dict(log_every=10, save_every=50, keep_checkpoints=1, eval_every=0, sample_every=0)
    config.sampling = dict(temperature=0.0, max_text_tokens=16)
    metrics = {
        "likelihood": dict(type="likelihood", num_documents=256),
        "captions": dict(type="captions"),
    }
    config.evaluate = dict(num_documents=96, metrics=metrics)
    return config


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the text model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--text", type=Path, default=REPOSITORY / "README.md", help="plain text to be scored")
    arguments = parser.parse_args()
    output, folder = arguments.output.resolve(), arguments.folder.resolve()
    batch = get_config().batch
    tokens = f"train.num_tokens={arguments.steps * batch.batch_size * batch.sequence_length}"
    command("train-image-tokenizer", "tuned", output)
    if not (output / "tuned" / "checkpoints").exists():
        command("import", "tuned", output, more=(f"--from={folder}",))
    command("prepare", "tuned", output)
    text = arguments.text.read_text(encoding="utf-8")
    found: dict[str, dict[str, str]] = {"the folder": {"perplexity of a text": perplexity(output, "tuned", text, 0)}}
    for start in ("tuned", "scratch"):
        command("train", start, output, tokens)
        command("evaluate", start, output, tokens)
        values = json.loads((output / start / "evaluation.json").read_text())
        found[start] = {
            name: f"{values[key]:.3f} [{values[f'{key}_low']:.3f}, {values[f'{key}_high']:.3f}]"
            for key, name in MEASURES.items()
        }
        found[start]["perplexity of a text"] = perplexity(output, start, text)
    print(json.dumps(found, indent=2))
    return 0


def fields(output: Path) -> dict[str, str]:
    """What both runs share."""
    parts = ("vocabulary", "image_tokenizer", "corpus")
    return {f"{part}.path": str(output / part) for part in parts} | {
        "train.compilation_cache": str(output / "compiled")
    }


def command(name: str, start: str, output: Path, *options: str, more: tuple[str, ...] = ()) -> None:
    """Runs a command of one of the runs."""
    values = (*(f"{field}={value}" for field, value in fields(output).items()), *options)
    base = [sys.executable, "-m", "cm3leon_jax", name, f"--config={CONFIG}:{start}", f"--workdir={output / start}"]
    subprocess.run([*base, *(f"--config.{value}" for value in values), *more], check=True, cwd=REPOSITORY)


def perplexity(output: Path, start: str, text: str, step: int | None = None) -> str:
    """Of a plain text by a run's newest checkpoint, among the ids of texts, with an interval over rows of the text.

    The imported one, step 0, is scored when it is still there, and its figure kept.
    """
    kept = output / f"perplexity_{start}_{step}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    config = config_file.load(f"{REPOSITORY / CONFIG}:{start}", str(output / start), fields(output))
    vocabulary, model = newest_model(config, output / start)
    rows = rows_of_text(text, vocabulary)
    estimate = mean(losses_of_rows(model.logits, rows, num_ids=vocabulary.first_image_code))
    value, low, high = (math.exp(each) for each in (estimate.value, estimate.low, estimate.high))
    shown = f"{value:.2f} [{low:.2f}, {high:.2f}], {len(rows)} rows of {ROW_LENGTH}"
    if step is not None:
        kept.write_text(json.dumps(shown))
    return shown


if __name__ == "__main__":
    sys.exit(main())
