"""The program that chaos.py has launch/local.sh run: cm3leon, which also notes the rows of every batch that it takes.

    CHAOS_ROWS=FOLDER python benchmarks/chaos_program.py train --config=... --workdir=...

Every start of every process has a file of its own, a JSON line a step: {"step": 7, "rows": [[4, CRC-32], ..]}.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax

from cm3leon_jax import cli
from cm3leon_jax.data.batches import source as batches
from cm3leon_jax.data.batches.batch import Batch
from cm3leon_jax.data.batches.source import BatchSource


def row_sums(batch: Batch) -> list[int]:
    """A checksum of all that each row holds."""
    arrays = jax.tree.leaves(batch)
    return [zlib.crc32(b"".join(array[row].tobytes() for array in arrays)) for row in range(len(batch.tokens))]


def main() -> int:
    if sys.argv[1:2] == ["train"]:
        from cm3leon_jax.training import transformer

        transformer.iterate = noted
    return cli.main()


def noted(source: BatchSource, first_step: int, num_steps: int, prefetch: int = 4) -> Iterator[Batch]:
    """`batches.iterate`, with a line for every batch at the moment that it is taken."""
    folder, process = Path(os.environ["CHAOS_ROWS"]), os.environ.get("JAX_PROCESS_ID", "0")
    folder.mkdir(parents=True, exist_ok=True)
    # Steps are counted from 1 where they are logged.
    numbered = enumerate(batches.iterate(source, first_step, num_steps, prefetch), start=first_step + 1)
    with (folder / f"{time.time_ns()}-process-{process}.jsonl").open("w", buffering=1) as file:
        for step, batch in numbered:
            rows = list(zip(source.rows, row_sums(batch), strict=True))
            file.write(json.dumps({"step": step, "rows": rows}) + "\n")
            yield batch


if __name__ == "__main__":
    sys.exit(main())
