"""The whole path on a cut-down demo: a break anywhere shows here."""

import json
from pathlib import Path

import numpy as np
import pytest

from cm3leon_jax.cli import main
from cm3leon_jax.images import encode_png
from cm3leon_jax.progress import read_step_log
from examples.digits import images as digits

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    config = ConfigDict()
    config.modules = ("examples.digits.metric",)
    config.corpus = dict(mixture="folder:{folder}", encode_batch_size=16, num_sample_images=4)
    config.vocabulary = dict(num_text_tokens=280, num_masks=4)
    config.image_tokenizer = dict(
        resolution=8, in_channels=1, base_channels=8, channel_multipliers=(1, 2), num_res_blocks=1, norm_groups=4,
        latent_channels=8, embedding_dim=4, codebook_size=16)
    config.image_tokenizer.training = dict(
        num_images=0, num_steps=6, batch_size=16, discriminator_weight=0.0, log_every=2, save_every=3)
    config.batch = dict(batch_size=8, sequence_length=64)
    config.model = dict(num_layers=2, model_dim=16, num_heads=2, compute_dtype="float32", remat="none")
    config.mesh = dict(replica=2, fsdp=2, tensor=2)
    config.optimizer = dict(peak_learning_rate=1e-2, warmup_steps=2)
    config.train = dict(
        num_tokens=12 * 512, log_every=1, save_every=4, eval_every=6, eval_batches=1, sample_every=6)
    config.sampling = dict(max_text_tokens=6, batch_size=8)
    config.evaluate = dict(
        num_documents=6, prompts=("the digit one", "the digit two"), samples_per_prompt=2,
        metrics=dict(
            loss=dict(type="loss", num_sequences=8, batch_size=4), reconstruction=dict(type="reconstruction"),
            digits=dict(type="digits")))
    return config
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder of captioned digits, a config for it, and a function that runs a command."""
    root = tmp_path_factory.mktemp("whole_path")
    images = root / "images"
    images.mkdir()
    pixels, labels = digits.load("train")
    for index in range(120):
        (images / f"{index:03d}.png").write_bytes(encode_png(pixels[index]))
        (images / f"{index:03d}.txt").write_text(digits.caption(int(labels[index]), index))
    (images / "000.png").write_bytes(b"not an image")
    (root / "configs").mkdir()
    config = root / "configs" / "tiny.py"
    config.write_text(CONFIG.replace("{folder}", str(images)))

    def command(name: str, *arguments: str, workdir: str = "run") -> Path:
        code = main([name, f"--config={config}", f"--workdir={root / workdir}", *arguments])
        assert code == 0, f"cm3leon {name} ended with {code}"
        return root / workdir

    return command


@pytest.mark.slow
def test_from_raw_documents_to_a_report(run, capsys):
    for name in ("train-text-tokenizer", "train-image-tokenizer", "prepare", "inspect"):
        workdir = run(name)
    manifest = json.loads((workdir / "corpus" / "manifest.json").read_text())
    (task,) = manifest["tasks"].values()
    counted = [split["num_documents"] for split in task["splits"].values()]
    assert sum(counted) == 119
    assert (workdir / "inspect.html").stat().st_size > 1000

    # Trained in one go, and with a stop after the second checkpoint, in another place.
    run("train", "--config.train.metrics_every=8")
    shared = [f"--config.{part}.path={workdir / part}" for part in ("corpus", "vocabulary", "image_tokenizer")]
    with pytest.MonkeyPatch.context() as patch:
        import cm3leon_jax.training.transformer as transformer

        def stops_at_9(source, first_step, num_steps):
            for step in range(first_step, num_steps):
                if step == 9:
                    raise KeyboardInterrupt
                yield source[step]

        patch.setattr(transformer, "iterate", stops_at_9)
        arguments = ["train", "--config.train.metrics_every=8", *shared]
        with pytest.raises(AssertionError, match="ended with 75"):
            run(*arguments, workdir="interrupted")
    interrupted = run(*arguments, workdir="interrupted")
    assert "continued from the checkpoint of step 8" in capsys.readouterr().out
    lines, again = (read_step_log(folder / "metrics.jsonl") for folder in (workdir, interrupted))
    timing = {"tokens_per_second", "tokens_per_second_per_device", "data_wait_seconds", "step_seconds"}
    timing |= {k for line in (*lines, *again) for k in line if k.startswith(("seconds_", "goodput"))}
    assert [{k: v for k, v in line.items() if k not in timing} for line in again] == [
        {k: v for k, v in line.items() if k not in timing} for line in lines
    ]
    assert [line["step"] for line in lines if "learning_rate" in line] == list(range(1, 13))
    assert [line["step"] for line in lines if "caption_accuracy" in line] == [8, 12]
    assert lines[0]["loss"] == pytest.approx(np.log(384), rel=0.01)
    assert {path.name for path in (workdir / "samples").iterdir()} == {"step_00000006.png", "step_00000012.png"}

    run("evaluate")
    numbers = json.loads((workdir / "evaluation.json").read_text())
    assert {"text_to_image_accuracy", "caption_accuracy", "infill_accuracy"} <= numbers.keys()
    assert all(np.isfinite(value) for value in numbers.values())
    assert "<svg" in (workdir / "report.html").read_text()

    image = workdir / "samples" / "asked.png"
    image.write_bytes(encode_png(digits.load("validation")[0][0]))
    asked = workdir / "samples" / "prompts.jsonl"
    asked.write_text(
        '{"prompt": "the digit one"}\n{"task": "caption", "image": "asked.png"}\n'
        '{"task": "infill", "prompt": "the digit two", "image": "asked.png", "region": [0, 0, 0.5, 0.5]}\n'
        '{"task": "infill_text", "prompt": "the <mask> two", "image": "asked.png"}\n'
        '{"task": "continue", "segments": ["the digit"]}\n'
    )
    run("generate", f"--prompts={asked}", "--samples=2", "--config.sampling.candidates=3")
    answers = [json.loads(line) for line in (workdir / "generations" / "generations.jsonl").read_text().splitlines()]
    tasks = ("text_to_image", "caption", "infill", "infill_text", "continue")
    assert [(a["index"], a["sample"], a["task"]) for a in answers] == [
        (2 * number + sample, sample, task) for number, task in enumerate(tasks) for sample in range(2)
    ]
    for answer in answers:
        assert (answer["text"] is not None) == (answer["task"] in ("caption", "infill_text"))
        assert (answer["image"] is not None) == (answer["task"] in ("text_to_image", "infill"))
        assert (answer["image"] is None) or (workdir / "generations" / answer["image"]).exists()

    # An edit needs more positions than this model has; the other record is answered.
    asked.write_text('{"task": "edit", "prompt": "make it wide", "image": "asked.png"}\n{"prompt": "the digit one"}\n')
    with pytest.raises(AssertionError, match="ended with 2"):
        run("generate", f"--prompts={asked}", "--config.sampling.scorer=caption")
    errors = capsys.readouterr().err
    assert f"{asked}, line 1: a prompt of " in errors
    assert "1 of 2 records have no result" in errors
    (answer,) = (json.loads(line) for line in (workdir / "generations" / "generations.jsonl").read_text().splitlines())
    assert (answer["index"], answer["image"]) == (1, "00001.png")
    (failure,) = (json.loads(line) for line in (workdir / "generations" / "failed.jsonl").read_text().splitlines())
    assert failure["line"] == 1

    # Another config does not silently continue this run; another vocabulary is not read as this one.
    assert (
        main(["train", f"--config={workdir.parent}/configs/tiny.py", f"--workdir={workdir}", "--config.batch.seed=1"])
        == 2
    )
    assert "batch.seed was 0 and is 1" in capsys.readouterr().err


RETRIEVING = (
    *("--config.encoder.family=tfidf", "--config.encoder.embedding_dim=512", "--config.encoder.resolution=8"),
    *("--config.retrieval.enabled=True", "--config.retrieval.num_retrieved=1", "--config.batch.sequence_length=96"),
    "--config.evaluate.num_retrieved=1",
)


@pytest.mark.slow
def test_with_neighbors_from_raw_documents_to_a_report(run, capsys):
    for name in ("train-text-tokenizer", "train-image-tokenizer", "train-encoder", "prepare", "inspect", "train"):
        workdir = run(name, *RETRIEVING, workdir="retrieving")
    out = capsys.readouterr().out
    assert "neighbors per document" in out and "by image, " in out
    assert "retrieval: 1 neighbor before each document" in out
    metric = "--config.evaluate.metrics.likelihood.contexts=none,top_1,all,random"
    tiny = workdir.parent / "configs" / "tiny.py"
    tiny.write_text(tiny.read_text().replace("metrics=dict(", 'metrics=dict(likelihood=dict(type="likelihood"),'))
    run("evaluate", *RETRIEVING, metric, workdir="retrieving")
    numbers = json.loads((workdir / "evaluation.json").read_text())
    assert np.isfinite(numbers["eval_loss_image"])
    # All that was found by text is one neighbor or more, and what comes before is no part of what is scored.
    losses = [numbers[f"likelihood_loss_image{context}"] for context in ("", "_top_1", "_all", "_random")]
    assert len({numbers[f"likelihood_loss_image{context}_n"] for context in ("", "_top_1", "_all", "_random")}) == 1
    assert losses[1] != losses[0] and all(0 < loss < np.log(400) for loss in losses)
    assert numbers["likelihood_perplexity_image_top_1"] == pytest.approx(np.exp(losses[1]))
    run("generate", *RETRIEVING, "--prompt=the digit one", "--retrieve=1", workdir="retrieving")
    (answer,) = (json.loads(line) for line in (workdir / "generations" / "generations.jsonl").read_text().splitlines())
    (found,) = answer["retrieved"]
    assert "one" in found["text"] and (workdir / "generations" / answer["image"]).exists()

    # Without neighbors it is another run; more of them than fit, or other lists, are refused in a line.
    config = f"--config={workdir.parent}/configs/tiny.py"
    assert main(["train", config, f"--workdir={workdir}", *RETRIEVING, "--config.retrieval.enabled=False"]) == 2
    assert "retrieval.enabled was True and is False" in capsys.readouterr().err
    assert main(["generate", config, f"--workdir={workdir}", *RETRIEVING, "--prompt=x", "--retrieve=9"]) == 2
    assert "--retrieve=9 does not fit" in capsys.readouterr().err
    assert main(["train", config, f"--workdir={workdir}", *RETRIEVING, "--config.retrieval.max_similarity=0.5"]) == 2
    assert "found with config.retrieval.max_similarity = 0.9, now it is 0.5" in capsys.readouterr().err
    too_many = ("--config.retrieval.num_retrieved=4", "--config.batch.sequence_length=80")
    assert main(["train", config, f"--workdir={workdir}", *RETRIEVING, *too_many]) == 2
    assert "retrieval.num_retrieved 4 does not fit batch.sequence_length 80" in capsys.readouterr().err
