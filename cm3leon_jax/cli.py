"""The commands, in one table: `cm3leon COMMAND --config=configs/NAME.py [--workdir=DIR] [--config.a.b=value]`."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from cm3leon_jax.accelerators import host_has_gpu, host_has_tpu
from cm3leon_jax.config import Config
from cm3leon_jax.errors import MISTAKE, RESTART, FailedSave, RestartError, UserError
from cm3leon_jax.files import is_full_disk

# name: (module, what it does). Each module has `add_arguments(parser)` if the command takes more than the config, and
# `run(config, workdir, arguments)`.
COMMANDS = {
    "train-text-tokenizer": ("cm3leon_jax.data.text_tokenizer", "learn the vocabulary from the mixture's texts"),
    "train-image-tokenizer": ("cm3leon_jax.image_tokenizer.training", "train the VQGAN on the mixture's pictures"),
    "train-bi-encoder": (
        "cm3leon_jax.retrieval.train_bi_encoder",
        "train what finds neighbours: CLIP, or word statistics",
    ),
    "prepare": ("cm3leon_jax.prepare", "turn a seqio mixture into token shards and neighbour lists"),
    "inspect": ("cm3leon_jax.data.inspection", "look into a prepared corpus: documents and packed sequences"),
    "plan": ("cm3leon_jax.planning.plan", "compile a run for a pod you do not have: memory, collectives, time"),
    "train": ("cm3leon_jax.training.train", "train the transformer; run it again to continue"),
    "generate": ("cm3leon_jax.generation.generate", "draw, caption and fill in from prompts"),
    "evaluate": ("cm3leon_jax.evaluation.evaluate", "measure a checkpoint; write evaluation.json and report.html"),
    "export": ("cm3leon_jax.interchange.huggingface_export", "write a checkpoint as a Hugging Face folder"),
    "import": ("cm3leon_jax.interchange.huggingface_import", "start a run from a Hugging Face folder"),
}

# Commands that several processes run together.
_DISTRIBUTED = ("prepare", "train", "evaluate")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if argv else MISTAKE
    command, *rest = argv
    _ignore_an_absent_tpu()
    must_leave = False
    try:
        if command not in COMMANDS:
            raise UserError(f"no command {command!r}: the commands are {', '.join(COMMANDS)}")
        return _run(command, rest)
    except UserError as error:
        code, message = MISTAKE, _no_room(error) if is_full_disk(error) else str(error)
        must_leave = isinstance(error, FailedSave)
    except RestartError as error:
        code, message = RESTART, str(error)
    except KeyboardInterrupt:
        code, message = RESTART, "interrupted; run the same command again to go on"
    except Exception as error:
        if is_full_disk(error):
            code, message = MISTAKE, _no_room(error)
        elif _is_one_of_many():
            traceback.print_exc()
            code, message = _code_among_many(error)
        else:
            raise
    print(f"cm3leon {command}: {message}", file=sys.stderr)
    if must_leave or _is_one_of_many():
        # The others may wait in a collective, and JAX would wait for them to say goodbye.
        from cm3leon_jax.distributed import leave

        leave(code)
    return code


def _is_one_of_many() -> bool:
    distributed = sys.modules.get("cm3leon_jax.distributed")
    return distributed is not None and distributed.has_joined()


def _no_room(error: Exception) -> str:
    where = str(error).splitlines()[-1][:200]
    return f"the disk is full: free some room and run the same command again; what was complete still is ({where})"


def _code_among_many(error: Exception) -> tuple[int, str]:
    """What an exception means for a process that has others: a collective fails where one of them is gone."""
    import jax

    lost = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error)
    if lost:
        return RESTART, "lost another process of the run, most likely; start all of them again to continue"
    return 1, "ended by the error above"


def _ignore_an_absent_tpu() -> None:
    """Keeps JAX from looking for a TPU with libtpu, which `plan` needs where there is none: it complains aloud."""
    if not host_has_tpu() and importlib.util.find_spec("libtpu"):
        os.environ.setdefault("JAX_PLATFORMS", "cuda,cpu" if host_has_gpu() else "cpu")


def _overview() -> str:
    rows = "\n".join(f"  {name:<22} {summary}" for name, (_, summary) in COMMANDS.items())
    return (
        "cm3leon COMMAND --config=configs/NAME.py [--workdir=DIR] [--config.a.b=value ...]\n\n"
        f"{rows}\n\ncm3leon COMMAND --help says what a command takes."
    )


def _run(command: str, argv: Sequence[str]) -> int:
    module_name, _ = COMMANDS[command]
    overrides, rest = _split_overrides(argv)
    with _said_to_be_starting(command):
        module = importlib.import_module(module_name)
    parser = argparse.ArgumentParser(
        prog=f"cm3leon {command}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--config.a.b=value overrides one field of the config; config.py lists them all.",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a config file: configs/NAME.py[:VARIANT]")
    parser.add_argument("--workdir", metavar="DIR", help="folder of the run (default: runs/NAME)")
    if hasattr(module, "add_arguments"):
        module.add_arguments(parser)
    arguments = parser.parse_args(rest)

    from cm3leon_jax import config_file

    workdir = Path(arguments.workdir or Path("runs") / Path(arguments.config.partition(":")[0]).stem)
    config = config_file.load(arguments.config, str(workdir), overrides)
    _join(command, config)
    return module.run(config, workdir, arguments) or 0


@contextlib.contextmanager
def _said_to_be_starting(command: str) -> Iterator[None]:
    """Libraries take seconds to load: says so on a terminal, and takes it back."""
    is_watched = sys.stderr.isatty()
    if is_watched:
        print(f"cm3leon {command} is starting ...", end="", file=sys.stderr, flush=True)
    yield
    if is_watched:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _join(command: str, config: Config) -> None:
    """Takes part in a run of several processes, where the environment names them and the command is for several."""
    from cm3leon_jax import distributed

    if command in _DISTRIBUTED:
        # The others have no step to save: what they wrote is whole, and started again they go on behind it.
        distributed.join(config.distributed, notes_sigterm=command == "train")
    elif processes := distributed.named_processes(os.environ):
        raise UserError(f"runs as one process, and this is {processes}: start it once, without a launcher")


def _split_overrides(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    overrides: dict[str, str] = {}
    rest: list[str] = []
    for argument in argv:
        if argument.startswith("--config."):
            name, equals, value = argument.removeprefix("--config.").partition("=")
            if not equals:
                raise UserError(f"{argument}: write --config.{name}=value")
            overrides[name] = value
        else:
            rest.append(argument)
    return overrides, rest
