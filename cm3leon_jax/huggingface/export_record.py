"""What `cm3leon export` notes in cm3leon.json of the folder that it writes, by which `cm3leon import` checks it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cm3leon_jax.errors import UserError
from cm3leon_jax.files import read_object
from cm3leon_jax.huggingface.reading_weights import weight_files
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.progress import Progress

RECORD_FILE = "cm3leon.json"
IMAGE_TOKENIZER_FOLDER = "image_tokenizer"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ExportRecord:
    """What an import has to know of it."""

    sequence_length: int
    # Fingerprints; of the image tokenizer where there was one.
    vocabulary: str
    image_tokenizer: str | None
    # SHA-256 of the files of weights, by name; empty where they were exported before there were any.
    sums: dict[str, str]


def read_record(folder: Path) -> ExportRecord | None:
    """What `cm3leon export` noted; None for a folder from elsewhere."""
    file = folder / RECORD_FILE
    if not file.exists():
        return None
    values = read_object(file, "the folder's record")
    if values.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{file} is none of format version {FORMAT_VERSION}, which this program reads")
    stored = StoredConfig(values, str(file))
    sums = {name: stored.part("sha256").text(name) for name in stored.part("sha256").values}
    image_tokenizer = None if values.get("image_tokenizer", "") is None else stored.text("image_tokenizer")
    return ExportRecord(stored.size("sequence_length"), stored.text("vocabulary"), image_tokenizer, sums)


def refuse_other_weights(record: ExportRecord | None, folder: Path) -> None:
    """An exported folder's weights are those that were written, to the bit."""
    if record is None or not record.sums:
        return
    files = weight_files(folder)
    progress = Progress("check", len(files), unit="file")
    try:
        for file in files:
            with file.open("rb") as opened:
                if hashlib.file_digest(opened, "sha256").hexdigest() != record.sums.get(file.name):
                    raise UserError(
                        f"{file} is not the file that was exported, by the sum of it in {RECORD_FILE}: export it "
                        f"again, or delete {RECORD_FILE} to take the folder as one from elsewhere"
                    )
            progress.advance()
    finally:
        progress.close()
