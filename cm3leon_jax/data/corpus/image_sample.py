"""The images that the image tokenizer learns from: one memory-mapped file, drawn from the mixture's training split.

IMAGE_TOKENIZER/sample/images.npy      uint8 [n, R, R, C]
IMAGE_TOKENIZER/sample/sample.json     what they were drawn from; another mixture or size draws them again
"""

from __future__ import annotations

import hashlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from cm3leon_jax.config import Config
from cm3leon_jax.data.sources.reading import folder_changes, provenance_of
from cm3leon_jax.documents import ImageSegment
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import atomic_write, read_json, write_json
from cm3leon_jax.images import UnreadableImage, decode_image


def load_image_sample(config: Config) -> UInt8[np.ndarray, "n R R C"]:
    """The first `image_tokenizer_training.num_images` different images of the mixture, memory-mapped.

    They are drawn on the first call, in a process of their own, so that TensorFlow never enters the caller's.

    Raises:
      UserError: if the mixture cannot be read or holds no images.
    """
    folder = Path(config.image_tokenizer.path) / "sample"
    wanted = _provenance(config)
    record = read_json(folder / "sample.json", "the image sample") if (folder / "sample.json").exists() else {}
    if not (folder / "images.npy").exists() or {name: record.get(name) for name in wanted} != wanted:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as child:
            child.submit(_draw, config, folder, wanted).result()
    elif changes := folder_changes(config.corpus, record):
        print(f"the image sample is of an older state of the folder ({changes}); delete {folder} to draw it again")
    return np.load(folder / "images.npy", mmap_mode="r")


def _provenance(config: Config) -> dict[str, Any]:
    return {
        "mixture": config.corpus.mixture,
        "split": config.corpus.train_split,
        "asked": config.image_tokenizer.training.num_images,
        "resolution": config.image_tokenizer.resolution,
        "channels": config.image_tokenizer.in_channels,
    }


def _draw(config: Config, folder: Path, provenance: dict[str, Any]) -> None:
    from cm3leon_jax.data.sources.reading import read_documents

    sources = provenance_of(config.corpus)
    resolution, channels = provenance["resolution"], provenance["channels"]
    asked = provenance["asked"] or None
    # The same image with several captions, or in several tasks, is wanted once.
    seen: set[bytes] = set()
    unreadable = 0
    # The record goes first and comes back last, so that images never lie beside the record of others.
    (folder / "sample.json").unlink(missing_ok=True)
    with (
        atomic_write(folder / "images.npy") as temporary,
        temporary.open("wb") as file,
        tqdm(total=asked, unit=" images", desc="image sample", disable=None) as progress,
    ):
        write_header(file, 0, resolution, channels)
        for document in read_documents(config.corpus, config.corpus.train_split):
            for segment in document.segments:
                if not isinstance(segment, ImageSegment) or len(seen) == asked:
                    continue
                digest = hashlib.blake2b(segment.encoded, digest_size=12).digest()
                if digest in seen:
                    continue
                try:
                    pixels = decode_image(segment.encoded, resolution, channels)
                except UnreadableImage:
                    unreadable += 1
                    continue
                seen.add(digest)
                file.write(pixels.tobytes())
                progress.update()
            if len(seen) == asked:
                break
        if not seen:
            raise UserError(
                f"config.corpus.mixture {config.corpus.mixture!r} has no readable images in its split "
                f"{config.corpus.train_split!r} ({unreadable} are unreadable): the image tokenizer learns from them"
            )
        file.seek(0)
        write_header(file, len(seen), resolution, channels)
    write_json(folder / "sample.json", {**provenance, "count": len(seen), "unreadable": unreadable, "sources": sources})


def write_header(file: Any, count: int, resolution: int, channels: int) -> None:
    """The NumPy header of a file of `count` images, whose bytes follow; written again when their number is known."""
    # NumPy leaves room for the first axis to grow, so the header is as long for 0 images as for the final number,
    # and the images can be streamed before their number is known.
    shape = (count, resolution, resolution, channels)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
