"""Learns the vocabulary: a byte-level BPE from the texts of the mixture's training split.

Writes config.vocabulary.path/tokenizer.json, which also holds the ids of image codes and special tokens, and
trained_on.json. A vocabulary that is there already and fits the config is left alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.text_tokenizer import train_text_tokenizer
from cm3leon_jax.lock import lock


def run(config: Config, workdir: Path, arguments: argparse.Namespace) -> int:
    with lock(config.vocabulary.path, "train-text-tokenizer"):
        train_text_tokenizer(config.corpus, config.vocabulary, config.image_tokenizer.codebook_size)
    return 0
