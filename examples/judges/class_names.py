"""ImageNet classes that a prompt names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

from cm3leon_jax.errors import UserError

# Classes, by the words of a name.
ClassIndex = dict[tuple[str, ...], frozenset[int]]


def index_classes(synonyms: Sequence[Sequence[str]], names: Mapping[str, Sequence[str]]) -> ClassIndex:
    """Finds the classes of each name, in the singular and the plural.

    Args:
      synonyms: the names of each class; a name may be that of several.
      names: what further words of prompts stand for: names of classes, or ranges of their numbers such as "151-268".
        They replace names of classes; of nothing: the words name no class.

    Raises:
      UserError: for a class that does not exist.
    """
    by_name: dict[str, set[int]] = {}
    for number, of_class in enumerate(synonyms):
        for name in of_class:
            by_name.setdefault(name.lower(), set()).add(number)
    chosen = {name.lower(): frozenset(numbers) for name, numbers in by_name.items()}
    for word, classes in names.items():
        found = (_classes(each, by_name, len(synonyms), word) for each in classes)
        chosen[word.lower()] = frozenset().union(*found)
    index: ClassIndex = {}
    for name, numbers in chosen.items():
        index[_words(name)] = numbers
    for name, numbers in chosen.items():
        index.setdefault(_words(_plural(name)), numbers)
    return index


def named_classes(prompt: str, index: ClassIndex) -> frozenset[int]:
    """The classes that a prompt names; of names within each other the longest counts ("tiger cat" is no tiger)."""
    words, found, start = _words(prompt), frozenset[int](), 0
    longest = max(map(len, index), default=0)
    while start < len(words):
        for length in range(min(longest, len(words) - start), 0, -1):
            if (name := words[start : start + length]) in index:
                found |= index[name]
                start += length
                break
        else:
            start += 1
    return found


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[a-z0-9']+", text.lower()))


def _plural(name: str) -> str:
    if re.search(r"(s|x|z|ch|sh)$", name):
        return f"{name}es"
    return f"{name[:-1]}ies" if re.search(r"[^aeiou]y$", name) else f"{name}s"


def _classes(text: str, by_name: Mapping[str, set[int]], num_classes: int, word: str) -> set[int]:
    if numbers := re.fullmatch(r"(\d+)-(\d+)", text):
        first, last = map(int, numbers.groups())
        if first <= last < num_classes:
            return set(range(first, last + 1))
        raise UserError(f"names.{word} has {text!r}: give a range of classes from 0 to {num_classes - 1}")
    if text.lower() not in by_name:
        close = difflib.get_close_matches(text.lower(), by_name, n=1)
        hint = f"did you mean {close[0]!r}?" if close else 'give names of classes, or ranges such as "151-268"'
        raise UserError(f"names.{word} has {text!r}, which is no ImageNet class: {hint}")
    return by_name[text.lower()]
