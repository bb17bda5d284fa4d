"""Train the image tokenizer on the images of the mixture; run it again to continue.

Reads the values under `corpus` and `image_tokenizer` of the config; `image_tokenizer.family` names the family.

  IMAGE_TOKENIZER/config.json, model.safetensors    the finished tokenizer, for `prepare` and `generate`
  IMAGE_TOKENIZER/checkpoints                       the whole training state; a second run goes on from the last one
  WORKDIR/image_tokenizer_metrics.jsonl             one JSON object per logged step
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from cm3leon_jax.config import Config
from cm3leon_jax.distributed import clear_partial_files
from cm3leon_jax.image_tokenizers.training import train_image_tokenizer
from cm3leon_jax.lock import lock


def run(config: Config, workdir: Path, arguments: Namespace) -> int:
    with lock(config.image_tokenizer.path, "train-image-tokenizer"):
        clear_partial_files(config.image_tokenizer.path)
        return train_image_tokenizer(config, workdir)
