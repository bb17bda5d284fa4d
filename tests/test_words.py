"""One vocabulary, the field's: words and phrases that must not come back into the package and its documentation."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(
    [
        *(file for suffix in ("*.py", "*.jinja") for file in (ROOT / "cm3leon_jax").rglob(suffix)),
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
    ]
)

# What is not written, as a regular expression between word boundaries ("_" is one, the case does not matter), and the
# words for it.
WORDS = {
    # American spelling.
    "neighbours?": "neighbor",
    "grey": "gray",
    "colours?": "color",
    "behaviours?": "behavior",
    "(normalis|tokenis|initialis|optimis|recognis)(e|es|ed|er|ing|ation)": "-ize",
    # Data and objective.
    "pictures?": "image",
    "marks?": "special token, sentinel",
    "places?": "position, index, slot, coordinate",
    "stretch(es)?": "span, range of steps",
    "mask_draws|draw_spans|move_spans": "sample_span_masks, sample_spans, apply_span_masking",
    r"\w+_share": "fraction, ratio",
    "left[ -]?overs?": "partial files",
    "left[ _]out": "skipped",
    "lay_out": "write_row",
    "opened_ahead": "prefetch_decoded",
    # Retrieval.
    "whole_vectors": "document_embeddings",
    "end_places": "eos_positions",
    "num_drawn": "num_retrieved",
    "alike": "similarity",
    # Model and numerics.
    "slopes?": "gradient, cotangent",
    "turned": "transposed, rotated",
    "of_table|of_hidden|by_query|by_scores": "d_table, d_hidden, d_query, d_scores",
    "last_norm": "final_norm",
    "affine_norms": "norm_use_scale",
    "norms_first|norm_position": "pre_norm",
    "shared out": "sharded",
    "own_rows": "process_local_rows",
    "scores of the vocabulary": "logits",
    # Training and robustness.
    "leap(s|t)?": "spike",
    "goes back|went[ _]back|gone[ _]back": "rolls back",
    "mend(s|ed)?": "fix",
    r"refuse_\w+": "check_",
    "put aside|set_aside|puts aside": "quarantine",
    "stop_signal": "preemption",
    "held_out_loss": "eval_loss",
    # Generation.
    "draws?|drawn|drawings?": "sample, generate",
    "asked": "requested",
    "answers?|answered": "completion, sample",
    "recogni[sz]ers?": "classifier",
    "filled(_texts)?": "infilled",
    "guesses|guessed": "draft tokens",
    "interchange|restoring|retrieving": "huggingface, loading, retrieval",
    # Prose.
    "behind": "after",
    "beside": "next to",
    "in front( of)?|fronts": "before, prefix",
    "anew": "again",
    "told": "reports, is called with",
    "lies|lie": "is at, is in",
    "now and then": "periodically",
    "held against": "compared with",
    "faults? of ours": "internal error",
    "(nats|bits|bytes|tokens|codes|images|numbers|entr(y|ies)|lines?|rows?|seconds|prompts|texts|uses|shards?|spans?) "
    "an? (token|code|image|second|step|logged|document|prompt|level|process|text|split|part|device|chip|layer)": "per",
}

# Uses in another sense, cut out before the search.
EXCEPTIONS = (
    r"\bin place\b",  # updated in place
    r"\bto draw\b",  # a font's glyphs
    r"IsPath\(behind=|\.behind\b",
    r"question[- ]answer\w*",
    r"pre-?filled",
    r"trade[- ]?mark\w*|bench-?marks?|water-?marks?",
)


def test_words_that_must_not_come_back():
    left = allowed()
    found = {f"{word}: {file}" for word, file in search()}
    assert sorted(found - left) == [], "words of another vocabulary; test_words.py names the field's"


def search() -> list[tuple[str, str]]:
    """The words that each file still has."""
    found = []
    for file in FILES:
        text = re.sub("|".join(EXCEPTIONS), "", file.read_text(encoding="utf-8"))
        # A phrase may be broken by a line of a comment or text.
        text = re.sub(r"\s*\n\s*#?\s*", " ", text)
        for word in WORDS:
            if re.search(rf"(?<![A-Za-z])(?:{word})(?![A-Za-z])", text, re.IGNORECASE):
                found.append((word, str(file.relative_to(ROOT))))
    return found


def allowed() -> set[str]:
    """What is still to be rewritten: a line "word: file" each."""
    file = Path(__file__).parent / "words_left.txt"
    return set(file.read_text(encoding="utf-8").splitlines()) if file.exists() else set()


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("the neighbours", True),
        ("num_neighbours", True),
        ("the neighbors", False),
        ("in place", False),
        ("place", True),
    ],
)
def test_words_are_found_whole(text, is_found, tmp_path, monkeypatch):
    (tmp_path / "x.md").write_text(text)
    monkeypatch.setattr("tests.test_words.FILES", [tmp_path / "x.md"])
    monkeypatch.setattr("tests.test_words.ROOT", tmp_path)
    assert bool(search()) == is_found
