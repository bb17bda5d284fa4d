"""Documents are text and pictures in reading order."""

from cm3leon_jax.documents import Document, Picture, Text


def test_the_text_of_a_document():
    assert Document((Text("a"), Picture(b""), Text("b"))).text == "a\nb"
