"""Scores of tokenized captions: CIDEr-D, BLEU and ROUGE-L, as the COCO caption evaluation defines them.

All take one prediction per item and its references, each a list of tokens (`ptb_tokenizer.caption_tokens`).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

# The longest n-grams.
_MAX_LENGTH = 4
# The width, in words, of CIDEr-D's penalty for another length.
_SIGMA = 6.0
# Recall's weight in ROUGE-L.
_BETA = 1.2
# Keep BLEU's fractions finite, and equal to the reference implementation's.
_TINY, _SMALL = 1e-15, 1e-9

Tokens = Sequence[str]
NGram = tuple[str, ...]


def ngram_counts(tokens: Tokens) -> Counter[NGram]:
    """How often each sequence of one to four tokens is there."""
    return Counter(
        tuple(tokens[start : start + length])
        for length in range(1, _MAX_LENGTH + 1)
        for start in range(len(tokens) - length + 1)
    )


@dataclass(frozen=True)
class _WeightedNGrams:
    """A caption's n-grams, weighted by how rare they are, by length; the norm of each length; its pairs of words."""

    weights: tuple[Mapping[NGram, float], ...]
    norms: Float[np.ndarray, "4"]
    num_pairs: int


def cider_d(predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Float[np.ndarray, "n"]:
    """CIDEr-D per item (arXiv 1411.5726, section 4), times 10; their mean, times 100, is what papers report.

    An n-gram's document frequency is the number of items with it in a reference, so one item alone scores 0.
    """
    counts = [[ngram_counts(tokens) for tokens in of_item] for of_item in references]
    frequencies = Counter(itertools.chain.from_iterable(set().union(*of_item) for of_item in counts))
    log_items = np.log(float(len(counts)))

    def weighted(found: Counter[NGram]) -> _WeightedNGrams:
        weights: tuple[dict[NGram, float], ...] = tuple({} for _ in range(_MAX_LENGTH))
        for ngram, count in found.items():
            weights[len(ngram) - 1][ngram] = count * (log_items - np.log(max(1.0, frequencies[ngram])))
        norms = np.array([np.sqrt(sum(weight**2 for weight in of_length.values())) for of_length in weights])
        num_pairs = sum(count for ngram, count in found.items() if len(ngram) == 2)
        return _WeightedNGrams(weights, norms, num_pairs)

    scores = np.zeros(len(counts))
    for item, (tokens, of_item) in enumerate(zip(predictions, counts, strict=True)):
        prediction = weighted(ngram_counts(tokens))
        scores[item] = 10 * np.mean([_similarity(prediction, weighted(found)) for found in of_item])
    return scores


def _similarity(prediction: _WeightedNGrams, reference: _WeightedNGrams) -> float:
    """Mean over the lengths of n-grams; a prediction gains nothing by repeating one."""
    products = [
        sum(
            min(weight, of_reference[ngram]) * of_reference[ngram]
            for ngram, weight in found.items()
            if ngram in of_reference
        )
        for found, of_reference in zip(prediction.weights, reference.weights, strict=True)
    ]
    norms = prediction.norms * reference.norms
    cosines = np.divide(products, norms, out=np.zeros(_MAX_LENGTH), where=norms > 0)
    penalty = np.exp(-((prediction.num_pairs - reference.num_pairs) ** 2) / (2 * _SIGMA**2))
    return float(np.mean(cosines) * penalty)


@dataclass(frozen=True)
class BleuCounts:
    """What BLEU sums over items: for each n-gram length how many a prediction has and how many are right; lengths."""

    correct: Int[np.ndarray, "n 4"]
    total: Int[np.ndarray, "n 4"]
    length: Int[np.ndarray, "n"]
    # Of the reference whose length is closest, of two equally close ones the shorter.
    reference_length: Int[np.ndarray, "n"]


def bleu_counts(predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> BleuCounts:
    """Counts each item once, so that a resampled corpus is a sum."""
    shape = (len(predictions), _MAX_LENGTH)
    correct, total = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    length, reference_length = np.zeros(shape[0], np.int64), np.zeros(shape[0], np.int64)
    for item, (tokens, of_item) in enumerate(zip(predictions, references, strict=True)):
        most: Counter[NGram] = Counter()
        for reference in of_item:
            most |= ngram_counts(reference)
        for ngram, count in (ngram_counts(tokens) & most).items():
            correct[item, len(ngram) - 1] += count
        total[item] = np.maximum(len(tokens) - np.arange(_MAX_LENGTH), 0)
        length[item] = len(tokens)
        reference_length[item] = min(map(len, of_item), key=lambda found: (abs(found - len(tokens)), found))
    return BleuCounts(correct, total, length, reference_length)


def bleu(counts: BleuCounts, items: Int[np.ndarray, "m"]) -> Float[np.ndarray, "4"]:
    """BLEU-1 to BLEU-4 of a corpus of these items (Papineni et al., 2002), repeats included."""
    precisions = (counts.correct[items].sum(0) + _TINY) / (counts.total[items].sum(0) + _SMALL)
    means = np.cumprod(precisions) ** (1 / np.arange(1, _MAX_LENGTH + 1))
    ratio = (counts.length[items].sum() + _TINY) / (counts.reference_length[items].sum() + _SMALL)
    return means * np.exp(min(0.0, 1 - 1 / ratio))


def rouge_l(predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Float[np.ndarray, "n"]:
    """ROUGE-L per item (Lin, 2004): the best precision and the best recall, which two references may give."""
    scores = np.zeros(len(predictions))
    for item, (tokens, of_item) in enumerate(zip(predictions, references, strict=True)):
        common = [_longest_common_subsequence(tokens, reference) for reference in of_item]
        if any(common):
            precision = max(common) / len(tokens)
            recall = max(found / len(reference) for found, reference in zip(common, of_item, strict=True) if found)
            scores[item] = (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)
    return scores


def _longest_common_subsequence(first: Tokens, second: Tokens) -> int:
    """Its length."""
    row = [0] * (len(second) + 1)
    for token in first:
        diagonal = 0
        for index, other in enumerate(second, start=1):
            above = row[index]
            row[index] = diagonal + 1 if token == other else max(above, row[index - 1])
            diagonal = above
    return row[-1]
