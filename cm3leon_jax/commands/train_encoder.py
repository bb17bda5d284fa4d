"""Make the encoder that retrieval finds neighbors by: train CLIP on the mixture, or count its words.

Reads the values under `corpus`, `vocabulary`, `encoder` and `mesh` of the config; `encoder.family` names the family.
CLIP uses all devices, and reads texts with the run's vocabulary; an interrupted training goes on when it is run again.

  ENCODER/config.json, model.safetensors, ...    the finished encoder, for `prepare` and `generate`
  ENCODER/checkpoints                            the whole training state; a second run goes on from the last one
  WORKDIR/encoder_metrics.jsonl                  one JSON object per logged step
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from cm3leon_jax.config import Config
from cm3leon_jax.distributed import clear_partial_files
from cm3leon_jax.encoders.training import train_encoder
from cm3leon_jax.lock import lock


def run(config: Config, workdir: Path, arguments: Namespace) -> int:
    with lock(config.encoder.path, "train-encoder"):
        clear_partial_files(config.encoder.path)
        return train_encoder(config, workdir)
