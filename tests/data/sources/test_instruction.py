"""Instructions from seqio: the fields of examples, and what is wrong with them."""

import functools

import numpy as np
import pytest
import seqio
import tensorflow as tf

from cm3leon_jax.data.corpus.document_tokenizer import DecodedDocument, DocumentTokenizer
from cm3leon_jax.data.sources import OUTPUT_FEATURES, instruction
from cm3leon_jax.data.sources.reading import SkippedExample
from cm3leon_jax.documents import Document, ImageSegment, TextSegment
from cm3leon_jax.errors import UserError
from cm3leon_jax.images import encode_png

PNG = encode_png(np.zeros((8, 8, 1), np.uint8))


def examples(template: str, example: dict, keys=None) -> list[dict]:
    """The documents of a task of one example."""
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensors(example), ["train"]
    )
    preprocess = functools.partial(instruction, template=template, keys=keys)
    task = seqio.Task("t", source=source, preprocessors=[preprocess], output_features=OUTPUT_FEATURES)
    return list(task.get_dataset(split="train", shuffle=False, sequence_length=None).as_numpy_iterator())


def test_a_task_makes_instructions():
    example = {"of": {"question": " how many? "}, "answer": "two", "image": tf.zeros((8, 8, 1), tf.uint8)}
    (made,) = examples("question", example, {"question": "of/question"})
    assert made["template"] == b"question"
    assert made["segments"][:2].tolist() == [b"how many?", b"two"] and made["segments"][2].startswith(b"\x89PNG")
    assert made["is_image"].tolist() == [False, False, True]


def test_turns_are_lists():
    example = {"image": PNG, "instruction": ["wider", "bolder"], "edited": [PNG, PNG]}
    (made,) = examples("edits", example)
    assert made["segments"].tolist() == [PNG, b"wider", PNG, b"bolder", PNG]
    assert made["is_image"].tolist() == [True, False, True, False, True]


def test_a_missing_field_is_named():
    with pytest.raises(UserError, match="needs the field answer: the examples have question, image; name it in `keys`"):
        examples("question", {"question": "?", "image": PNG})
    with pytest.raises(UserError, match="did you mean 'question'"):
        examples("qestion", {"question": "?"})


def decoded(vocabulary, image_tokenizer, template: str, *segments) -> DecodedDocument | SkippedExample:
    parts = tuple(TextSegment(part) if isinstance(part, str) else ImageSegment(part) for part in segments)
    return DocumentTokenizer(vocabulary, image_tokenizer, 4).decode(Document(parts, template))


def test_fields_are_stored_in_every_form_that_a_wording_has(vocabulary, image_tokenizer):
    v = vocabulary
    found = decoded(v, image_tokenizer, "question", "how many?", " two\n", PNG)
    assert found.segments == (v.encode_text(" how many?"), v.encode_text(" two"), None, v.encode_text("two"))
    tokens = DocumentTokenizer(v, image_tokenizer, 4)
    codes = tokens.encode(list(found.images))
    stored = tokens.instruction(found, iter(codes))
    text = v.encode_text("Question: how many? Answer: two")
    assert stored.tokens[: stored.length].tolist() == [*text, v.break_, *codes[0].tolist()]
    assert tokens.length(found) == stored.length
    assert stored.tokens[stored.length :].tolist() == v.encode_text("two")


@pytest.mark.parametrize(
    ("segments", "reason"),
    [
        (("", "two", PNG), "empty field: question"),
        (("how many?", " ", PNG), "empty field: answer"),
        (("how many?", PNG), "not the fields of its template: 2 segments, 'question' has question, answer, image"),
        (("how many?", PNG, "two"), "not the fields of its template: answer of 'question' is of another kind"),
        (("how many?", "two", b"no image"), "unreadable image: segment 2"),
    ],
)
def test_a_damaged_example_is_skipped(vocabulary, image_tokenizer, segments, reason):
    found = decoded(vocabulary, image_tokenizer, "question", *segments)
    assert isinstance(found, SkippedExample) and found.reason.startswith(reason)
