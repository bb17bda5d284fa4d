"""The captioned images of a folder: which there are, in which split, what was skipped, and what they follow from.

A caption is in a `.txt` file of the image's stem next to it, or in a line of a metadata file in the image's folder
or any above. What is odd is skipped and counted; the folder is read once, so that an edit afterwards does not mix two
states of it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from tqdm import tqdm

from cm3leon_jax.data.curation.config import CurationConfig
from cm3leon_jax.data.curation.curator import Curator
from cm3leon_jax.data.sources.captions import LONGEST, BadCaption, captions_in, cleaned
from cm3leon_jax.data.sources.config import FolderConfig, RowsConfig
from cm3leon_jax.data.sources.listing import METADATA_FILES, UNSUPPORTED, Listing, list_files, same_name, stem_of
from cm3leon_jax.data.sources.metadata import BadLine, read_metadata
from cm3leon_jax.data.sources.skipped import Skipped, printable
from cm3leon_jax.data.sources.splits import SPLIT_NAMES, assign_splits, hash_of
from cm3leon_jax.data.sources.texts import Texts
from cm3leon_jax.data.sources.unchanged import read_unchanged
from cm3leon_jax.errors import UserError
from cm3leon_jax.images import IMAGE_SUFFIXES


@dataclass(frozen=True)
class FolderDocuments:
    """The captioned images of a folder; a document is an image with one caption."""

    folder: Path
    listing: Listing
    captions: Texts
    # By document: which of the listing's images it has.
    images: array
    # By split: its documents, in an order whose first n are a fair sample.
    splits: Mapping[str, Int64[np.ndarray, "n"]]
    skipped: Skipped
    compare_times: bool

    def name(self, split: str, index: int) -> str:
        """The file name of a document's image, from the folder on."""
        return self.listing.images[self.images[self.splits[split][index]]]

    def caption(self, split: str, index: int) -> str:
        return self.captions[int(self.splits[split][index])]

    def image(self, split: str, index: int) -> bytes:
        """The image file of a document; an `UnreadableFile` if it is not the file that was listed."""
        number = self.images[self.splits[split][index]]
        name = self.folder / self.listing.images[number]
        return read_unchanged(name, self.listing.sizes[number], self.listing.times[number])

    def provenance(self) -> dict[str, str]:
        """What the documents follow from: names and sizes of the images, the captions and splits, times of change."""
        names, times, captions = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
        used = np.unique(np.array(self.images, np.int64)).tolist()
        for number in used:
            name = os.fsencode(self.listing.images[number])
            names.update(b"%s\0%d\n" % (name, self.listing.sizes[number]))
            times.update(b"%s\0%d\n" % (name, self.listing.times[number]))
        for split, documents in self.splits.items():
            captions.update(f"{split} {len(documents)}\n".encode())
            for document in documents.tolist():
                name = os.fsencode(self.listing.images[self.images[document]])
                captions.update(b"%s\0%s\0" % (name, self.captions[document].encode()))
        num_bytes = sum(self.listing.sizes[number] for number in used)
        sizes = ", ".join(f"{len(documents):,} {split}" for split, documents in self.splits.items())
        return {
            "images": f"{len(used):,} of {num_bytes:,} bytes, {names.hexdigest()[:12]}",
            "captions": f"{sizes}, {captions.hexdigest()[:12]}",
            **({"times of change": times.hexdigest()[:12]} if self.compare_times else {}),
        }

    def changed_since(self, time: float) -> list[str]:
        """Files of the folder that were written or put there after a time, in seconds since 1970."""
        found = list_files(self.folder, Skipped())
        names = sorted([*found.images, *found.captions, *found.metadata])
        return [name for name in names if self._changed_at(name) > time]

    def _changed_at(self, name: str) -> float:
        try:
            status = (self.folder / name).stat()
        except OSError:
            return 0.0
        return max(status.st_mtime, status.st_ctime)


def read_folder(
    folder: Path, config: FolderConfig, rows: RowsConfig | None = None, curation: CurationConfig | None = None
) -> FolderDocuments:
    """Finds the captioned images of a folder and of all folders below.

    Args:
      rows: says what the columns of metadata are.
      curation: says which rows of metadata are wanted.

    Raises:
      UserError: if there is no such folder, no image with a caption in it, or metadata without a column for captions.
    """
    if not folder.is_dir():
        raise UserError(f"no folder of images at {printable(str(folder))}: give the path of an existing folder")
    skipped = Skipped()
    listing = list_files(folder, skipped)
    _sort_images(listing)
    collected = _Collected(folder, config, listing, skipped, Curator(curation or CurationConfig()))
    for name in _one_per_folder(listing.metadata, skipped):
        collected.add_metadata(name, rows or RowsConfig())
    collected.add_caption_files()
    if not len(collected.captions):
        raise UserError(_without_documents(folder, listing, skipped))
    images = collected.images
    splits = _splits([listing.images[number] for number in images], config.held_out_fraction)
    return FolderDocuments(folder, listing, collected.captions, images, splits, skipped, config.compare_times)


def _sort_images(listing: Listing) -> None:
    order = sorted(range(len(listing.images)), key=listing.images.__getitem__)
    listing.images = [listing.images[number] for number in order]
    listing.sizes = array("q", (listing.sizes[number] for number in order))
    listing.times = array("q", (listing.times[number] for number in order))


def _one_per_folder(names: Iterable[str], skipped: Skipped) -> Iterator[str]:
    """The metadata files that are read: of each folder the first kind there is."""

    def rank(name: str) -> tuple[str, int, str]:
        parent, _, last = name.rpartition("/")
        return parent, METADATA_FILES.index(last.lower()), last

    for _, (first, *others) in itertools.groupby(sorted(names, key=rank), key=lambda name: name.rpartition("/")[0]):
        yield first
        for name in others:
            skipped.add("second metadata file of a folder", name, is_document=False)


class _Collected:
    """Documents while they are found."""

    def __init__(
        self, folder: Path, config: FolderConfig, listing: Listing, skipped: Skipped, curator: Curator
    ) -> None:
        self.images = array("q")
        self.captions = Texts()
        self._folder, self._config, self._listing, self._skipped = folder, config, listing, skipped
        self._curator = curator
        self._numbers = {name: number for number, name in enumerate(listing.images)}
        # Of the names that systems compose in different ways.
        self._by_form = {same_name(name): number for name, number in self._numbers.items() if not name.isascii()}
        self._seen: set[bytes] = set()
        # Images that metadata name, whether or not their captions are sound.
        self._named = np.zeros(len(listing.images), bool)

    def add_metadata(self, name: str, rows: RowsConfig) -> None:
        """Takes the lines of a metadata file."""
        parent = name.rpartition("/")[0]
        lost = {*self._listing.lost_stems, *map(stem_of, self._listing.unsupported)}
        for line in read_metadata(self._folder / name, rows, self._curator.columns):
            location = f"{name}:{line.number}"
            if isinstance(line, BadLine):
                self._skipped.add(line.kind, location, is_document=not line.unwanted)
                if line.unwanted and (image := self._find(parent, line.unwanted)) is not None:
                    self._named[image] = True
                continue
            image = self._find(parent, line.image)
            if image is None:
                # What was lost is counted already.
                if stem_of(os.path.normpath(f"{parent}/{line.image}").lstrip("/")) not in lost:
                    self._skipped.add("metadata line without its image", f"{location} ({line.image})")
                continue
            self._named[image] = True
            for caption in line.captions:
                self._add(image, location, map(cleaned, [caption]), line.row)

    def add_caption_files(self) -> None:
        """Takes the caption files of the images that no metadata name, and counts what has no counterpart."""
        listing = self._listing
        # Of a caption file in two spellings of the suffix, the one in small letters is read.
        files = {stem_of(name): name for name in sorted(listing.captions)}
        used = set(listing.lost_stems)
        for number, name in enumerate(tqdm(listing.images, unit=" captions", desc="captions", delay=2, disable=None)):
            stem = stem_of(name)
            used.add(stem)
            if self._named[number]:
                continue
            if (file := files.get(stem)) is not None:
                self._add(number, file, self._captions_of(file), {})
            elif stem not in listing.lost_captions:
                self._skipped.add("image without a caption", name)
        for name in listing.unsupported:
            # Beside the same image in another format it is not missed.
            if (stem := stem_of(name)) not in used:
                self._skipped.add(UNSUPPORTED, name)
                used.add(stem)
        for stem, name in files.items():
            if stem not in used:
                self._skipped.add("caption without an image", name)

    def _captions_of(self, file: str) -> Iterator[str]:
        try:
            with (self._folder / file).open("rb") as opened:
                yield from captions_in(opened.read(LONGEST + 1), self._config.caption_line)
        except OSError:
            raise BadCaption("file that cannot be read") from None

    def _add(self, image: int, location: str, captions: Iterable[str], row: Mapping[str, Any]) -> None:
        if unwanted := self._curator.of_row(row):
            self._skipped.add_unwanted(unwanted, location)
            return
        try:
            for caption in captions:
                digest = hashlib.blake2b(b"%d %s" % (image, caption.encode()), digest_size=8).digest()
                if digest in self._seen:
                    self._skipped.add("caption that an image has already", location)
                    continue
                self._seen.add(digest)
                self.images.append(image)
                self.captions.append(caption)
        except BadCaption as error:
            self._skipped.add(str(error), location)

    def _find(self, parent: str, name: str) -> int | None:
        """The image that a line of metadata in the folder `parent` names."""
        for spelled in dict.fromkeys((name, name.replace("\\", "/"))):
            path = os.path.normpath(os.path.join(parent, spelled))  # noqa: PTH118 - names, many, and not paths yet
            if path.startswith("/"):
                path = os.path.relpath(path, self._folder)
            found = self._numbers.get(path, self._by_form.get(same_name(path)))
            if found is not None:
                return found
        return None


def _without_documents(folder: Path, listing: Listing, skipped: Skipped) -> str:
    where = printable(str(folder))
    if not listing.images and not skipped.by_kind:
        return f"the folder {where} holds no images: put files ending in {', '.join(IMAGE_SUFFIXES)} there"
    return (
        f"the folder {where} holds no images with captions: write the caption of a.png to a.txt next to it, or to a "
        f"line of metadata.jsonl; what is there: {skipped.in_one_line(800)}"
    )


def _splits(names: list[str], held_out_fraction: float) -> dict[str, Int64[np.ndarray, "n"]]:
    """Documents by split; the captions of an image, and images of one stem, are on the same side.

    Those of the folders named after splits where all are in such, else chosen by a hash.
    """
    own = [SPLIT_NAMES.get(name.partition("/")[0].lower()) if "/" in name else None for name in names]
    stems = (stem_of(name).encode("utf-8", "surrogateescape") for name in names)
    return assign_splits(np.array([hash_of(stem) for stem in stems], np.uint64), own, held_out_fraction)
