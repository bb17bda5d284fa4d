"""What comes from outside, before anything is trained: images, captions, metadata, prompts and configs."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import typing
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cm3leon_jax import config_file
from cm3leon_jax.config import Config
from cm3leon_jax.data.sources.config import FolderConfig
from cm3leon_jax.data.sources.folder_documents import read_folder
from cm3leon_jax.data.sources.unchanged import UnreadableFile
from cm3leon_jax.errors import UserError
from cm3leon_jax.generation.prompts import prompt_of
from cm3leon_jax.generation.requests import read_images, read_requests
from cm3leon_jax.image_tokenizers.base import ImageTokenizer
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig
from cm3leon_jax.images import UnreadableImage, decode_image
from cm3leon_jax.vocabulary import Vocabulary
from fuzzing.mutations import EXTREMES, copied, mutate_folder, mutated_bytes, mutated_json_text, mutated_png

RESOLUTION = 32
# What Pillow writes: format, mode, options.
_IMAGES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    *(("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    *(("JPEG", mode, {}) for mode in ("L", "RGB", "CMYK")),
    ("JPEG", "RGB", {"progressive": True}),
    *(("TIFF", mode, {}) for mode in ("1", "L", "RGB", "I", "I;16", "F", "CMYK")),
    *(("TIFF", "RGB", {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")),
    *((name, "RGB", {}) for name in ("WEBP", "AVIF", "BMP", "PPM", "ICO", "JPEG2000", "GIF")),
    ("WEBP", "RGBA", {"lossless": True}),
)


class Images:
    """Image files, as `images.decode_image` reads them."""

    share = 40

    def make(self, base: Path) -> None:
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (20, 24, 4), np.uint8)
        for number, (name, mode, options) in enumerate(_IMAGES):
            image = Image.fromarray(pixels).convert("RGB")
            if mode in ("I", "I;16", "F"):
                image = Image.fromarray(
                    rng.integers(0, 60_000, (20, 24)).astype({"I": "i4", "I;16": "u2", "F": "f4"}[mode])
                )
            elif mode != "RGB":
                image = Image.fromarray(pixels).convert(mode)
            exif = Image.Exif()
            exif[0x0112] = number % 8 + 1
            extra = {"exif": exif} if name in ("JPEG", "PNG", "WEBP") else {}
            image.save(base / f"{number:02d}.{name.lower()}", name, **options, **extra)

    def open(self, base: Path) -> None:
        self._files = [path.read_bytes() for path in sorted(base.iterdir())]

    def mutate(self, base: Path, work: Path, rng: np.random.Generator) -> None:
        data, other = (self._files[int(place)] for place in rng.integers(0, len(self._files), 2))
        for _ in range(int(rng.integers(1, 4))):
            is_png = data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) > 60 and rng.random() < 0.5
            try:
                data = mutated_png(data, rng) if is_png else mutated_bytes(data, rng, other)
            except (ValueError, IndexError):  # What is mutated already may be no PNG any more.
                data = mutated_bytes(data, rng, other)
        (work / "image").write_bytes(data)

    def run(self, base: Path, work: Path) -> str:
        try:
            found = decode_image((work / "image").read_bytes(), RESOLUTION, 3)
        except UnreadableImage:
            return "skipped"
        assert found.shape == (RESOLUTION, RESOLUTION, 3) and found.dtype == np.uint8
        return "read"


class Captions:
    """A folder of images with a text file beside each, as `prepare` reads it."""

    share = 12

    def make(self, base: Path) -> None:
        write_images(base, 8)
        for path in sorted(base.rglob("*.png")):
            path.with_suffix(".txt").write_text(f"an image of {path.stem}, caf\u00e9 \u6570\nand a second line\n")

    def open(self, base: Path) -> None:
        pass

    def mutate(self, base: Path, work: Path, rng: np.random.Generator) -> None:
        copied(base, work)
        for _ in range(int(rng.integers(1, 5))):
            mutate_folder(work, rng, pipes=True)

    def run(self, base: Path, work: Path) -> str:
        documents = read_folder(work, FolderConfig())
        unreadable = 0
        for split, found in documents.splits.items():
            for index in range(len(found)):
                documents.caption(split, index).encode()
                try:
                    decode_image(documents.image(split, index), RESOLUTION, 3)
                except (UnreadableImage, UnreadableFile):
                    unreadable += 1
        documents.provenance()
        json.dumps(documents.skipped.entry()).encode()
        assert all(line.isprintable() for line in documents.skipped.lines())
        return "skipped" if unreadable or documents.skipped.by_kind.total() else "read"


class Metadata(Captions):
    """The same with the captions in a metadata.jsonl or metadata.csv, which alone is mutated."""

    def make(self, base: Path) -> None:
        write_images(base, 6)
        rows = [
            {"file_name": str(path.relative_to(base)), "text": f"caption {path.stem}"} for path in base.rglob("*.png")
        ]
        (base / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
        text = io.StringIO()
        writer = csv.DictWriter(text, ["file_name", "text"])
        writer.writeheader()
        writer.writerows(rows)
        (base / "metadata.csv").write_text(text.getvalue())

    def mutate(self, base: Path, work: Path, rng: np.random.Generator) -> None:
        copied(base, work)
        kept, other = rng.permutation(["metadata.jsonl", "metadata.csv"])
        (work / other).unlink()
        for _ in range(int(rng.integers(1, 4))):
            mutate_folder(work, rng, only=kept)


class _SameCodes(ImageTokenizer):
    """An image tokenizer without a network: its codes make no difference to what is read."""

    def encode_batch(self, images: np.ndarray) -> np.ndarray:
        return np.zeros((len(images), self.config.image_length), np.int32)

    def decode_batch(self, codes: np.ndarray) -> np.ndarray:
        raise NotImplementedError("prompts are only read")


class Prompts:
    """A prompts file with the images that it names, as `generate` reads it."""

    share = 12

    def make(self, base: Path) -> None:
        write_images(base, 2)
        records: list[dict[str, Any]] = [
            {"prompt": "a red square"},
            {"task": "caption", "image": "0.png", "order": "left_to_right"},
            {"task": "vqa", "prompt": "what is it?", "image": "sub/1.png"},
            {"task": "infill", "prompt": "a square", "image": "0.png", "region": [0, 0.25, 1, 0.75]},
            {"task": "infill_text", "prompt": "a <mask> square", "image": "0.png"},
            {
                "task": "edit",
                "prompt": "make it blue",
                "image": "0.png",
                "retrieved": [{"prompt": "x", "image": "0.png"}],
            },
            {"task": "continue", "segments": ["a text", {"image": "0.png"}]},
        ]
        (base / "prompts.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")

    def open(self, base: Path) -> None:
        self._sizes = VQGANConfig(resolution=8, channel_multipliers=(1, 2), codebook_size=32)
        self._vocabulary = Vocabulary.train(["a red square"], 288, 32, 8, progress=False)
        self._image_tokenizer = _SameCodes(self._sizes)

    def mutate(self, base: Path, work: Path, rng: np.random.Generator) -> None:
        copied(base, work)
        for _ in range(int(rng.integers(1, 4))):
            mutate_folder(work, rng, only="prompts.jsonl" if rng.random() < 0.9 else "")

    def run(self, base: Path, work: Path) -> str:
        requests, failures = read_requests(work / "prompts.jsonl")
        images = read_images((path for request in requests for path in request.images), self._image_tokenizer)
        failed = [failure.error for failure in failures]
        for request in requests:
            try:
                prompt_of(request, images, self._sizes.grid, self._vocabulary, 16, 512)
            except UserError as error:
                failed.append(str(error))
        assert all("\n" not in error for error in failed)
        return "skipped" if failed else "read"


class Configs:
    """A run's config.json, and values of `--config.a.b=value`."""

    share = 14

    def make(self, base: Path) -> None:
        config_file.save(Config(), base / "config.json")
        (base / "config.py").write_text(
            "from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict()\n"
        )

    def open(self, base: Path) -> None:
        self._fields = list(_fields(Config))

    def mutate(self, base: Path, work: Path, rng: np.random.Generator) -> None:
        """Leaves a config file, and overrides.json with the values of the command line."""
        overrides = {}
        if rng.random() < 0.4:
            text = (base / "config.json").read_text()
            for _ in range(int(rng.integers(1, 4))):
                text = mutated_json_text(text, rng)
            (work / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        else:
            (work / "config.py").write_text((base / "config.py").read_text())
            for _ in range(int(rng.integers(1, 4))):
                name = self._fields[int(rng.integers(len(self._fields)))]
                value = EXTREMES[int(rng.integers(len(EXTREMES)))]
                overrides[name if rng.random() < 0.95 else f"{name}x"] = (
                    value if isinstance(value, str) else repr(value)
                )
        (work / "overrides.json").write_text(json.dumps(overrides))

    def run(self, base: Path, work: Path) -> str:
        file = next(work.glob("config.*"))
        overrides = json.loads((work / "overrides.json").read_text())
        config = config_file.load(str(file), str(work / "run"), overrides)
        for name in self._fields:
            value: Any = config
            for part in name.split("."):
                value = getattr(value, part)
            assert not isinstance(value, float) or math.isfinite(value), f"config.{name} is {value}"
        return "read"


def write_images(folder: Path, count: int) -> None:
    """Small PNGs of noise, half of them in a folder below."""
    rng = np.random.default_rng(0)
    for number in range(count):
        file = folder / ("sub" if number % 2 else "") / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(file)


def _fields(kind: Any, prefix: str = "") -> Any:
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from _fields(hint, f"{prefix}{name}.")
        else:
            yield prefix + name
