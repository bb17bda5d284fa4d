"""Skips what needs the emoji font where there is none."""

import pytest

from cm3leon_jax.errors import UserError
from examples.emoji import images as emoji

try:
    emoji.load_font()
    NO_FONT = ""
except UserError as error:
    NO_FONT = str(error)
needs_font = pytest.mark.skipif(bool(NO_FONT), reason=NO_FONT)
