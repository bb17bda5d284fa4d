"""Tokens of captions, compared with those that the COCO caption evaluation's own program gave."""

import json
from collections import Counter
from pathlib import Path

import pytest

from cm3leon_jax.evaluation.ptb_tokenizer import caption_tokens, ptb_tokens
from tests.evaluation.ptb_sentences import captions

RECORDED = [
    json.loads(line) for line in (Path(__file__).parent / "ptb_captions.jsonl").read_text(encoding="utf-8").splitlines()
]


def test_all_recorded_captions_have_the_same_tokens():
    different = {
        line["text"]: (line["tokens"], found)
        for line in RECORDED
        if (found := " ".join(caption_tokens(line["text"]))) != line["tokens"]
    }
    assert different == {}


def test_the_recorded_captions_are_those_of_the_script():
    assert [(line["kind"], line["text"]) for line in RECORDED] == list(captions(seed=0))
    assert len(RECORDED) > 1000 and min(Counter(line["kind"] for line in RECORDED).values()) >= 3


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", ""),
        (" \t\u3000", ""),
        ("A man's dog can't eat, at 5 p.m.", "a man 's dog ca n't eat , at 5 p.m."),
        ('He said "no" (twice).', "he said `` no '' -lrb- twice -rrb- ."),
        ("Cannot: J. The J. K", "can not : j . the j. k"),
        ("one\ntwo", "one two"),
        ("🙂 here", "here"),
        ("2 1/2 cups", "2\u00a01/2 cups"),
    ],
)
def test_tokens(text, tokens):
    assert " ".join(ptb_tokens(text)) == tokens


def test_brackets_stay_where_other_punctuation_goes():
    assert caption_tokens('"a" (dog) - `b` ... ; :') == ["a", "-lrb-", "dog", "-rrb-", "b"]
