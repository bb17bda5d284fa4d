"""Start a run from a Hugging Face folder: one that `cm3leon export` wrote, or another of a family that is known.

A decoder (opt, llama, chameleon, ..) becomes the checkpoint of step 0, from which `cm3leon train` starts; its
vocabulary and image tokenizer are written to where the config says. A CLIP or SigLIP becomes the run's encoder, at
config.encoder.path.

Chameleon's folders may be those of transformers or Meta's own (`models/7b`, beside `tokenizer`).

--image-tokenizer takes the image tokenizer from weights of another project instead, alone or beside --from: a folder of
diffusers, Janus or Chameleon, or a file of taming-transformers, Chameleon (vqgan.ckpt) or LlamaGen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cm3leon_jax.config import Config
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import read_object
from cm3leon_jax.huggingface.families import FAMILIES
from cm3leon_jax.huggingface.families.chameleon_of_meta import PARAMS_FILE, import_of_meta, is_of_meta
from cm3leon_jax.huggingface.image_tokenizers.importing import import_image_tokenizer
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.paths import input_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from",
        dest="source",
        type=input_path("--from"),
        metavar="FOLDER",
        help="config.json, weights, tokenizer",
    )
    parser.add_argument(
        "--image-tokenizer",
        type=input_path("--image-tokenizer"),
        metavar="PATH",
        help="a folder or a file with the weights of an image tokenizer",
    )


def run(config: Config, workdir: Path, arguments: argparse.Namespace) -> None:
    source, image_tokenizer = arguments.source, arguments.image_tokenizer
    if source is None and image_tokenizer is None:
        raise UserError("nothing to import: give --from=FOLDER, --image-tokenizer=PATH, or both")
    # First: a decoder is checked with the image tokenizer that is there.
    if image_tokenizer is not None:
        import_image_tokenizer(config, Path(image_tokenizer))
    if source is not None:
        folder = Path(source)
        name = PARAMS_FILE if is_of_meta(folder) else "config.json"
        stored = read_object(folder / name, f"the {name} of --from={folder}")
        if name == PARAMS_FILE:
            import_of_meta(config, workdir, folder, stored)
            return
        model_type = StoredConfig(stored, f"{folder}/{name}").choice("model_type", FAMILIES)
        FAMILIES.load(model_type).import_folder(config, workdir, folder, stored)
