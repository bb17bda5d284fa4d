"""Turns five packages into data sets in the forms that instructions are published in (docs/instruction_data.md).

    python -m examples.annotations.convert --packages=DIR --output=DIR [--resolution=32]

The packages are unpacked, not installed, below one folder:

    apt-get download kgeography-data gcompris-qt-data
    for file in *.deb; do dpkg -x $file .; done
    npm pack openmoji@17.0.0 emoji-datasource-google@16.0.0 @lobehub/fluent-emoji-3d@1.1.0
    tar xzf openmoji-17.0.0.tgz --one-top-level=openmoji --strip-components=1
    tar xzf emoji-datasource-google-16.0.0.tgz --one-top-level=emoji-datasource-google --strip-components=1
    tar xzf lobehub-fluent-emoji-3d-1.1.0.tgz --one-top-level=fluent-emoji-3d --strip-components=1
    pip install resvg-py==0.5.0

Every annotation follows from the packages' own: the pixels of regions, the places of parts, names and texts. Every run
gives the same files. What belongs together is held out together: the maps of a country, all variants of an emoji.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from cm3leon_jax.errors import UserError
from examples.annotations.activity_sets import write_activities
from examples.annotations.emoji_sets import write_emoji
from examples.annotations.flag_sets import write_flags
from examples.annotations.map_sets import write_maps
from examples.annotations.packages import Packages

logger = logging.getLogger("annotations")


def convert(packages: Path, output: Path, resolution: int) -> None:
    """Writes all data sets below `output`, each into a folder of its own.

    Args:
      resolution: that of the image tokenizer, in whose pixels held-out requests have their boxes.
    """
    found = Packages(packages)
    logger.info("maps of %s", found.maps)
    write_maps(found, output, resolution)
    logger.info("flags of %s", found.maps / "flags")
    write_flags(found, output / "flags")
    logger.info("activities of %s", found.bundles)
    write_activities(found, output)
    logger.info("emoji of %s", found.openmoji)
    write_emoji(found, output)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="the folder that the packages were unpacked into")
    parser.add_argument("--output", type=Path, required=True, help="where the data sets go")
    parser.add_argument("--resolution", type=int, default=32, help="of the image tokenizer")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        convert(arguments.packages, arguments.output, arguments.resolution)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
