"""The encoder that a folder holds, of whatever kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NotRequired

from pydantic import with_config
from typing_extensions import TypedDict

from cm3leon_jax.encoders.base import CONFIG_FILE, Encoder
from cm3leon_jax.encoders.clip.encoder import ClipEncoder
from cm3leon_jax.encoders.tfidf import TfidfEncoder
from cm3leon_jax.errors import UserError
from cm3leon_jax.records import OPEN, read_record


@with_config(OPEN)
class _Training(TypedDict):
    values: NotRequired[dict[str, Any]]


@with_config(OPEN)
class BiEncoderRecord(TypedDict):
    """The config.json of an encoder; `training` is what it was made by, if it was here."""

    kind: str
    architecture: dict[str, Any]
    fingerprint: str
    training: NotRequired[_Training | None]


def read_bi_encoder_record(path: Path) -> BiEncoderRecord:
    """Reads an encoder's config.json.

    Raises:
      UserError: if it is missing or damaged.
    """
    return read_record(path / CONFIG_FILE, "the encoder's config", BiEncoderRecord, "delete the folder, make it again")


def load_encoder(path: str | Path) -> Encoder:
    """Reads the folder that an encoder's `save` wrote.

    Raises:
      UserError: if there is none, or its files are damaged or do not belong together.
    """
    path = Path(path)
    if not (path / CONFIG_FILE).is_file():
        raise UserError(f"no encoder at {path}: run `cm3leon train-encoder` first, or `cm3leon import` a CLIP folder")
    kind = read_bi_encoder_record(path)["kind"]
    if kind == "clip":
        return ClipEncoder.load(path)
    if kind == "tfidf":
        return TfidfEncoder.load(path)
    raise UserError(f"{path / CONFIG_FILE} names the kind {kind!r}, which is none of clip, tfidf: make it again")
