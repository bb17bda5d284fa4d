"""Values of retrieval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cm3leon_jax.config_part import AFTER_IMPORT, Part, require
from cm3leon_jax.ranges import Decay, Finite, NonNegativeInt, OneOf, PositiveInt, Range, Seed


@dataclass(frozen=True)
class RetrievalConfig(Part):
    """Which documents are put before a document (arXiv 2309.02591, section 2.1.2; arXiv 2211.12561)."""

    # `prepare` finds the neighbors of every document, and `train` puts them before it.
    enabled: Annotated[bool, AFTER_IMPORT] = False
    # Neighbors kept per document: found by its text, and found by its images.
    num_by_text: NonNegativeInt = 2
    num_by_image: NonNegativeInt = 2
    # Fraction of the query's text tokens, and of its images' patches, that is dropped.
    query_dropout: Decay = 0.2
    # Upper bound on the similarity of a neighbor to the document and to each neighbor selected before it, and lower
    # bound on its score with the query: fewer neighbors are kept instead of bad ones.
    max_similarity: Finite = 0.9
    min_similarity: Finite = 0.0
    # Whether only documents with text and image can be neighbors.
    both_modalities: bool = True
    # Tasks whose training documents can be neighbors; none named means all.
    datastore_tasks: tuple[str, ...] = ()
    # Hits per query, among which the neighbors are selected.
    num_candidates: PositiveInt = 64
    # "exact", or "approximate": each of the best is found with probability `search_recall`, on a TPU in less time.
    search: Annotated[str, OneOf("exact", "approximate")] = "exact"
    search_recall: Annotated[float, Range(above=0, at_most=1)] = 0.95
    # Neighbors that a training document gets, sampled from those kept: "fixed" is this many, or all there are;
    # "uniform" is 0 to this many, with equal probability.
    num_retrieved: Annotated[NonNegativeInt, AFTER_IMPORT] = 3
    sampling: Annotated[str, OneOf("fixed", "uniform"), AFTER_IMPORT] = "fixed"
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        most = max(self.num_by_text, self.num_by_image)
        require(
            self.num_candidates >= most,
            f"retrieval.num_candidates is {self.num_candidates}: at least the {most} neighbors to be kept",
        )
        require(
            self.num_retrieved <= self.num_kept,
            f"retrieval.num_retrieved is {self.num_retrieved}: at most num_by_text + num_by_image, which are "
            f"{self.num_kept}",
        )

    @property
    def num_kept(self) -> int:
        return self.num_by_text + self.num_by_image
