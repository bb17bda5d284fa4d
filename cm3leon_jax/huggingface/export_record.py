"""The record cm3leon.json in an exported folder, by which `cm3leon import` checks what it reads."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cm3leon_jax.errors import UserError
from cm3leon_jax.files import read_object
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.progress import Progress

RECORD_FILE = "cm3leon.json"
IMAGE_TOKENIZER_FOLDER = "image_tokenizer"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ExportRecord:
    """What an import has to know of an export."""

    sequence_length: int
    # Fingerprints; of the image tokenizer where there was one.
    vocabulary: str
    image_tokenizer: str | None
    # SHA-256 of the files of weights, by name.
    sums: dict[str, str]

    @classmethod
    def read(cls, folder: Path) -> ExportRecord | None:
        """The record of a folder; None for a folder from elsewhere."""
        file = folder / RECORD_FILE
        if not file.exists():
            return None
        values = read_object(file, "the folder's record")
        if values.get("format_version") != FORMAT_VERSION:
            raise UserError(f"{file} is none of format version {FORMAT_VERSION}, which this program reads")
        stored = StoredConfig(values, str(file))
        sums = {name: stored.part("sha256").text(name) for name in stored.part("sha256").values}
        image_tokenizer = None if values.get("image_tokenizer", "") is None else stored.text("image_tokenizer")
        return cls(stored.size("sequence_length"), stored.text("vocabulary"), image_tokenizer, sums)

    def check_files(self, vocabulary: str, image_tokenizer: str | None, folder: Path) -> None:
        """Refuses a folder whose vocabulary or image tokenizer, by their fingerprints, is not the exported one."""
        tokenizers = ("image tokenizer", image_tokenizer, self.image_tokenizer)
        for name, fingerprint, exported in (("vocabulary", vocabulary, self.vocabulary), tokenizers):
            if fingerprint != exported:
                raise UserError(
                    f"{folder}: its {name} has the fingerprint {fingerprint}, {RECORD_FILE} says {exported}: a file "
                    "was exchanged; export it again"
                )

    def check_weights(self, files: Iterable[Path]) -> None:
        """Refuses weights that are not those that were exported, to the bit."""
        files = list(files)
        sums = file_sums(files, "check")
        for file in files:
            if sums[file.name] != self.sums.get(file.name):
                raise UserError(
                    f"{file} is not the file that was exported, by the sum of it in {RECORD_FILE}: export it again, or "
                    f"delete {RECORD_FILE} to take the folder as one from elsewhere"
                )


def file_sums(files: Iterable[Path], label: str) -> dict[str, str]:
    """The SHA-256 of each file, by its name."""
    files, sums = list(files), {}
    with contextlib.closing(Progress(label, len(files), unit="file")) as progress:
        for file in files:
            with file.open("rb") as opened:
                sums[file.name] = hashlib.file_digest(opened, "sha256").hexdigest()
            progress.advance()
    return sums
