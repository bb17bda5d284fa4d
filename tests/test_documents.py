"""Documents are text and images in reading order."""

from cm3leon_jax.documents import Document, ImageSegment, TextSegment


def test_the_text_of_a_document():
    assert Document((TextSegment("a"), ImageSegment(b""), TextSegment("b"))).text == "a\nb"
