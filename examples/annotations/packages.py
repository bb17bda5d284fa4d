"""Where the files of the five packages are, below one folder, and where the data sets made of them are."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cm3leon_jax.errors import UserError

# Of the data sets: a path from the working folder on, as those of runs are.
DATA = os.environ.get("ANNOTATIONS", "runs/annotations/data")


@dataclass(frozen=True)
class Packages:
    """A folder into which the packages were unpacked, as the docstring of `convert.py` shows."""

    folder: Path

    @property
    def maps(self) -> Path:
        """`kgeography-data`: X.kgm beside X.png, and flags/."""
        return self._existing("usr/share/kgeography", "kgeography-data")

    @property
    def bundles(self) -> Path:
        """`gcompris-qt-data`: a resource bundle for each activity."""
        return self._existing("usr/share/gcompris-qt/rcc", "gcompris-qt-data")

    @property
    def openmoji(self) -> Path:
        """`openmoji`: data/openmoji.csv, color/svg/ and black/svg/."""
        return self._existing("openmoji", "openmoji")

    @property
    def google(self) -> Path:
        """`emoji-datasource-google`: PNGs of 64 pixels."""
        return self._existing("emoji-datasource-google/img/google/64", "emoji-datasource-google")

    @property
    def fluent(self) -> Path:
        """`@lobehub/fluent-emoji-3d`: WebPs of 256 pixels."""
        return self._existing("fluent-emoji-3d/assets", "@lobehub/fluent-emoji-3d")

    def _existing(self, name: str, package: str) -> Path:
        path = self.folder / name
        if not path.is_dir():
            raise UserError(f"no folder {path}: unpack the package {package} into {self.folder} (examples/README.md)")
        return path


def listed(files: Iterable[Path]) -> list[Path]:
    """Files in an order that is the same on every machine."""
    return sorted(files, key=lambda file: file.as_posix())
