"""What rows keep of documents that are longer than a row, and how many images that loses at a config's row length.

Best-fit packing keeps the first segments of such a document, and nothing of an instruction; concat-then-split cuts
anywhere and goes on in the next row, so nothing is lost. Neighbors give way to the document itself and cost it nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from cm3leon_jax.data.batches.config import BatchConfig
from cm3leon_jax.data.batches.objective import segments
from cm3leon_jax.data.batches.order import sampling_rates
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.errors import UserError
from cm3leon_jax.vocabulary import Vocabulary

# A document in a row begins and ends with `</s>`.
NUM_ENDS = 2

# Documents of a task that are read to tell how many images they lose; of more, evenly spaced ones stand for all.
_NUM_READ = 1000
# The row length that is advised holds this fraction of each task's documents.
_ADVISED_FRACTION = 0.99
# A run that would meet fewer of its images than this is refused.
_LEAST_SEEN = 0.5


def longest_document(batch: BatchConfig) -> int | None:
    """Tokens of the longest document that a row holds; None where documents are cut anywhere."""
    # A row of L targets has L + 1 tokens.
    return batch.sequence_length + 1 - NUM_ENDS if batch.packing == "best_fit" else None


def truncate_document(tokens: Int[np.ndarray, "n"], longest: int, vocabulary: Vocabulary) -> Int[np.ndarray, "m"]:
    """The first whole segments of a document that fit into `longest` tokens; never a part of an image.

    A first text that alone is too long is cut; a first image that alone is too long leaves nothing.
    """
    if len(tokens) <= longest:
        return tokens
    fitting = [stop for _, stop in segments(tokens, vocabulary) if stop <= longest]
    if fitting:
        return tokens[: fitting[-1]]
    return tokens[:0] if vocabulary.is_image(tokens[:longest]).any() else tokens[:longest]


@dataclass(frozen=True)
class RowLosses:
    """What the rows of a split lose."""

    row_length: int
    num_documents: int
    num_cut: int
    num_images: int
    # An estimate where many documents are cut.
    num_images_lost: float
    # Of the images that training would meet, each task as often as the mixture's rates say.
    fraction_of_images_lost: float
    # Holds nearly all documents whole.
    advised_length: int

    def __str__(self) -> str:
        if not self.num_cut:
            return f"rows: all {self.num_documents:,} documents fit {self.row_length:,} tokens"
        about = "about " * (self.num_cut > _NUM_READ)
        return (
            f"rows: {self.num_cut:,} of {self.num_documents:,} documents are longer than {self.row_length:,} tokens "
            f"and lose their last segments, with {about}{round(self.num_images_lost):,} of {self.num_images:,} images "
            f"(config.batch.sequence_length={self.advised_length} holds 99% of the documents whole)"
        )

    def check_most_images_fit(self) -> None:
        """Raises a UserError where training would meet less than half of the images, each task at its rate."""
        if 1 - self.fraction_of_images_lost < _LEAST_SEEN:
            raise UserError(
                f"{self.fraction_of_images_lost:.0%} of the images would never be trained on: {self}; raise "
                "config.batch.sequence_length, shorten the texts, put images first in the documents, or set "
                "config.batch.packing='concat_then_split'"
            )


def row_losses(corpus: PreparedCorpus, vocabulary: Vocabulary, batch: BatchConfig, split: str) -> RowLosses:
    """What the rows of a config lose of a split."""
    longest = longest_document(batch)
    num_documents = num_cut = num_images = advised = 0
    lost = weighed_lost = weighed = 0.0
    splits = corpus.splits(split)
    sizes = {name: documents.num_in_epoch for name, documents in splits.items()}
    rates = sampling_rates(sizes, corpus.rates(), batch.task_sampling)
    for name, documents in splits.items():
        lengths = documents.lengths
        images = corpus.manifest["tasks"][name]["splits"][split]["num_image_tokens"] // corpus.image_length
        cut = np.flatnonzero(lengths > longest) if longest is not None else np.zeros(0, np.int64)
        read = cut[np.linspace(0, len(cut) - 1, min(len(cut), _NUM_READ)).astype(np.int64)]
        codes_lost = 0
        for index in read.tolist():
            ids = documents.document(index)
            # An instruction without its target teaches nothing.
            kept = ids[:0] if documents.template(index) else truncate_document(ids, longest or 0, vocabulary)
            codes_lost += int(vocabulary.is_image(ids[len(kept) :]).sum())
        images_lost = codes_lost / corpus.image_length * len(cut) / max(1, len(read))
        # How often training meets a document of the task.
        rate = rates[name] / len(lengths)
        weighed_lost, weighed = weighed_lost + rate * images_lost, weighed + rate * images
        num_documents, num_cut = num_documents + len(lengths), num_cut + len(cut)
        num_images, lost = num_images + images, lost + images_lost
        advised = max(advised, int(np.quantile(lengths, _ADVISED_FRACTION, method="higher")) + NUM_ENDS - 1)
    share = weighed_lost / weighed if weighed else 0.0
    return RowLosses(batch.sequence_length, num_documents, num_cut, num_images, lost, share, advised)
