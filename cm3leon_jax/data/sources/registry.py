"""Sources that `config.corpus.mixture` spells as KIND:LOCATION, by kind."""

from __future__ import annotations

import abc
import re

from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.registry import Registry

SOURCES = Registry(
    "the kind of config.corpus.mixture",
    {
        "folder": "cm3leon_jax.data.sources.folder:NamedFolder",
        "tfds": "cm3leon_jax.data.sources.tfds:NamedTfds",
    },
)


class NamedSource(abc.ABC):
    """A source that `config.corpus.mixture` spells; each kind is a subclass.

    Its module must import without seqio and TensorFlow, which only `add_task` needs.
    """

    def __init__(self, kind: str, location: str, corpus: CorpusConfig) -> None:
        self.kind, self.location, self.corpus = kind, location, corpus

    @property
    def task_name(self) -> str:
        """The name of its seqio task, and of its folder in the corpus: letters, digits and underscores."""
        return f"{self.kind}_" + re.sub(r"\W+", "_", self.location).strip("_")

    @abc.abstractmethod
    def add_task(self) -> None:
        """Registers the seqio task `task_name`."""

    def provenance(self) -> dict[str, str] | None:
        """What its documents follow from; None where that is unknown without seqio."""
        return None


def named_source(corpus: CorpusConfig) -> NamedSource | None:
    """The source that the mixture spells; None where it is the name of a seqio Task or Mixture."""
    kind, colon, location = corpus.mixture.partition(":")
    if not colon or kind not in SOURCES:
        return None
    source: NamedSource = SOURCES.load(kind)(kind, location, corpus)
    return source
