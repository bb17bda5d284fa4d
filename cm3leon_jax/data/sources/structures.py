"""Captioned images with structure maps that are made of them."""

from __future__ import annotations

from collections.abc import Iterator

from cm3leon_jax.data.curation.config import CurationConfig
from cm3leon_jax.data.curation.curator import Curator
from cm3leon_jax.data.sources.annotated import AnnotatedSource
from cm3leon_jax.data.sources.boxes import needed
from cm3leon_jax.data.sources.examples import Example, ImageReference, Values
from cm3leon_jax.data.sources.folder_documents import read_folder
from cm3leon_jax.data.sources.structure_maps import map_options


class Structures(AnnotatedSource):
    """`structures:PATH`: a folder as `folder:PATH` reads it; each image with each map of `annotations.structures`."""

    form = "a folder of captioned images"

    @property
    def curator(self) -> Curator:
        """Wants all: the reader of the folder has asked the rows of its metadata."""
        return Curator(CurationConfig())

    def examples(self) -> Iterator[Example]:
        annotations = self.corpus.annotations
        options = map_options(needed(annotations.resolution, self.what), self.corpus.squaring)
        documents = read_folder(self.path, self.corpus.folder, self.corpus.rows, self.corpus.curation)
        self.skipped.update(documents.skipped)
        for split, indices in documents.splits.items():
            for index in range(len(indices)):
                name, caption = documents.name(split, index), documents.caption(split, index)
                for kind in annotations.structures:
                    structure = ImageReference(name, structure=kind, options=options)
                    values: Values = {"structure": structure, "caption": caption, "image": ImageReference(name)}
                    yield Example(f"{name}, {kind}", kind, values, name, split)
