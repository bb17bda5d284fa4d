"""Write the latest checkpoint as a Hugging Face folder that `transformers` loads.

The folder holds config.json, model.safetensors (in shards where it is large), the tokenizer's files,
generation_config.json, README.md (a model card), image_tokenizer/, and cm3leon.json, by which `cm3leon import` checks
it. The architecture is OPT's where it can express the model, otherwise the first of the others that can.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cm3leon_jax.config import Config
from cm3leon_jax.errors import UserError
from cm3leon_jax.huggingface.exporting import choose_family, export_run
from cm3leon_jax.huggingface.writing_weights import DTYPES, parse_size
from cm3leon_jax.lock import lock
from cm3leon_jax.paths import output_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("huggingface",), default="huggingface", help="the only one so far")
    parser.add_argument("--family", metavar="NAME", help="opt or llama (default: one that fits)")
    parser.add_argument(
        "--output",
        required=True,
        type=output_folder("--output"),
        metavar="FOLDER",
        help="a folder that is not there yet, or empty",
    )
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="type of the weights")
    parser.add_argument("--shard-size", default="2GB", metavar="BYTES", help="most bytes per file of weights")


def run(config: Config, workdir: Path, arguments: argparse.Namespace) -> None:
    output, shard_bytes = Path(arguments.output), parse_size(arguments.shard_size)
    # Beside the folder, which has to be empty.
    with lock(output.parent, "export", f".{output.name}.lock"):
        if output.exists() and not (output.is_dir() and not any(output.iterdir())):
            raise UserError(f"--output={output} is there already: name another folder, or delete this one")
        family = choose_family(config.model, arguments.family)
        export_run(config, workdir, output, family, arguments.dtype, shard_bytes)
