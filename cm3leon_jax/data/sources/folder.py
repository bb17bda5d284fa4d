"""`folder:PATH`: a folder of captioned images as a source."""

from __future__ import annotations

import re

from cm3leon_jax.data.sources.folder_documents import read_folder
from cm3leon_jax.data.sources.registry import NamedSource
from cm3leon_jax.paths import copied


class NamedFolder(NamedSource):
    """`folder:PATH` as `config.corpus.mixture`."""

    @property
    def task_name(self) -> str:
        """Named after the folder alone, not the way to it."""
        return "folder_" + re.sub(r"\W+", "_", copied(self.location, "config.corpus.mixture").resolve().name).strip("_")

    def add_task(self) -> None:
        from cm3leon_jax.data.sources.folder_task import add_folder_task

        corpus = self.corpus
        add_folder_task(self.task_name, self.location, corpus.folder, rows=corpus.rows, curation=corpus.curation)

    def provenance(self) -> dict[str, str]:
        corpus, path = self.corpus, copied(self.location, "config.corpus.mixture")
        return read_folder(path, corpus.folder, corpus.rows, corpus.curation).provenance()
