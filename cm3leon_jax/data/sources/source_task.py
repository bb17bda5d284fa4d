"""Any source that a config can spell, as a seqio task under a name of one's own: the parts of mixtures."""

from __future__ import annotations

import seqio

from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.curation.config import CurationConfig
from cm3leon_jax.data.sources.config import AnnotationsConfig, FolderConfig, InterleavedConfig, RowsConfig
from cm3leon_jax.data.sources.registry import SOURCES, named_source
from cm3leon_jax.errors import UserError


def add_source_task(
    name: str,
    source: str,
    folder: FolderConfig | None = None,
    annotations: AnnotationsConfig | None = None,
    rows: RowsConfig | None = None,
    interleaved: InterleavedConfig | None = None,
    curation: CurationConfig | None = None,
) -> seqio.Task:
    """Registers a source such as "vqa:/data/vqa" as a seqio task, whose name a mixture can have among others.

    Args:
      folder: what `config.corpus.folder` is for a source that is the whole mixture.
      annotations: what `config.corpus.annotations` is.
      rows: what `config.corpus.rows` is.
      interleaved: what `config.corpus.interleaved` is.
      curation: what `config.corpus.curation` is; None where that of the corpus is meant for this task, too.

    Raises:
      UserError: if there is no such source, what it reads is not there, or the name is taken.
    """
    corpus = CorpusConfig(
        mixture=source,
        folder=folder or FolderConfig(),
        rows=rows or RowsConfig(),
        annotations=annotations or AnnotationsConfig(),
        interleaved=interleaved or InterleavedConfig(),
        curation=curation or CurationConfig(),
    )
    found = named_source(corpus)
    if found is None:
        kinds = ", ".join(f"{kind}:" for kind in SOURCES)
        raise UserError(f"the task {name!r} is of the source {source!r}: begin it with one of {kinds}")
    before = seqio.TaskRegistry.get(found.task_name) if found.task_name in seqio.TaskRegistry.names() else None
    if before is not None:
        seqio.TaskRegistry.remove(found.task_name)
    found.add_task()
    task = seqio.TaskRegistry.get(found.task_name)
    if curation is not None:
        task.source.curation = curation
    seqio.TaskRegistry.remove(found.task_name)
    if before is not None:
        seqio.TaskRegistry.add_provider(found.task_name, before)
    try:
        return seqio.TaskRegistry.add(
            name, source=task.source, preprocessors=task.preprocessors, output_features=task.output_features
        )
    except ValueError as error:
        raise UserError(f"the task {name!r} cannot be registered: {error}") from None
