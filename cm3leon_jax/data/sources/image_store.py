"""The images of documents that name them by URL or file name: where each of them is.

What is found in a folder of images, and in those below:

- img2dataset's `webdataset` form: NAME.tar, with NAME.parquet of the columns url and key; without that, the tar's .json
- img2dataset's `files` form: the folder NAME beside NAME.parquet
- img2dataset's `parquet` form: NAME.parquet with the bytes in the column jpg, png or webp
- any tar or folder of images: by file name, or by URL where that is the SHA-256 or MD5 of the URL in hexadecimal digits
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cm3leon_jax.data.sources.example_index import status_of
from cm3leon_jax.data.sources.examples import ImageReference, NamedImage
from cm3leon_jax.data.sources.json_lines import parsed
from cm3leon_jax.data.sources.listing import entries_below
from cm3leon_jax.data.sources.skipped import Skipped
from cm3leon_jax.data.sources.splits import hash_of
from cm3leon_jax.data.sources.tables import UNREADABLE_TABLE, UnreadableTable, open_table, read_rows
from cm3leon_jax.data.sources.tars import TarFault, TarMember, read_members
from cm3leon_jax.data.sources.texts import Texts
from cm3leon_jax.images import IMAGE_SUFFIXES

_FORM = "the table of img2dataset"
_BYTES = ("jpg", "png", "webp")
# Where a file is no part of another.
_ALONE = -1
_Image = TypeVar("_Image")
_HASH = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}")


class ImageStore:
    """Finds images by their URL or the name of their file; in memory are 28 bytes for each name of one."""

    def __init__(self, folder: Path, skipped: Skipped, without: Collection[str] = ()) -> None:
        """
        Args:
          folder: where they are.
          skipped: gets what cannot be read, and is no document.
          without: files that are none of images, by their names from `folder` on.
        """
        self.folder = folder.absolute()
        # Tars and parquet files with images, with their sizes and times of change.
        self.archives: dict[str, tuple[int, int]] = {}
        self._skipped = skipped
        # Of each archive, its name and the column of its images; and the names of files that are alone.
        self._opened: list[tuple[str, str]] = []
        self._alone = Texts()
        self._hashes, self._in = array("Q"), array("i")
        self._starts, self._sizes = array("q"), array("q")
        self._names, times = hashlib.sha256(), hashlib.sha256()
        tables, tars = list[str](), list[str]()
        # Files that are alone, by the folder and the key that img2dataset knows them by; None for several.
        by_key: dict[str, int | None] = {}
        for name, entry in entries_below(self.folder, skipped) if self.folder.is_dir() else ():
            suffix = Path(name).suffix.lower()
            if name in without or suffix not in (".tar", ".parquet", *IMAGE_SUFFIXES):
                continue
            try:
                status = entry.stat()
            except OSError:
                continue
            self._names.update(json.dumps([name, status.st_size]).encode())
            times.update(json.dumps([name, status.st_mtime_ns]).encode())
            if suffix in (".tar", ".parquet"):
                (tars if suffix == ".tar" else tables).append(name)
                self.archives[str(self.folder / name)] = (status.st_size, status.st_mtime_ns)
            else:
                self._add_key(by_key, name.rpartition(".")[0], len(self._alone), name)
                self._add_name(name, _ALONE, len(self._alone), 0)
                self._alone.append(name)
        self.times = times.digest()
        # The members of one tar are in memory at a time.
        alone = dict.fromkeys(tables)
        for name in tars:
            number, members = self._add_tar(name)
            table = f"{name.removesuffix('.tar')}.parquet"
            if table in alone:
                del alone[table]
                self._add_table(table, (number, members), by_key)
            else:
                self._add_json(name, number, members)
        for name in alone:
            self._add_table(name, None, by_key)
        order = np.argsort(np.frombuffer(self._hashes, np.uint64), kind="stable")
        self._order, self._sorted = order, np.frombuffer(self._hashes, np.uint64)[order]

    def __str__(self) -> str:
        count = f"{len(self._alone):,} files and {len(self.archives):,} archives"
        return f"{count}, {self._names.hexdigest()[:12]}"

    def find(self, image: NamedImage) -> ImageReference | None:
        """Where an image is; None if it is missing. Its file is a path."""
        for key in _keys(image):
            found = hash_of(key)
            start, stop = (int(np.searchsorted(self._sorted, np.uint64(found), side)) for side in ("left", "right"))
            images = [self._reference(int(number)) for number in self._order[start:stop]]
            # What one URL gave is the same image however often it was taken; files of one name may be of several.
            if len(images) > 1 and key == _name_key(image.name) and len({self._size(each) for each in images}) > 1:
                return None
            if images:
                return images[0]
        return None

    def _size(self, image: ImageReference) -> int:
        return image.size or (status_of(Path(image.file)) or (0, 0))[0]

    def _reference(self, number: int) -> ImageReference:
        archive, start, size = self._in[number], self._starts[number], self._sizes[number]
        if archive == _ALONE:
            return ImageReference(str(self.folder / self._alone[start]))
        name, column = self._opened[archive]
        if column:
            return ImageReference(name, column, row=start)
        return ImageReference(name, start=start, size=size)

    def _add(self, key: bytes, archive: int, start: int, size: int) -> None:
        self._hashes.append(hash_of(key))
        self._in.append(archive)
        self._starts.append(start)
        self._sizes.append(size)

    def _add_key(self, images: dict[str, _Image | None], key: str, image: _Image, where: str) -> None:
        """Takes in an image by its key; of a key with several nobody knows which is meant."""
        if key in images:
            self._skipped.add("key with several images", where, is_document=False)
        images[key] = None if key in images else image

    def _add_name(self, name: str, archive: int, start: int, size: int) -> None:
        last = name.rpartition("/")[2]
        self._add(_name_key(last), archive, start, size)
        if _HASH.fullmatch(stem := last.rpartition(".")[0]):
            self._add(_name_key(stem), archive, start, size)

    def _open(self, name: str, column: str = "") -> int:
        self._opened.append((str(self.folder / name), column))
        return len(self._opened) - 1

    def _add_tar(self, name: str) -> tuple[int, list[TarMember]]:
        number, found = self._open(name), list[TarMember]()
        for member in read_members(self.folder / name):
            if isinstance(member, TarFault):
                self._skipped.add(member.kind, f"{name}, byte {member.start}", is_document=False)
            elif member.size:
                found.append(member)
                if Path(member.name).suffix.lower() in IMAGE_SUFFIXES:
                    self._add_name(member.name, number, member.start, member.size)
        return number, found

    def _add_table(self, name: str, tar: tuple[int, list[TarMember]] | None, by_key: dict[str, int | None]) -> None:
        """Takes in the URLs of the images in a tar, in a folder, or in the table itself."""
        stem, columns = name.removesuffix(".parquet"), list[str]()
        try:
            columns = open_table(self.folder / name).schema.names
        except UnreadableTable:
            self._skipped.add(UNREADABLE_TABLE, name, is_document=False)
        if not {"url", "key"} <= set(columns):
            if tar is not None:
                self._add_json(f"{stem}.tar", *tar)
            return
        column = next((each for each in _BYTES if each in columns), "") if tar is None else ""
        number = tar[0] if tar is not None else self._open(name, column) if column else _ALONE
        keys = self._by_key(f"{stem}.tar", tar[1]) if tar is not None else {}
        for row, values in enumerate(read_rows(self.folder / name, ("url", "key"), _FORM, ("status",))):
            url, key = values["url"], values["key"]
            if not isinstance(url, str) or values.get("status", "success") != "success":
                continue
            if column:
                self._add(_url_key(url), number, row, 0)
            elif tar is not None:
                if (member := keys.get(str(key))) is not None:
                    self._add(_url_key(url), number, member.start, member.size)
            elif (alone := by_key.get(f"{stem}/{key}")) is not None:
                self._add(_url_key(url), _ALONE, alone, 0)

    def _add_json(self, name: str, number: int, members: list[TarMember]) -> None:
        """Takes in the URLs of a tar that say its .json files."""
        keys = self._by_key(name, members)
        for member, content in _json_files(self.folder / name, members):
            url = content.get("url") if isinstance(content, dict) else None
            image = keys.get(_key(member))
            if isinstance(url, str) and image is not None:
                self._add(_url_key(url), number, image.start, image.size)

    def _by_key(self, name: str, members: list[TarMember]) -> dict[str, TarMember | None]:
        """The images of a tar of img2dataset by their keys."""
        found: dict[str, TarMember | None] = {}
        for member in members:
            if Path(member.name).suffix.lower() in IMAGE_SUFFIXES:
                self._add_key(found, _key(member), member, f"{name}:{member.name}")
        return found


def _key(member: TarMember) -> str:
    """The key of img2dataset, in whatever folder."""
    return member.name.rpartition("/")[2].rpartition(".")[0]


def _json_files(archive: Path, members: list[TarMember]) -> Iterator[tuple[TarMember, Any]]:
    with archive.open("rb") as opened:
        for member in members:
            if member.name.endswith(".json"):
                opened.seek(member.start)
                yield member, parsed(opened.read(member.size))


def _keys(image: NamedImage) -> Iterator[bytes]:
    """What an image may be known by."""
    if image.name:
        yield _name_key(image.name)
    if image.url:
        yield _url_key(image.url)
        url = image.url.encode("utf-8", "surrogatepass")
        for digest in (hashlib.sha256(url), hashlib.md5(url, usedforsecurity=False)):
            yield _name_key(digest.hexdigest())


def _name_key(name: str) -> bytes:
    return b"name " + name.encode("utf-8", "surrogatepass")


def _url_key(url: str) -> bytes:
    return b"url " + url.encode("utf-8", "surrogatepass")
