"""Scores of captions, compared with those that pycocoevalcap gave for the same tokens."""

import json
from pathlib import Path

import numpy as np
import pytest

from cm3leon_jax.evaluation.caption_scores import bleu, bleu_counts, cider_d, ngram_counts, rouge_l

*ITEMS, CORPUS = [
    json.loads(line)
    for line in (Path(__file__).parent / "caption_scores.jsonl").read_text(encoding="utf-8").splitlines()
]
PREDICTIONS = [item["prediction"].split() for item in ITEMS]
REFERENCES = [[text.split() for text in item["references"]] for item in ITEMS]


def recorded(name: str) -> np.ndarray:
    return np.array([item[name] for item in ITEMS])


def test_there_are_500_items_with_several_references():
    assert len(ITEMS) == 500
    assert {len(references) for references in REFERENCES} == set(range(1, 8))
    assert sum(not prediction for prediction in PREDICTIONS) == 10


@pytest.mark.parametrize(("name", "score"), [("cider", cider_d), ("rouge", rouge_l)])
def test_scores_per_item_are_those_recorded(name, score):
    found = score(PREDICTIONS, REFERENCES)
    np.testing.assert_allclose(found, recorded(name), atol=1e-6, rtol=0)
    assert found.mean() == pytest.approx(CORPUS[name], abs=1e-6)


def test_bleu_is_that_recorded_per_item_and_of_the_corpus():
    counts = bleu_counts(PREDICTIONS, REFERENCES)
    per_item = np.stack([bleu(counts, np.array([item])) for item in range(len(ITEMS))])
    np.testing.assert_allclose(per_item, recorded("bleu"), atol=1e-6, rtol=0)
    np.testing.assert_allclose(bleu(counts, np.arange(len(ITEMS))), CORPUS["bleu"], atol=1e-6, rtol=0)


def test_bleu_of_repeated_items_is_that_of_a_corpus_with_them():
    items = np.array([3, 3, 7, 11])
    repeated = bleu_counts([PREDICTIONS[i] for i in items], [REFERENCES[i] for i in items])
    np.testing.assert_allclose(bleu(bleu_counts(PREDICTIONS, REFERENCES), items), bleu(repeated, np.arange(4)))


def test_ngrams_of_short_texts():
    assert ngram_counts([]) == {}
    assert ngram_counts(["a", "a"]) == {("a",): 2, ("a", "a"): 1}


def test_empty_predictions_score_nothing():
    references = [[["a", "dog"]], [["a", "cat"]]]
    assert list(cider_d([[], []], references)) == [0, 0]
    assert list(rouge_l([[], []], references)) == [0, 0]
    assert list(bleu(bleu_counts([[], []], references), np.arange(2))) == [0, 0, 0, 0]
