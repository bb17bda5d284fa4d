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
        "webdataset": "cm3leon_jax.data.sources.webdataset:WebDataset",
        "parquet": "cm3leon_jax.data.sources.parquet:CaptionedTables",
        "tfrecord": "cm3leon_jax.data.sources.tfrecord:CaptionedRecords",
        "jsonl": "cm3leon_jax.data.sources.jsonl:CaptionedJsonLines",
        "instruct_pix2pix": "cm3leon_jax.data.sources.edit_pairs:InstructPix2Pix",
        "ultraedit": "cm3leon_jax.data.sources.edit_pairs:UltraEdit",
        "omniedit": "cm3leon_jax.data.sources.edit_pairs:OmniEdit",
        "magicbrush": "cm3leon_jax.data.sources.magicbrush:MagicBrushSessions",
        "llava": "cm3leon_jax.data.sources.conversations:LlavaConversations",
        "llava_onevision": "cm3leon_jax.data.sources.conversations:LlavaOneVision",
        "cauldron": "cm3leon_jax.data.sources.conversations:Cauldron",
        "localized_narratives": "cm3leon_jax.data.sources.narratives:LocalizedNarratives",
        "vqa": "cm3leon_jax.data.sources.vqa:Questions",
        "coco_captions": "cm3leon_jax.data.sources.coco:CocoCaptioned",
        "coco_objects": "cm3leon_jax.data.sources.coco:CocoObjects",
        "coco_segmentation": "cm3leon_jax.data.sources.coco:CocoSegmentation",
        "grit": "cm3leon_jax.data.sources.grit:Grit",
        "obelics": "cm3leon_jax.data.sources.obelics:Obelics",
        "omnicorpus": "cm3leon_jax.data.sources.omnicorpus:OmniCorpus",
        "mmc4": "cm3leon_jax.data.sources.mmc4:Mmc4",
        "mint": "cm3leon_jax.data.sources.mint:Mint",
        "structures": "cm3leon_jax.data.sources.structures:Structures",
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
