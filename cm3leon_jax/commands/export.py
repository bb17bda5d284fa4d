"""Write the latest checkpoint as a Hugging Face folder that `transformers` loads.

The folder holds config.json, model.safetensors (in shards where it is large), the tokenizer's files,
generation_config.json, README.md (a model card), image_tokenizer/, and cm3leon.json, by which `cm3leon import` checks
it. The architecture is OPT's where it can express the model, otherwise the first of the others that can.

--format=diffusers and --format=taming write the image tokenizer alone, as a `VQModel` of diffusers or with the names of
taming-transformers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cm3leon_jax.config import Config
from cm3leon_jax.errors import UserError
from cm3leon_jax.huggingface.exporting import choose_family, export_run, with_materialized_norms
from cm3leon_jax.huggingface.image_tokenizers.exporting import export_image_tokenizer
from cm3leon_jax.huggingface.writing_weights import DTYPES, parse_size
from cm3leon_jax.lock import lock
from cm3leon_jax.paths import output_folder
from cm3leon_jax.storage import mirror

# Layouts that are written of the image tokenizer alone.
IMAGE_TOKENIZER_FORMATS = ("diffusers", "taming")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("huggingface", *IMAGE_TOKENIZER_FORMATS), default="huggingface")
    parser.add_argument("--family", metavar="NAME", help="opt, llama, mistral, .. (default: the first that fits)")
    parser.add_argument(
        "--output",
        required=True,
        type=output_folder("--output"),
        metavar="FOLDER",
        help="a folder that is not there yet, or empty",
    )
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="type of the weights")
    parser.add_argument(
        "--materialize-norms",
        action="store_true",
        help="write ones and zeros for scales and shifts that the norms do without, for engines that want them",
    )
    parser.add_argument("--shard-size", default="2GB", metavar="BYTES", help="most bytes per file of weights")


def run(config: Config, workdir: Path, arguments: argparse.Namespace) -> None:
    output, shard_bytes = Path(arguments.output), parse_size(arguments.shard_size)
    # Beside the folder, which has to be empty.
    with lock(output.parent, "export", f".{output.name}.lock"):
        mirror.refresh(output)
        if output.exists() and not (output.is_dir() and not any(output.iterdir())):
            raise UserError(f"--output={output} is there already: name another folder, or delete this one")
        if arguments.format in IMAGE_TOKENIZER_FORMATS:
            path = Path(config.image_tokenizer.path)
            export_image_tokenizer(path, output, arguments.format, arguments.dtype, shard_bytes)
            return
        model = with_materialized_norms(config.model) if arguments.materialize_norms else config.model
        family = choose_family(model, arguments.family)
        export_run(config, workdir, output, model, family, arguments.dtype, shard_bytes)
