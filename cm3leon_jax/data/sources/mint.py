"""MINT-1T: web pages in parquet files, PDFs and papers in tars with the images of each in one TIFF."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cm3leon_jax.data.sources.examples import BadRow, ImageReference, value_of
from cm3leon_jax.data.sources.interleaved import Segment
from cm3leon_jax.data.sources.interleaved_lists import InterleavedTables, in_turn
from cm3leon_jax.data.sources.json_lines import parsed
from cm3leon_jax.data.sources.tables import TABLE_SUFFIXES
from cm3leon_jax.data.sources.tars import TarMember, read_members

_SUFFIXES = (".tiff", ".tif")


class _Pages(NamedTuple):
    """The files of a document in a tar: its .json, and the TIFF of its images, if there is one."""

    document: TarMember
    images: TarMember | None
    # Whether there is another file of the same name.
    is_twice: bool


class Mint(InterleavedTables):
    """`mint:PATH`: parquet files with images and texts; or tars with KEY.json and KEY.tiff, whose pages are the images.

    Of a folder with parquet files of documents, tars are those of their images.
    """

    form = "parquet files or tars of MINT-1T"
    suffixes = (*TABLE_SUFFIXES, ".tar")

    @property
    def files(self) -> Sequence[str]:
        found = super().files
        tables = [file for file in found if file.endswith(TABLE_SUFFIXES)]
        return tables or found

    def num_rows(self, file: str) -> int | None:
        if not file.endswith(".tar"):
            return super().num_rows(file)
        members = list[TarMember]()
        for member in read_members(self.folder / file):
            if isinstance(member, TarMember):
                members.append(member)
            else:
                self.skipped.add(member.kind, f"{file}, byte {member.start}", is_document=False)
        documents, alone = _paired(members)
        for name in alone:
            self.skipped.add("images without their .json", f"{file}:{name}")
        return len(documents)

    def rows(self, file: str, start: int) -> Iterator[Any]:
        if not file.endswith(".tar"):
            yield from super().rows(file, start)
            return
        members = [each for each in read_members(self.folder / file) if isinstance(each, TarMember)]
        documents, _ = _paired(members)
        with (self.folder / file).open("rb") as archive:
            for pages in documents[start:]:
                archive.seek(pages.document.start)
                yield pages, parsed(archive.read(pages.document.size))

    def segments(self, file: str, number: int, row: Any) -> Sequence[Segment]:
        if not file.endswith(".tar"):
            return super().segments(file, number, row)
        pages, content = row
        if pages.is_twice:
            raise BadRow("two files of one name")
        texts, names = value_of(content, "texts", list), value_of(content, "images", list)
        num_images = sum(name is not None for name in names)
        images: list[Any] = []
        page = 0
        for name in names:
            if not isinstance(name, str | None):
                raise BadRow("no images of the published form")
            images.append(None if name is None else _page(file, pages.images, page, num_images))
            page += name is not None
        return in_turn(texts, images)


def _page(file: str, images: TarMember | None, page: int, num_pages: int) -> ImageReference | BadRow:
    if images is None:
        return BadRow("missing image")
    return ImageReference(file, start=images.start, size=images.size, page=page, num_pages=num_pages)


def _paired(members: Sequence[TarMember]) -> tuple[list[_Pages], list[str]]:
    """The documents of a tar in the order of their .json, and the names of images without one."""
    by_key: dict[str, list[TarMember]] = {}
    for member in members:
        if member.name.endswith((".json", *_SUFFIXES)):
            by_key.setdefault(str(Path(member.name).with_suffix("")), []).append(member)
    found, alone = list[_Pages](), list[str]()
    for key, files in by_key.items():
        documents = [file for file in files if file.name.endswith(".json")]
        images = [file for file in files if not file.name.endswith(".json")]
        if documents:
            found.append(_Pages(documents[0], images[0] if images else None, len(documents) > 1 or len(images) > 1))
        else:
            alone += [key] * len(images)
    return sorted(found, key=lambda pages: pages.document.start), alone
