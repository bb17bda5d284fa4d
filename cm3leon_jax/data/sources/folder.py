"""`folder:PATH`: a folder of captioned images as a source."""

from __future__ import annotations

import re
from pathlib import Path

from cm3leon_jax.data.sources.folder_documents import read_folder
from cm3leon_jax.data.sources.registry import NamedSource


class NamedFolder(NamedSource):
    """`folder:PATH` as `config.corpus.mixture`."""

    @property
    def task_name(self) -> str:
        """Named after the folder alone, not the way to it."""
        return "folder_" + re.sub(r"\W+", "_", Path(self.location).expanduser().resolve().name).strip("_")

    def add_task(self) -> None:
        from cm3leon_jax.data.sources.folder_task import add_folder_task

        add_folder_task(self.task_name, self.location, self.corpus.folder)

    def provenance(self) -> dict[str, str]:
        return read_folder(Path(self.location).expanduser(), self.corpus.folder).provenance()
