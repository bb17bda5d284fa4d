"""The commands, in one table."""

from __future__ import annotations

from typing import NamedTuple

# Parts of the config that many commands read.
_DATA = ("modules", "corpus", "vocabulary", "image_tokenizer")
_RUN = (*_DATA, "batch", "model", "mesh")
_TRAINING = ("objective", "optimizer", "train")


class Command(NamedTuple):
    """A command: its module has `add_arguments(parser)`, if it takes more than the config, and `run`."""

    # `run(config, workdir, arguments)`, or `run(arguments)` without a config, returns the exit code or nothing.
    module: str
    summary: str
    # Parts of the config that it reads, as its --help lists them.
    reads: tuple[str, ...] = ()
    # The folders that it writes: parts of the config by name, whose `path` is meant, or "workdir".
    writes: tuple[str, ...] = ()
    # Whether several processes run it together.
    distributed: bool = False
    takes_config: bool = True


COMMANDS = {
    "train-text-tokenizer": Command(
        "cm3leon_jax.commands.train_text_tokenizer",
        "learn the vocabulary from the mixture's texts",
        reads=_DATA,
        writes=("vocabulary",),
    ),
    "train-image-tokenizer": Command(
        "cm3leon_jax.commands.train_image_tokenizer",
        "train the image tokenizer on the mixture's images",
        reads=("modules", "corpus", "image_tokenizer", "distributed"),
        writes=("workdir", "image_tokenizer"),
        distributed=True,
    ),
    "train-encoder": Command(
        "cm3leon_jax.commands.train_encoder",
        "train or fit the encoder that retrieval compares documents with",
        reads=(*_DATA, "encoder", "mesh", "distributed"),
        writes=("workdir", "encoder"),
        distributed=True,
    ),
    "prepare": Command(
        "cm3leon_jax.commands.prepare",
        "turn a seqio mixture into token shards and neighbor lists",
        reads=(*_DATA, "encoder", "retrieval", "batch", "distributed"),
        writes=("corpus",),
        distributed=True,
    ),
    "inspect": Command(
        "cm3leon_jax.commands.inspect",
        "show documents and packed sequences of a prepared corpus",
        reads=(*_DATA, "retrieval", "objective", "batch"),
    ),
    "plan": Command(
        "cm3leon_jax.commands.plan",
        "compile a run for a pod you do not have: memory, collectives, time",
        reads=(*_RUN, *_TRAINING, "encoder", "retrieval"),
    ),
    "train": Command(
        "cm3leon_jax.commands.train",
        "train the transformer; run it again to continue",
        reads=(*_RUN, *_TRAINING, "retrieval", "recovery", "distributed", "sampling", "evaluate"),
        writes=("workdir",),
        distributed=True,
    ),
    "generate": Command(
        "cm3leon_jax.commands.generate",
        "text-to-image, captioning, infilling and editing from prompts",
        reads=(*_RUN, "encoder", "retrieval", "sampling", "distributed"),
        distributed=True,
    ),
    "evaluate": Command(
        "cm3leon_jax.commands.evaluate",
        "measure a checkpoint; write evaluation.json and report.html",
        reads=(*_RUN, "encoder", "retrieval", "objective", "sampling", "evaluate", "distributed"),
        writes=("workdir",),
        distributed=True,
    ),
    "compare": Command(
        "cm3leon_jax.commands.compare",
        "put the evaluations of several runs on one page",
        takes_config=False,
    ),
    "export": Command("cm3leon_jax.commands.export", "write a checkpoint as a Hugging Face folder", reads=_RUN),
    "import": Command(
        "cm3leon_jax.commands.import_", "start a run from a Hugging Face folder", reads=(*_RUN, "encoder")
    ),
    "completion": Command("cm3leon_jax.commands.completion", "print a script for shell completion", takes_config=False),
}
