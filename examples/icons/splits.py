"""Which icons are held out: at random, whole concepts, and whole sets."""

from __future__ import annotations

import re
from collections.abc import Collection

from cm3leon_jax.data.sources.splits import hash_of
from examples.icons.drawing import Icon

# Words of names that say how a thing is drawn, not what it is.
STYLES = frozenset(
    (
        *("alt", "bold", "broken", "bulk", "color", "colored", "duotone", "fill", "filled", "large", "light"),
        *("line", "linear", "medium", "micro", "mini", "outline", "outlined", "regular", "round", "rounded", "sharp"),
        *("small", "solid", "stroke", "thin", "tone", "two", "twotone"),
    )
)

# The parts of all icons that are held out in each way; sets, by how many there are.
_FRACTION = 0.01
_SETS_FRACTION = 0.03


def concept(name: str) -> str:
    """What an icon shows: its name without styles and numbers."""
    words = [word for word in re.findall("[a-z]+", name.lower()) if word not in STYLES]
    return " ".join(words) or name


def group_of(icon: Icon) -> str:
    """ "sets", "concepts" and "random" are held out, in this order; else "train"."""
    if _is_below(f"set {icon.set_name}", _SETS_FRACTION):
        return "sets"
    if _is_below(f"concept {concept(icon.name)}", _FRACTION):
        return "concepts"
    return "random" if _is_below(f"icon {icon.key}", _FRACTION) else "train"


def _is_below(name: str, fraction: float) -> bool:
    return hash_of(name.encode()) < fraction * 2**64


GROUPS: Collection[str] = ("train", "random", "concepts", "sets")
