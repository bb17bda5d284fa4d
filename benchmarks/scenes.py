"""Trains, tunes and judges the scenes of examples/scenes, counting CPU seconds, and shows what the model does.

    python benchmarks/scenes.py --folder=runs/scenes_benchmark
    python benchmarks/scenes.py --folder=runs/long --pretraining-steps=2000 --tuning-steps=40000

Every command runs as a process of its own; one that is done is not run again, and one that was stopped goes on, so that
a long run can be spread out. Prints the seconds of each and the values of evaluation.json; writes scenes.png: lists of
boxes with the images made of them, and edits, whose sources are shown as the image tokenizer gives them back.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

TOKENS_PER_STEP = 16 * 256


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where runs and tokenizers go")
    parser.add_argument("--pretraining-steps", type=int, default=700)
    parser.add_argument("--tuning-steps", type=int, default=4000)
    parser.add_argument("--num", type=int, default=500, help="requests a task")
    parser.add_argument("--config", action="append", default=[], help="a further field=value of the tuning run")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    shared = [
        f"--config.vocabulary.path={folder}/vocabulary",
        f"--config.image_tokenizer.path={folder}/image_tokenizer",
    ]
    pretraining = [
        "scenes",
        folder / "scenes",
        f"--config.train.num_tokens={arguments.pretraining_steps * TOKENS_PER_STEP}",
    ]
    tuning = [
        "scenes_sft",
        folder / "scenes_sft",
        f"--config.train.num_tokens={arguments.tuning_steps * TOKENS_PER_STEP}",
        f"--config.train.init_from={folder}/scenes",
        *(f"--config.{value}" for value in arguments.config),
    ]
    seconds = Seconds(folder / "cpu_seconds.json")
    for command, (config, workdir, *options) in (
        ("train-text-tokenizer", tuning),
        ("train-image-tokenizer", tuning),
        ("prepare", pretraining),
        ("train", pretraining),
        ("prepare", tuning),
        ("train", tuning),
        ("evaluate", tuning),
    ):
        name = f"{command} {config}"
        if name not in seconds.known:
            run = [sys.executable, "-m", "cm3leon_jax", command, f"--config={config}", f"--workdir={workdir}"]
            seconds.measure(name, [*run, *options, *shared])
    for name, value in seconds.known.items():
        print(f"{name:40} {value:8.0f} CPU s")
    print(f"{'in all':40} {sum(seconds.known.values()):8.0f} CPU s")
    values = json.loads((folder / "scenes_sft" / "evaluation.json").read_text())
    for name in [name for name in values if f"{name}_low" in values]:
        print(f"{name:40} {values[name]:.3f} [{values[f'{name}_low']:.3f}, {values[f'{name}_high']:.3f}]")
    show(folder / "scenes_sft", folder / "scenes.png")
    return 0


class Seconds:
    """CPU seconds of commands that are done, in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.known: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}

    def measure(self, name: str, command: list[str]) -> None:
        """Runs a command; one that fails ends the benchmark, and what it took is lost."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, cwd=REPOSITORY)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.known[name] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self._file.write_text(json.dumps(self.known, indent=2) + "\n")


def show(run: Path, file: Path, columns: int = 8) -> None:
    """A grid of held-out requests and what the model makes of them: boxes and their image, four edits of each kind."""
    from PIL import Image, ImageDraw

    import cm3leon_jax
    from examples.scenes.edits import EDITS, sample_edit
    from examples.scenes.pictures import SIDE, SceneConfig, background, render, sample
    from examples.scenes.texts import caption, ordered

    model, config, scale = cm3leon_jax.load(run), SceneConfig(), 3
    rows: list[list[np.ndarray]] = [[], []]
    for index in range(columns):
        scene = sample(config, "validation", 5, index)
        boxes = Image.fromarray(background(scene.sky, scene.ground).astype(np.uint8)).resize((SIDE * scale,) * 2, 0)
        canvas = ImageDraw.Draw(boxes)
        for each in scene.objects:
            left, top, right, bottom = (side * scale for side in each.box)
            canvas.rectangle((left, top, right - 1, bottom - 1), outline="white")
            canvas.text((left + 2, top + 2), each.kind[:6], fill="white")
        objects = [(each.kind, each.box) for each in ordered(scene, "raster")]
        (image,) = model.text_to_image(caption(scene, "short", index), objects=objects)
        rows[0].append(np.asarray(boxes))
        rows[1].append(np.asarray(image.resize((SIDE * scale,) * 2, 0)))
    for type in EDITS:
        row = []
        for index in range(columns // 2):
            edit = sample_edit(config, "validation", 6, index, type)
            before = render(edit.before)
            (after,) = model.edit(Image.fromarray(before), edit.instruction(index, held_out=True))
            print(f"{type} {index}: {edit.instruction(index, held_out=True)}")
            source = model.trained.image_tokenizer.reconstruct(before[None])[0]
            row += [np.asarray(Image.fromarray(source).resize((SIDE * scale,) * 2, 0))]
            row += [np.asarray(after.resize((SIDE * scale,) * 2, 0))]
        rows.append(row)
    gap = 4
    framed = [[np.pad(image, ((0, gap), (0, gap), (0, 0)), constant_values=255) for image in row] for row in rows]
    Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in framed])).save(file)
    print(f"written to {file}")


if __name__ == "__main__":
    sys.exit(main())
