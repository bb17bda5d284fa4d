"""The fuzz program: no reader fails on a few mutants of each kind, and a reader that fails is found."""

import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from cm3leon_jax.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import fuzz

# Those that are read by JAX take longer.
COUNTS = dict.fromkeys(("images", "captions", "metadata", "prompts", "configs", "corpus"), 36) | {
    "checkpoints": 8,
    "huggingface": 8,
}


def mutant_rng(kind: str, number: int) -> np.random.Generator:
    return np.random.default_rng([1, zlib.crc32(kind.encode()), number])


def contents(folder: Path) -> dict[str, bytes | str]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else "other"
        for path in folder.rglob("*")
    }


def test_every_kind_is_tried():
    assert COUNTS.keys() == fuzz.kinds().keys()


@pytest.mark.parametrize("name", COUNTS)
def test_mutants_are_read_skipped_or_refused(name, tmp_path):
    fuzz.make_bases([name], tmp_path / "base")
    kind, base = fuzz.kinds()[name](), tmp_path / "base" / name
    kind.open(base)
    results = set()
    for number in range(COUNTS[name]):
        work = tmp_path / str(number)
        work.mkdir()
        result, said = fuzz.attempt(kind, base, work, mutant_rng(name, number))
        assert result != "wrong", f"{name}:{number}: {said}"
        results.add(result)
    # They are neither all as good as new nor all beyond reading.
    assert len(results) > 1


@pytest.mark.parametrize("name", ["images", "captions", "metadata", "prompts", "configs"])
def test_a_mutant_follows_from_its_seed_and_number(name, tmp_path):
    fuzz.make_bases([name], tmp_path / "base")
    kind, base, found = fuzz.kinds()[name](), tmp_path / "base" / name, []
    kind.open(base)
    for number in (0, 0, 1, 2):
        work = tmp_path / f"{len(found)}"
        work.mkdir()
        kind.mutate(base, work, mutant_rng(name, number))
        found.append(contents(work))
    assert found[0] == found[1]
    assert any(found[0] != other for other in found[2:])


class Reader:
    """A kind whose reader does as it is told."""

    share = 1

    def __init__(self, read):
        self._read = read

    def mutate(self, base, work, rng):
        (work / "file").write_bytes(rng.bytes(4))

    def run(self, base, work):
        return self._read()


def raised(error):
    raise error


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda: "read", "read"),
        (lambda: raised(UserError("the file is damaged\nin two lines")), "refused"),
        (lambda: raised(ValueError("no number")), "wrong"),
        (lambda: raised(SystemExit(1)), "wrong"),
        (lambda: raised(AssertionError("other data")), "wrong"),
        # Far above the bound, since the system may take back pages of the test's own meanwhile.
        (lambda: "read" if np.ones(1 << 27) is not None else "", "wrong"),
    ],
    ids=["read", "refused", "exception", "exit", "other data", "memory"],
)
def test_what_a_reader_does_is_told_apart(read, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "MEMORY", 1 << 26)
    result, _ = fuzz.attempt(Reader(read), tmp_path, tmp_path, np.random.default_rng(0))
    assert result == expected


def test_the_shares_are_kept_from_the_first_mutant_on():
    names = list(fuzz.kinds())
    dealt = list(fuzz.dealt(names, 1_000))
    assert len(set(dealt)) == 1_000
    counts = {name: sum(each == name for each, _ in dealt) for name in names}
    assert all(count > 0 for count in counts.values()) and max(counts, key=counts.get) == "images"
    assert dealt[:200] == list(fuzz.dealt(names, 200))
