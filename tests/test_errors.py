"""A message is one line, whatever it repeats."""

import pytest

from cm3leon_jax.errors import UserError


@pytest.mark.parametrize("name", ["a\nb", "\r", "\x1b[2J", "\x00", "\u2028", "\ud800", "x" * 10_000])
def test_a_name_neither_breaks_the_line_nor_steers_the_terminal(name):
    message = str(UserError(f"the tensor {name} is missing"))
    assert message.isprintable() and message.startswith("the tensor ") and message.endswith(" is missing")
    assert len(message) < 1500


def test_an_ordinary_message_is_as_it_was():
    message = 'the image 数 café\'s is 3 x 4: "resize" it, or \\ something else'
    assert str(UserError(message)) == message
