"""Compiles the search for a TPU pod that is not there, and says what it would cost there at least.

    pip install libtpu
    python benchmarks/search_pod.py --topology=v5e:16x16 --rows=340e6 --dim=512 --k=64 --queries=1024

The compiler is the pod's own, so that the search compiles, what HBM it takes and which collectives it has are facts.
Times are a model, a lower bound: the products at the peak of the chip, and the rows read from HBM once a batch, for
every row of the datastore as a query once. Left out: choosing the k best, and scores that leave the chip.
"""

from __future__ import annotations

import argparse
import os
import re
import time

os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TF_CPP_MIN_LOG_LEVEL="3")

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cm3leon_jax.accelerators import Accelerator
from cm3leon_jax.models.config import MeshConfig
from cm3leon_jax.models.sharding import make_mesh
from cm3leon_jax.planning import topology
from cm3leon_jax.planning.accelerator_types import find_pod
from cm3leon_jax.retrieval.search import SearchLayout, make_layout, nearest, row_spec

# A matmul of float32 with HIGHEST precision takes as long as six of bfloat16 on a TPU.
PASSES = {"bfloat16": 1, "float32": 6}


def main() -> None:
    """Compiles and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:16x16", help="of TPUs, as `cm3leon plan` takes it")
    parser.add_argument("--rows", type=float, default=340e6, help="of the datastore")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--queries", type=int, default=1024, help="of one batch")
    parser.add_argument("--recall", type=float, default=0.95, help="of the approximate search")
    arguments = parser.parse_args()
    pod = find_pod(arguments.topology)
    topology.require_compiler(pod)
    mesh, chip = make_mesh(MeshConfig(replica=1, fsdp=-1, tensor=1), topology.devices(pod)), pod.accelerator
    print(f"{mesh.size} devices of {arguments.topology}, jax {jax.__version__}, libtpu {_libtpu_version()}")
    print(f"datastore {int(arguments.rows):,} x {arguments.dim}, batches of {arguments.queries:,}, k {arguments.k}")
    for method in ("exact", "approximate"):
        for dtype in PASSES:
            layout = make_layout(int(arguments.rows), mesh, method=method, recall=arguments.recall, dtype=dtype)
            _report(layout, mesh, chip, arguments)


def _libtpu_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("libtpu")
    except PackageNotFoundError:
        return "of an unknown version"


def _report(layout: SearchLayout, mesh: Mesh, chip: Accelerator, arguments: argparse.Namespace) -> None:
    stored = np.float16 if layout.dtype == "float32" else jax.numpy.bfloat16
    queries = jax.ShapeDtypeStruct(
        (arguments.queries, arguments.dim), np.float32, sharding=NamedSharding(mesh, PartitionSpec())
    )
    rows = jax.ShapeDtypeStruct(
        (layout.rows_per_device * mesh.size, arguments.dim), stored, sharding=NamedSharding(mesh, row_spec(mesh))
    )
    print(f"\n{layout.method}, {layout.dtype} products of {np.dtype(stored).name} rows")
    print(f"  {layout.rows_per_device:,} rows per chip in {layout.num_blocks} blocks of {layout.block_size:,}")
    started = time.perf_counter(), time.process_time()
    try:
        compiled = nearest.lower(queries, rows, k=arguments.k, mesh=mesh, layout=layout).compile()
    except jax.errors.JaxRuntimeError as error:
        first = next((line for line in str(error).splitlines() if "hbm" in line.lower()), str(error).splitlines()[0])
        print(f"  does not compile: {first}")
        return
    wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    memory = compiled.memory_analysis()
    parts = {
        "rows and queries": memory.argument_size_in_bytes,
        "scores and the rest": memory.temp_size_in_bytes + memory.output_size_in_bytes,
    }
    listed = ", ".join(f"{name} {size / 2**30:.3f}" for name, size in parts.items())
    print(f"  compiled in {wall:.0f} s ({cpu:.0f} CPU s)")
    print(f"  fits: {sum(parts.values()) / 2**30:.2f} of {chip.hbm_bytes / 2**30:.2f} GiB of HBM per chip ({listed})")
    text = compiled.as_text()
    collectives = re.findall(r" ((?:all|reduce|collective)-[a-z-]+)\(", text)
    counts = ", ".join(f"{collectives.count(name)} {name}" for name in sorted(set(collectives)))
    print(f"  collectives per batch: {counts}")
    products, choosing = _estimated_cycles(text)
    if products:
        print(f"  the compiler estimates for a block {products:,} cycles of products, and for choosing from it")
        print(f"  {choosing:,} without the sorts, which it does not estimate")
    _print_model(layout, mesh, chip, np.dtype(stored).itemsize, arguments)


def _estimated_cycles(text: str) -> tuple[int, int]:
    """The compiler's estimates in the loop over blocks: the products, and the rest of a block that goes the short way.

    The approximate search is fused with the products, and has none.
    """
    products = choosing = 0
    for line in text.splitlines():
        cycles = re.search(r'"estimated_cycles":"?(\d+)', line)
        if cycles is None or "while/body" not in line or "branch_0" in line:
            continue
        if "dot_general" in line:
            products += int(cycles[1])
        else:
            choosing += int(cycles[1])
    return products, choosing


def _print_model(
    layout: SearchLayout, mesh: Mesh, chip: Accelerator, bytes_per_number: int, arguments: argparse.Namespace
) -> None:
    flops = 2 * arguments.queries * layout.rows_per_device * arguments.dim * PASSES[layout.dtype]
    read = layout.rows_per_device * arguments.dim * bytes_per_number
    # Each chip sends its k best of every query to the chip that merges them, and gathers what was merged.
    sent = 2 * arguments.queries * arguments.k * 8
    seconds = {
        "products": flops / chip.bfloat16_flops,
        "rows from HBM": read / chip.hbm_bytes_per_second,
        "findings over the network": sent / chip.interconnect_bytes_per_second,
    }
    batches = -(-layout.num_rows // arguments.queries)
    listed = ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in seconds.items())
    print(f"  model of a batch: {listed}")
    whole = batches * max(seconds.values())
    print(f"  model of all rows as queries, {batches:,} batches: at least {whole / 3600:.2f} h")


if __name__ == "__main__":
    main()
