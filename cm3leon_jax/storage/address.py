"""Which local path stands for which address in object storage.

`gs://bucket/run` is worked on at CACHE/gs/bucket/run, and CACHE is $CM3LEON_CACHE, or ~/.cache/cm3leon_jax. A path
below CACHE/SCHEME is a copy of the object of the same name, and every other path is local and nothing else. So is what
lies in a folder `.NAME.partial`, which is written whole before it has its name in the bucket.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

SCHEMES = ("gs", "s3")
CACHE_VARIABLE = "CM3LEON_CACHE"

_IN_PARTIAL_FOLDER = re.compile(r"/\.[^/]*\.partial/")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def cache_folder() -> Path:
    """The folder of all local copies."""
    return Path(_cache())


def _cache() -> str:
    # Without links, so that `Path.resolve` leaves the paths below it alone.
    return os.path.realpath(os.environ.get(CACHE_VARIABLE) or Path("~/.cache/cm3leon_jax").expanduser())


def scheme_of(text: str) -> str:
    """The scheme of an address, such as "gs"; empty for a local path."""
    found = _ADDRESS.match(text)
    return found[1] if found else ""


def local_path(address: str) -> Path:
    """The local copy of an address of one of `SCHEMES`; a `ValueError` says what no object can be named."""
    scheme, _, key = address.partition("://")
    bucket, *parts = key.rstrip("/").split("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,221}", bucket):
        raise ValueError(f"{bucket!r} is no name of a bucket")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError("the name of an object has no empty part, no '.' and no '..'")
    return cache_folder().joinpath(scheme, bucket, *parts)


def address_of(path: str | os.PathLike[str]) -> str | None:
    """The address that a path is the local copy of; None for a path that is only local."""
    text = os.fspath(path)
    # Most paths need no system call to be known as local.
    if not _may_be_copy(text):
        return None
    cache = _cache()
    for scheme in SCHEMES:
        if text.startswith(start := f"{cache}{os.sep}{scheme}{os.sep}"):
            key = text.removeprefix(start)
            return None if _IN_PARTIAL_FOLDER.search(f"{os.sep}{key}") else f"{scheme}://{key}"
    return None


def shown(text: str) -> str:
    """A message with the addresses that its paths are copies of."""
    if not _may_be_copy(text):
        return text
    for scheme in SCHEMES:
        text = text.replace(f"{_cache()}{os.sep}{scheme}{os.sep}", f"{scheme}://")
    return text


def _may_be_copy(text: str) -> bool:
    return any(f"{os.sep}{scheme}{os.sep}" in text for scheme in SCHEMES)
