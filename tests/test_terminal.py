"""What is printed of data steers no terminal, hides nothing, and stays readable."""

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3leon_jax.terminal import visible

HARMFUL = (
    "\x1b",
    "\x07",
    "\x9b",
    "\n",
    "\r",
    "\x7f",
    "\x00",
    "\u202e",
    "\u2066",
    "\u200f",
    "\u2028",
    "\ufeff",
    "\ud800",
)


@given(st.text(st.characters(exclude_categories=()), max_size=40))
def test_nothing_steers_or_hides(text):
    shown = visible(text)
    assert all(unicodedata.category(each) not in ("Cc", "Cs", "Zl", "Zp") for each in shown)
    assert all(unicodedata.category(each) != "Cf" or each in "\u200c\u200d" for each in shown)
    assert visible(shown) == shown
    shown.encode("utf-8")


@pytest.mark.parametrize("harmful", HARMFUL)
def test_what_is_spelled_out_can_be_read_back(harmful):
    shown = visible(f"a{harmful}b")
    assert shown.startswith("a\\") and shown.endswith("b")
    assert shown.encode("ascii").decode("unicode_escape") == f"a{harmful}b"


@pytest.mark.parametrize(
    "text",
    ["a handwritten 7", "été", "日本語\u3000です", "👩\u200d🚀", "می\u200cخواهم", "a\u00a0b", r"C:\new", "😀\ufe0f"],
)
def test_what_people_write_stays_as_it_is(text):
    assert visible(text) == text


def test_kept_characters_stay():
    assert visible("a\nb\x1b", keep="\n") == "a\nb\\x1b"


def test_every_control_of_unicode_is_covered():
    controls = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) == "Cc"]
    assert len(controls) == 65
    assert visible("".join(controls)).isprintable()
