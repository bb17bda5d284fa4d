"""The bi-encoder that a folder holds, of whatever kind."""

from __future__ import annotations

from pathlib import Path

from cm3leon_jax.errors import UserError
from cm3leon_jax.files import read_json
from cm3leon_jax.retrieval.bi_encoder import CONFIG_FILE, BiEncoder
from cm3leon_jax.retrieval.clip_encoder import ClipEncoder
from cm3leon_jax.retrieval.tfidf import TfidfEncoder


def load_bi_encoder(path: str | Path) -> BiEncoder:
    """Reads the folder that an encoder's `save` wrote.

    Raises:
      UserError: if there is none, or its files are damaged or do not belong together.
    """
    path = Path(path)
    if not (path / CONFIG_FILE).is_file():
        raise UserError(
            f"no bi-encoder at {path}: run `cm3leon train-bi-encoder` first, or `cm3leon import` a CLIP folder"
        )
    kind = read_json(path / CONFIG_FILE, "the bi-encoder's config").get("kind")
    if kind == "clip":
        return ClipEncoder.load(path)
    if kind == "tfidf":
        return TfidfEncoder.load(path)
    raise UserError(f"{path / CONFIG_FILE} names the kind {kind!r}, which is none of clip, tfidf: make it again")
