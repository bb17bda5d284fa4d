"""Ablations of the scenes of examples/scenes: what each part of the tuning is worth, at equal steps.

    python benchmarks/scenes_ablations.py --folder=runs/scenes_benchmark --tuning-steps=1200 --num=100

The folder is that of benchmarks/scenes.py, whose tokenizers, corpora and pretraining run are used. Every variant is
tuned alike but for the fields that its name says, and judged on the same held-out requests; one that is done is not
run again. A variant of the model is pretrained anew. Guidance is varied when the tuned model is evaluated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

WHOLE = ("objective.weights.context=1.0", "objective.weights.instruction=1.0", "objective.weights.text=1.0")
ONE_WORDING = ("corpus.mixture=scenes_instructions_one_wording",)
# Fields of the tuning run that differ from the config.
TRAINED: dict[str, tuple[str, ...]] = {
    "as in the config": (),
    "rotary positions in the sequence alone": ("model.rotary_image_positions=False",),
    "loss on the whole sequence": WHOLE,
    "changed codes weigh 1": ("objective.weights.changed=1.0",),
    "AdamW": ("optimizer.algorithm=adamw",),
    "from scratch": ("train.init_from=",),
    "one wording": ONE_WORDING,
}
# Fields of the evaluation of the first of them.
GUIDED: dict[str, tuple[str, ...]] = {
    "edits, two streams": ("sampling.edit_guidance=1.5", "sampling.edit_image_guidance=1.5"),
    "edits, three streams": ("sampling.edit_guidance=2.0", "sampling.edit_image_guidance=1.2"),
    "images from texts, two streams": ("sampling.guidance=1.5",),
}
TASKS = ("objects", "edits", "questions", "captions")
MEASURES = (
    "objects_objects_at_position",
    "edits_sky_whole",
    "edits_add_whole",
    "edits_remove_whole",
    "edits_replace_whole",
    "edits_move_whole",
    "edits_unedited",
    "questions_question_accuracy",
    "captions_captions_with_kinds",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="that of benchmarks/scenes.py")
    parser.add_argument("--tuning-steps", type=int, default=1200)
    parser.add_argument("--num", type=int, default=100, help="requests a task")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    file = folder / "ablations.json"
    found: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.exists() else {}
    for name, options in TRAINED.items():
        run = Variant(folder, f"ablation_{name.replace(' ', '_')}", arguments.num)
        if name not in found:
            run.train(arguments.tuning_steps, options)
            found[name] = run.evaluate(options)
            file.write_text(json.dumps(found, indent=2) + "\n")
    for name, options in GUIDED.items():
        if name not in found:
            run = Variant(folder, "ablation_as_in_the_config", arguments.num)
            found[name] = run.evaluate(options)
            file.write_text(json.dumps(found, indent=2) + "\n")
    for name, values in found.items():
        print(name)
        for measure in MEASURES:
            interval = [values[f"{measure}_{side}"] for side in ("low", "high")]
            print(f"  {measure:40} {values[measure]:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]")
    return 0


class Variant:
    """A tuning run in a folder of its own."""

    def __init__(self, folder: Path, name: str, num: int) -> None:
        self._folder, self._workdir, self._num = folder, folder / name, num

    def train(self, steps: int, options: tuple[str, ...]) -> None:
        """Prepares and pretrains, where the variant has another corpus or model, and tunes."""
        start = self._folder / "scenes"
        if options == ONE_WORDING:
            self._run("prepare", self._workdir, *options)
        if any(option.startswith("model.") for option in options):
            corpus, start = f"corpus.path={start}/corpus", self._workdir / "pretraining"
            self._run("train", start, corpus, *options, config="scenes")
        tokens = f"train.num_tokens={steps * tokens_per_step()}"
        self._run("train", self._workdir, tokens, f"train.init_from={start}", *options)

    def evaluate(self, options: tuple[str, ...]) -> dict[str, float]:
        """Measures what the tuned model does; all values of evaluation.json."""
        metric = (f"evaluate.metrics.scenes.num={self._num}", f"evaluate.metrics.scenes.tasks={TASKS}")
        self._run("evaluate", self._workdir, *metric, *options)
        return json.loads((self._workdir / "evaluation.json").read_text())

    def _run(self, command: str, workdir: Path, *options: str, config: str = "scenes_sft") -> None:
        corpus = self._workdir if ONE_WORDING[0] in options else self._folder / "scenes_sft"
        fields = (
            f"vocabulary.path={self._folder}/vocabulary",
            f"image_tokenizer.path={self._folder}/image_tokenizer",
            f"corpus.path={corpus}/corpus",
            *options,
        )
        base = [sys.executable, "-m", "cm3leon_jax", command, f"--config={config}", f"--workdir={workdir}"]
        subprocess.run([*base, *(f"--config.{field}" for field in fields)], check=True, cwd=REPOSITORY)


def tokens_per_step() -> int:
    """The positions of a batch of the config."""
    sys.path.insert(0, str(REPOSITORY))
    from examples.scenes import scenes_sft

    batch = scenes_sft.get_config().batch
    return batch.batch_size * batch.sequence_length


if __name__ == "__main__":
    sys.exit(main())
