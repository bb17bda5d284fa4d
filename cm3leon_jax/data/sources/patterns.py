"""Names of files with braces and wildcards, as shards are named: `{00000..00041}.tar`, `{train,val}-*.parquet`."""

from __future__ import annotations

import glob
import re
from pathlib import Path

_SPECIAL = re.compile(r"[*?\[{]")
# Braces without braces in them.
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_pattern(path: str) -> bool:
    """Whether a path stands for several; one that is there by that very name does not."""
    return bool(_SPECIAL.search(path)) and not Path(path).exists()


def pattern_folder(path: str) -> Path:
    """The folder that all files of a pattern are in or below."""
    start = path[: found.start()] if (found := _SPECIAL.search(path)) else path
    return Path(start.rpartition("/")[0] or ("/" if start.startswith("/") else "."))


def expand_braces(pattern: str) -> list[str]:
    """The patterns without braces that one stands for, in its order."""
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    numbers = _RANGE.fullmatch(found[1])
    if numbers is None and "," not in found[1]:
        # No alternatives: the braces are meant.
        before, after = pattern[: found.end()], expand_braces(pattern[found.end() :])
        return [before + each for each in after]
    parts = _numbers(*numbers.groups()) if numbers else found[1].split(",")
    return [each for part in parts for each in expand_braces(pattern[: found.start()] + part + pattern[found.end() :])]


def matching_files(pattern: str) -> tuple[list[str], list[str]]:
    """The files of a pattern, each once, and the names in it that no file has."""
    files, absent = list[str](), list[str]()
    for each in expand_braces(pattern):
        found = sorted(name for name in glob.glob(each, recursive=True) if Path(name).is_file())  # noqa: PTH207
        files += found
        if not found:
            absent.append(each)
    return list(dict.fromkeys(files)), absent


def _numbers(first: str, last: str) -> list[str]:
    """The numbers from one to another, either way, with as many digits as the first."""
    start, stop = int(first), int(last)
    step = 1 if start <= stop else -1
    return [f"{number:0{len(first)}d}" for number in range(start, stop + step, step)]
