"""Captions: every encoding, mark, line end and stray character gives the text that its writer saw, or a named fault."""

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3leon_jax.data.sources.captions import LONGEST, BadCaption, captions_in, cleaned

TEXTS = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" é日🐇"), min_size=1).filter(str.strip)
WRITERS = {
    "utf-8": lambda text: text.encode(),
    "utf-8 with a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    **{
        f"{name} with a mark": lambda text, mark=mark, name=name: mark + text.encode(name)
        for name, mark in (
            ("utf-16-le", codecs.BOM_UTF16_LE),
            ("utf-16-be", codecs.BOM_UTF16_BE),
            ("utf-32-le", codecs.BOM_UTF32_LE),
            ("utf-32-be", codecs.BOM_UTF32_BE),
        )
    },
}


@pytest.mark.parametrize("writer", WRITERS)
@given(
    lines=st.lists(TEXTS, min_size=1, max_size=4), end=st.sampled_from(["\n", "\r\n", "\r"]), around=st.text(" \n\r")
)
def test_a_caption_is_what_its_writer_saw(writer, lines, end, around):
    content = WRITERS[writer](around + (end + "\0").join(lines) + around + "\0")
    lines = [line.strip() for line in lines]
    assert [line.strip() for line in captions_in(content, "all")[0].split("\n")] == lines
    assert captions_in(content, "first") == lines[:1]
    assert captions_in(content, "each") == list(dict.fromkeys(lines))


@given(TEXTS, TEXTS)
def test_a_line_is_found_by_how_it_begins(english, german):
    content = f"{english}\nfr.utf8=\nde.utf8= {german}\n".encode()
    if not english.startswith("de.utf8="):
        assert captions_in(content, "de.utf8=") == [german.strip()]
    for absent in ("fr.utf8=", "xx.utf8="):
        with pytest.raises(BadCaption, match="without the line"):
            captions_in(content, absent)


@given(TEXTS, TEXTS, st.integers(0xD800, 0xDC7F))
def test_half_characters_are_named(before, behind, half):
    with pytest.raises(BadCaption, match="half a character"):
        cleaned(before + chr(half) + behind)


@given(TEXTS, st.sampled_from([b"\xff", b"\xe9 ", b"\xc3", b"\xed\xa0\x80"]))
def test_other_bytes_are_named(text, stray):
    with pytest.raises(BadCaption, match="not UTF-8"):
        captions_in(b"a " + stray + text.encode(), "all")


@pytest.mark.parametrize("content", [b"", b" \r\n\0", codecs.BOM_UTF8, codecs.BOM_UTF16_LE])
@pytest.mark.parametrize("line", ["all", "first", "each", "de.utf8="])
def test_nothing_is_no_caption(content, line):
    with pytest.raises(BadCaption, match="empty"):
        captions_in(content, line)


def test_a_file_without_end_is_no_caption():
    with pytest.raises(BadCaption, match="too long"):
        captions_in(b"a" * (LONGEST + 1), "first")
