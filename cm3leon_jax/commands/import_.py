"""Start a run from a Hugging Face folder: one that `cm3leon export` wrote, or another of a family that is known.

A decoder (opt, llama, chameleon) becomes the checkpoint of step 0, from which `cm3leon train` starts; its vocabulary
and image tokenizer are written to where the config says. A CLIP becomes the run's encoder, at config.encoder.path.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cm3leon_jax.config import Config
from cm3leon_jax.files import read_object
from cm3leon_jax.huggingface.families import FAMILIES
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.paths import input_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from",
        required=True,
        dest="source",
        type=input_path("--from"),
        metavar="FOLDER",
        help="config.json, weights, tokenizer",
    )


def run(config: Config, workdir: Path, arguments: argparse.Namespace) -> None:
    folder = Path(arguments.source)
    stored = read_object(folder / "config.json", f"the config.json of --from={folder}")
    model_type = StoredConfig(stored, f"{folder}/config.json").choice("model_type", FAMILIES)
    FAMILIES.load(model_type).import_folder(config, workdir, folder, stored)
