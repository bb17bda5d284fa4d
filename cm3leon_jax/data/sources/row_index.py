"""The documents of files of rows, each of which is read when its turn comes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from cm3leon_jax.counter_random import hash64
from cm3leon_jax.data.sources.config import FolderConfig, InterleavedConfig
from cm3leon_jax.data.sources.example_index import StoredExample, status_of
from cm3leon_jax.data.sources.image_store import ImageStore
from cm3leon_jax.data.sources.reading import SkippedExample
from cm3leon_jax.data.sources.skipped import Skipped
from cm3leon_jax.data.sources.splits import assign_splits, hash_of, split_in
from cm3leon_jax.data.sources.unchanged import MissingImage

# Reads some rows of a file, given in their order: documents, or why a row is none.
ReadRows = Callable[[str, Sequence[int]], Iterator[StoredExample | SkippedExample]]


@dataclass(frozen=True)
class RowIndex:
    """The rows of a corpus by split, in the order of its files; what is in them is not known before they are read."""

    folder: Path
    # The files of rows, with their sizes and times of change.
    files: Mapping[str, tuple[int, int]]
    # By file: its first row among all rows; at the end, how many there are.
    first_rows: Int64[np.ndarray, "m"]
    splits: Mapping[str, Int64[np.ndarray, "n"]]
    skipped: Skipped
    images: ImageStore
    config: InterleavedConfig
    compare_times: bool
    read: ReadRows
    is_sampled: bool = False

    @property
    def min_images(self) -> int:
        return self.config.min_images

    @functools.cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(self.files)

    def between(self, split: str, start: int, stop: int) -> Iterator[StoredExample | SkippedExample]:
        """Examples start .. stop - 1 of a split, or why one is none."""
        rows = self.splits[split][start:stop]
        of_file = np.searchsorted(self.first_rows, rows, "right") - 1
        for number in np.unique(of_file).tolist():
            numbers = rows[of_file == number] - self.first_rows[number]
            yield from self.read(self._names[number], numbers.tolist())

    def where(self, split: str, index: int) -> str:
        row = int(self.splits[split][index])
        number = int(np.searchsorted(self.first_rows, row, "right")) - 1
        return f"{self._names[number]}:{row - int(self.first_rows[number])}"

    def file_status(self, name: str) -> tuple[int, int]:
        """Size and time of change of a file with images."""
        found = self.files.get(name) or self.images.archives.get(name) or status_of(self.folder / name)
        if found is None:
            raise MissingImage
        return found

    def provenance(self) -> dict[str, str]:
        """What the documents follow from: names and sizes of all files, the splits, how rows are read."""
        sizes = ", ".join(f"{len(rows):,} {split}" for split, rows in self.splits.items())
        digest = hashlib.sha256(json.dumps([[name, size] for name, (size, _) in self.files.items()]).encode())
        for split, rows in self.splits.items():
            digest.update(split.encode() + rows.astype("<i8").tobytes())
        times = hashlib.sha256(json.dumps([time for _, time in self.files.values()]).encode() + self.images.times)
        return {
            "documents": f"{sizes} in {len(self.files):,} files, {digest.hexdigest()[:12]}",
            "images": str(self.images),
            **{name: str(value) for name, value in dataclasses.asdict(self.config).items() if name != "images"},
            **({"times of change": times.hexdigest()[:12]} if self.compare_times else {}),
        }

    def changed_since(self, time: float) -> list[str]:
        """Files of rows, and archives of images, that were written after a time, in seconds since 1970."""
        names = [*self.files, *self.images.archives]
        return [name for name in names if (now := status_of(self.folder / name)) and now[1] > time * 1e9]


def index_rows(
    folder: Path,
    counts: Mapping[str, int],
    read: ReadRows,
    images: ImageStore,
    skipped: Skipped,
    folders: FolderConfig,
    config: InterleavedConfig,
) -> RowIndex:
    """Divides the rows of files, of which only the numbers are known, among splits.

    Args:
      counts: how many rows each file has, in the order in which they are read.
    """
    sizes = np.array(list(counts.values()), np.int64)
    hashes = [hash64(hash_of(name.encode("utf-8", "surrogateescape")) >> 1, np.arange(n)) for name, n in counts.items()]
    own = np.repeat(np.array([split_in(name) for name in counts], object), sizes)
    splits = assign_splits(np.concatenate(hashes), own.tolist(), folders.held_out_fraction)
    return RowIndex(
        folder=folder,
        files={name: status_of(folder / name) or (0, 0) for name in counts},
        first_rows=np.concatenate([[0], np.cumsum(sizes)]),
        splits={split: np.sort(rows) for split, rows in splits.items()},
        skipped=skipped,
        images=images,
        config=config,
        compare_times=folders.compare_times,
        read=read,
    )
