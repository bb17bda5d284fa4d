"""Interleaved documents: holes where images cannot be decoded, and parts that fit a row."""

import dataclasses
import itertools

import numpy as np
import pytest

from cm3leon_jax.data.corpus.document_tokenizer import DecodedDocument, DocumentTokenizer, cut
from cm3leon_jax.data.sources.reading import SkippedExample
from cm3leon_jax.documents import Document, ImageSegment, TextSegment
from tests.conftest import IMAGE_LENGTH
from tests.data.sources.published import png

BROKEN = b"<html>404 Not Found</html>"


def document(*parts: str | bytes, min_images: int | None = 1, omitted: tuple[str, ...] = ()) -> Document:
    segments = tuple(TextSegment(part) if isinstance(part, str) else ImageSegment(part) for part in parts)
    return Document(segments, min_images=min_images, omitted=omitted)


@pytest.fixture
def tokens(vocabulary, image_tokenizer) -> DocumentTokenizer:
    return DocumentTokenizer(vocabulary, image_tokenizer, 4, max_length=40)


def shown(tokens: DocumentTokenizer, part: DecodedDocument) -> list[str | int]:
    """Texts, and images as the value of their first pixel."""
    images = iter(part.images)
    decode = tokens.vocabulary.decode_text
    return [int(next(images)[0, 0, 0]) if each is None else decode(each) for each in part.segments]


def test_an_interleaved_document_goes_on_without_images_that_cannot_be_decoded(tokens):
    parts = ("a seven", BROKEN, "a nine", png(9), b"", png(7)[:30], "zero")
    found = tokens.decode(document(*parts, omitted=("missing image",)))
    assert isinstance(found, DecodedDocument) and shown(tokens, found) == ["a seven\na nine", 9, "zero"]
    assert found.omitted[0] == "missing image"
    assert [reason.partition(":")[0] for reason in found.omitted[1:]] == ["unreadable image"] * 3
    skipped = tokens.decode(document(*parts, min_images=2))
    assert isinstance(skipped, SkippedExample) and skipped.reason.startswith(
        "too few images: unreadable image: segment 1"
    )
    whole = tokens.decode(document(*parts, min_images=None))
    assert isinstance(whole, SkippedExample) and whole.reason.startswith("unreadable image: segment 1")
    assert isinstance(tokens.decode(document("", BROKEN, min_images=0)), SkippedExample)


def test_parts_fit_and_hold_everything_in_order(tokens):
    texts = ["a handwritten seven", "", "zero, in pencil", "a photo of the number 9 " * 5, "seven"]
    given = [part for number, text in enumerate(texts) for part in (png(10 * number), text)]
    whole = tokens.decode(document(*given))
    assert isinstance(whole, DecodedDocument)
    parts = tokens.parts(whole)
    assert len(parts) > 3 and max(map(tokens.length, parts)) <= 40
    assert list(itertools.chain(*(shown(tokens, part) for part in parts))) == shown(tokens, whole)
    # A text that is longer than a part is cut before a word; what else is between images is whole.
    long_text = [each for each in shown(tokens, whole) if isinstance(each, str) and "photo" in each]
    assert len(long_text) > 1 and "".join(long_text) == texts[3]
    longest = max(tokens.length(part) for part in parts)
    assert tokens.parts(whole)[0] is not whole and longest > IMAGE_LENGTH


@pytest.mark.parametrize("interleaved", [True, False])
def test_only_interleaved_documents_are_cut(tokens, interleaved):
    parts = ("a handwritten seven", png(1), png(2), png(3))
    found = tokens.decode(document(*parts, min_images=1 if interleaved else None))
    assert isinstance(found, DecodedDocument) and tokens.length(found) > 40
    assert len(tokens.parts(found)) == (2 if interleaved else 1)
    whole = DocumentTokenizer(tokens.vocabulary, tokens.image_tokenizer, 4)
    assert whole.parts(found) == [found]


def test_an_image_is_stored_with_what_its_vocabulary_has_around_it(tokens, framed_vocabulary):
    v = framed_vocabulary
    framed = dataclasses.replace(tokens, vocabulary=v)
    found = framed.decode(document("a seven", png(1), png(2)))
    assert isinstance(found, DecodedDocument)
    images = framed.encode(list(found.images))
    assert (images[:, 0] == v.begin_image).all() and (images[:, -1] == v.end_image).all()
    ids = framed.concatenate(found, iter(images))
    assert len(ids) == framed.length(found) == tokens.length(found) + 4
    ends = [*v.end_image, v.break_, *v.begin_image]
    assert ids[:-2].count(v.break_) == 2 and any(ids[i : i + 3] == ends for i in range(len(ids)))
    codes = tokens.image_tokenizer.encode(np.stack(found.images), 2)
    np.testing.assert_array_equal([v.image_of_segment(image) for image in images], codes)
    # Both images fit beside the text without what is around them.
    edge = (
        dataclasses.replace(tokens, max_length=tokens.length(found)),
        dataclasses.replace(framed, max_length=tokens.length(found)),
    )
    assert [len(each.parts(found)) for each in edge] == [1, 2]


def test_cut_at_any_length():
    rng = np.random.default_rng(0)
    for _ in range(200):
        longest = int(rng.integers(5, 30))
        segments = [None if rng.random() < 0.4 else [1] * int(rng.integers(1, longest + 1)) for _ in range(12)]
        parts = cut(segments, longest, image_segment_length=5)
        assert list(itertools.chain(*parts)) == segments

        def length(part):
            return sum(5 if each is None else len(each) for each in part) + len(part) - 1

        assert all(part and length(part) <= longest for part in parts)
        # Nothing that still fits is put off.
        assert all(length([*part, after[0]]) > longest for part, after in itertools.pairwise(parts))


@pytest.mark.parametrize(
    "text", ["a photo of the number 9 " * 9, "seven" * 60, "数字の写真、七" * 20, "é" * 100, "", "a"]
)
@pytest.mark.parametrize("longest", [1, 7, 16])
def test_pieces_of_a_text(vocabulary, text, longest):
    pieces = vocabulary.encode_pieces(text, longest)
    assert list(itertools.chain(*pieces)) == vocabulary.encode_text(text)
    assert max(map(len, pieces)) <= longest
    if longest >= 7:
        # No character is cut, and no word that need not be.
        assert "".join(map(vocabulary.decode_text, pieces)) == text
        if " " in text:
            texts = [vocabulary.decode_text(each) for each in pieces]
            assert all(before[-1] == " " or after[0] == " " for before, after in itertools.pairwise(texts))
