"""Lists of images that are not to be taken, by the SHA-256 of their files or by their addresses."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np

from cm3leon_jax.errors import UserError

_SHA256 = re.compile(rb"[0-9a-fA-F]{64}")
_AT_ONCE = 1 << 16


class Blocklist:
    """Eight bytes per entry, sorted, so that a list of millions is small."""

    def __init__(self, file: Path) -> None:
        """Reads a text file with an entry per line.

        Raises:
          UserError: if there is no such file, or nothing in it.
        """
        digest, found, waiting = hashlib.sha256(), list[np.ndarray](), list[int]()
        try:
            with file.open("rb") as lines:
                for line in lines:
                    digest.update(line)
                    if entry := line.strip().removeprefix(b"\xef\xbb\xbf"):
                        waiting.append(
                            _key(bytes.fromhex(entry.decode()) if _SHA256.fullmatch(entry) else _hash(entry))
                        )
                    if len(waiting) == _AT_ONCE:
                        found.append(np.array(waiting, np.uint64))
                        waiting.clear()
        except OSError as error:
            raise UserError(f"config.corpus.curation.blocklist={file} cannot be read: {error.strerror}") from None
        self._keys = np.unique(np.concatenate([*found, np.array(waiting, np.uint64)]))
        if not len(self._keys):
            raise UserError(f"config.corpus.curation.blocklist={file} has no entries: write one per line, or unset it")
        # Tells it from another list.
        self.fingerprint = digest.hexdigest()[:12]

    def has_address(self, address: str) -> bool:
        return self._has(_hash(address.strip().encode("utf-8", "surrogatepass")))

    def has_sha256(self, sha256: str) -> bool:
        """Whether an image file of this hash, in hexadecimal digits, is in it."""
        found = sha256.encode("utf-8", "surrogatepass")
        return _SHA256.fullmatch(found) is not None and self._has(bytes.fromhex(sha256))

    def has_image(self, encoded: bytes) -> bool:
        return self._has(_hash(encoded))

    def _has(self, digest: bytes) -> bool:
        key = np.uint64(_key(digest))
        position = int(np.searchsorted(self._keys, key))
        return position < len(self._keys) and bool(self._keys[position] == key)


def _hash(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _key(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big")
