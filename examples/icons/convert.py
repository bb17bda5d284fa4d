"""Draws the icons of an npm package and writes them as WebDataset tars: KEY.png, KEY.txt and KEY.json.

    python -m examples.icons.convert --package=runs/icons/package --output=runs/icons/data [--color]

`data/icons/train` has what is trained on, `data/icons/validation` a random hundredth; `data/concepts` and `data/sets`
have the concepts and sets that no training icon is of. Of icons that look alike one is kept, whatever its set, so that
none that is held out has a near copy in training. `data/counts.json` says what was left out, and the licenses of the
rest.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from cm3leon_jax.errors import UserError
from cm3leon_jax.files import write_json
from cm3leon_jax.images import encode_png
from examples.icons.drawing import draw, icons, likeness_key
from examples.icons.splits import concept, group_of

_PER_TAR = 10_000
_FOLDERS = {
    "train": "icons/train",
    "random": "icons/validation",
    "concepts": "concepts/validation",
    "sets": "sets/validation",
}


def convert(package: Path, output: Path, is_colored: bool = False, most: int | None = None) -> dict[str, int]:
    """Writes the tars of the first `most` icons, or of all; returns how many icons went where."""
    counts: Counter[str] = Counter()
    licenses: Counter[str] = Counter()
    seen: set[bytes] = set()
    writers = {group: TarWriter(output / folder) for group, folder in _FOLDERS.items()}
    found = icons(package, is_colored)
    for number, icon in enumerate(tqdm(found, unit=" icons", disable=None)):
        if number == most:
            break
        pixels = draw(icon, 3 if is_colored else 1)
        if pixels is None:
            counts["blank, or cannot be drawn"] += 1
            continue
        if (key := likeness_key(pixels)) in seen:
            counts["looks like another"] += 1
            continue
        seen.add(key)
        group = group_of(icon)
        counts[group] += 1
        licenses[icon.license] += 1
        row = {"set": icon.set_name, "license": icon.license, "concept": concept(icon.name), "id": icon.key}
        writers[group].add(icon.key.replace(":", "/"), encode_png(pixels), icon.caption, row)
    for writer in writers.values():
        writer.close()
    write_json(output / "counts.json", {"icons": dict(counts), "licenses": dict(licenses.most_common())})
    return dict(counts)


class TarWriter:
    """Writes samples into tars of so many, the same bytes whenever it does."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._count = folder, 0
        self._tar: tarfile.TarFile | None = None

    def add(self, key: str, image: bytes, caption: str, row: dict[str, str]) -> None:
        if self._count % _PER_TAR == 0:
            self.close()
            file = self._folder / f"{self._count // _PER_TAR:05}.tar"
            self._tar = tarfile.open(file, "w")  # noqa: SIM115 - `close` closes it
        assert self._tar is not None
        self._count += 1
        for suffix, content in (("png", image), ("txt", caption.encode()), ("json", json.dumps(row).encode())):
            # A dot would end the key.
            member = tarfile.TarInfo(f"{key.replace('.', '_')}.{suffix}")
            member.size = len(content)
            self._tar.addfile(member, io.BytesIO(content))

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, required=True, help="the folder package/ of @iconify/json, unpacked")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--color", action="store_true", help="the sets of several colors instead")
    parser.add_argument("--most", type=int, help="only the first so many icons")
    arguments = parser.parse_args()
    try:
        counts = convert(arguments.package, arguments.output, arguments.color, arguments.most)
    except (UserError, ModuleNotFoundError) as error:
        print(
            f"{error}: pip install resvg-py==0.5.0" if isinstance(error, ModuleNotFoundError) else error,
            file=sys.stderr,
        )
        return 2
    print("\n".join(f"{count:9,}  {name}" for name, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
