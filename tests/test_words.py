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
    "places": "position, index, slot, coordinate",
    "stretch(es)?": "span, range of steps",
    "mask_draws|draw_spans|move_spans": "sample_span_masks, sample_spans, apply_span_masking",
    r"\w+_share": "fraction, ratio",
    "left[ -]?overs?": "partial files",
    "left_out": "skipped",
    "lay_out": "write_row",
    "opened_ahead": "prefetch_decoded",
    # Retrieval.
    "whole_vectors": "document_embeddings",
    "end_places": "eos_positions",
    "num_drawn": "num_retrieved",
    # Model and numerics.
    "slopes?": "gradient, cotangent",
    "of_table|of_hidden|by_query|by_scores": "d_table, d_hidden, d_query, d_scores",
    "last_norm": "final_norm",
    "affine_norms": "norm_use_scale",
    "norms_first": "norm_position",
    "shared out": "sharded",
    "own_rows": "process_local_rows",
    "scores of the vocabulary": "logits",
    # Training and robustness.
    "leap(s|t)?": "spike",
    "goes back|went[ _]back|gone[ _]back": "rolls back",
    "mend(s|ed)?": "fix",
    r"refuse_(changes|another_model|uneven_batch|too_long|other_settings|other_losses|others)": "check_",
    "put aside|set_aside|puts aside": "quarantine",
    "stop_signal": "preemption",
    "held_out_loss": "eval_loss",
    # Generation.
    "draws?|drawn|drawings?": "sample, generate",
    "held_out_score|next_scores|codes_left": "eval loss, process_logits, image_tokens_left",
    "recogni[sz]ers?": "classifier",
    "filled_texts": "infill_texts",
    "guesses|guessed": "draft tokens",
    "restoring|retrieving": "loading, retrieval",
    # Prose.
    "behind": "after",
    "in front of|fronts": "before, prefix",
    "anew": "again",
    "told": "reports, is called with",
    "now and then": "periodically",
    "held against": "compared with",
    "faults? of ours": "internal error",
    "(nats|bits|bytes|tokens|codes|images|numbers|entr(y|ies)|lines?|rows?|seconds|prompts|texts|shards?|spans?) "
    "an? (token|code|image|second|step|logged|document|prompt|level|process|text|split|part|device|chip|layer)": "per",
}

# Uses in another sense, cut out before the search.
EXCEPTIONS = (
    r"[Dd]escribe the given picture|draw \"\{text\}\"",  # the paper's wordings
    r"\bto draw\b",  # a font's glyphs
    r"IsPath\(behind=|\.behind\b",
    r"question[- ]answer\w*",
    r"pre-?filled",
    r"bench-?marks?|byte order marks?|quotation marks?|bidirectional marks|mark_as_parsed|Marks a config field",
    r"leaves? behind|leave[sd]? one behind|left behind|leave behind|what it leaves behind",
    r"its mark begins|mark, encoding|startswith\(mark\)|encoding for mark",  # a byte order mark
    r"what is left out|leaves? out|nothing is left out|is left out of a published",
)


def test_words_that_must_not_come_back():
    found = [f"{word}: {file}" for word, file in search()]
    assert found == [], "words of another vocabulary; test_words.py names the field's"


def search() -> list[tuple[str, str]]:
    """The words that each file still has."""
    found = []
    for file in FILES:
        text = re.sub("|".join(EXCEPTIONS), "", file.read_text(encoding="utf-8"))
        # A phrase may be broken by a line of a comment or text.
        text = re.sub(r"[ \t]*\n[ \t]*#?[ \t]*(?=\S)", " ", text)
        for word in WORDS:
            if re.search(rf"(?<![A-Za-z])(?:{word})(?![A-Za-z])", text, re.IGNORECASE):
                found.append((word, str(file.relative_to(ROOT))))
    return found


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("the neighbours", True),
        ("num_neighbours", True),
        ("the neighbors", False),
        ("in place", False),
        ("places", True),
    ],
)
def test_words_are_found_whole(text, is_found, tmp_path, monkeypatch):
    (tmp_path / "x.md").write_text(text)
    monkeypatch.setattr("tests.test_words.FILES", [tmp_path / "x.md"])
    monkeypatch.setattr("tests.test_words.ROOT", tmp_path)
    assert bool(search()) == is_found
