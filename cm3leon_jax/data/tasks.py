"""Where documents come from: seqio Tasks and Mixtures, and functions that register your own.

A Task of this project yields documents as two features: `segments`, strings in reading order, each UTF-8 text or the
bytes of a picture file, and `is_image`, which says which of them are pictures. To add data, call `add_folder_task` or
`add_tfds_task` in a module that `config.corpus.modules` names, or register any seqio Task with `OUTPUT_FEATURES`, whose
last preprocessor may be `captioned_picture`. A folder or a TFDS builder also goes straight into
`config.corpus.mixture`, with no Python: `folder:/path/to/pictures`, `tfds:coco_captions:image:captions/text`.

Where a task's data follow from more than its name, its data source is a `TracedSource` and says from what: this stands
in the corpus manifest, and a corpus that was begun with another is refused. A `SlicedSource` reads any run of its
examples alone, which spares each of several processes the examples of the others.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from cm3leon_jax.data import digits, emoji
from cm3leon_jax.documents import encode_png
from cm3leon_jax.errors import UserError

_PASS_THROUGH = seqio.PassThroughVocabulary(size=1)
OUTPUT_FEATURES = {
    "segments": seqio.Feature(_PASS_THROUGH, add_eos=False, dtype=tf.string, rank=1),
    "is_image": seqio.Feature(_PASS_THROUGH, add_eos=False, dtype=tf.bool, rank=1),
}
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_CAPTIONED = {"image": tf.TensorSpec((), tf.string), "caption": tf.TensorSpec((), tf.string)}


def captioned_picture(
    dataset: tf.data.Dataset, image_key: str = "image", caption_key: str = "caption", picture_first: bool = False
) -> tf.data.Dataset:
    """A seqio preprocessor: examples with a picture and captions become documents, one a caption.

    Args:
      dataset: examples with the bytes of a picture file, or its pixels as uint8 [height, width, channels], under
        `image_key`, and a string or a list of strings under `caption_key`; "a/b" names a nested feature.
      image_key: where the picture is.
      caption_key: where the caption or the captions are.
      picture_first: whether the picture stands in front of the caption.
    """

    def documents(example: Mapping[str, Any]) -> dict[str, tf.Tensor]:
        picture, captions = _feature(example, image_key), _feature(example, caption_key)
        if picture.dtype == tf.uint8:
            picture = tf.io.encode_png(picture)
        pictures = tf.fill(tf.shape(captions), picture)
        segments = tf.stack([pictures, captions] if picture_first else [captions, pictures], axis=-1)
        is_image = tf.broadcast_to(tf.constant([picture_first, not picture_first]), tf.shape(segments))
        return {"segments": segments, "is_image": is_image}

    dataset = dataset.map(documents, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.unbatch() if dataset.element_spec["segments"].shape.rank == 2 else dataset


def _feature(example: Any, key: str) -> Any:
    return functools.reduce(lambda value, part: value[part], key.split("/"), example)


def add_folder_task(
    name: str, folder: str | Path, held_out_share: float = 0.01, picture_first: bool = False
) -> seqio.Task:
    """Registers a folder of captioned pictures, with the splits "train" and "validation".

    Args:
      name: of the task: letters, digits and underscores.
      folder: pictures, nested folders too, each with a caption in a `.txt` file of the same stem beside it; or all of
        them named in one `metadata.jsonl` with lines {"file_name": "a/b.png", "text": "..."}.
      held_out_share: share of the pictures in "validation", chosen by a hash of the file name, at least one picture.
      picture_first: whether the picture stands in front of the caption.

    Raises:
      UserError: if the folder, a caption or a picture is missing, or a line of `metadata.jsonl` is malformed.
    """
    folder = Path(folder)
    train, held_out = _split_by_hash(_folder_entries(folder), held_out_share)
    entries = {"train": train, "validation": held_out}

    def read(split: str, start: int, stop: int) -> tf.data.Dataset:
        def examples() -> Iterator[dict[str, str | bytes]]:
            for file_name, caption in entries[split][start:stop]:
                text = caption.read_bytes().strip() if isinstance(caption, Path) else caption
                yield {"image": str(folder / file_name), "caption": text}

        dataset = tf.data.Dataset.from_generator(examples, output_signature=_CAPTIONED)
        return dataset.map(
            lambda example: {**example, "image": tf.io.read_file(example["image"])},
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )

    sizes = {split: len(found) for split, found in entries.items()}
    return _add_task(name, SlicedSource(read, sizes), picture_first=picture_first)


def _folder_entries(folder: Path) -> list[tuple[str, str | Path]]:
    """File names of pictures relative to the folder, each with its caption or the file that holds it."""
    if not folder.is_dir():
        raise UserError(f"no folder of pictures at {folder}: give the path of an existing folder")
    files = {
        os.path.relpath(Path(parent) / name, folder)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if not name.startswith(".")
    }
    pictures = sorted(name for name in files if name.lower().endswith(PICTURE_SUFFIXES))
    if not pictures:
        raise UserError(
            f"the folder {folder} holds no pictures: put files ending in {', '.join(PICTURE_SUFFIXES)} there"
        )
    if "metadata.jsonl" in files:
        return _entries_of_metadata(folder, pictures)
    captions = {name for name in files if name.endswith(".txt")}
    stems = {os.path.splitext(name)[0] for name in pictures}  # noqa: PTH122 - these are names, many, and not paths yet
    for name in sorted(captions):
        if name.removesuffix(".txt") not in stems:
            raise UserError(
                f"the caption {folder / name} has no picture of the same stem beside it: add one or move it away"
            )
    entries: list[tuple[str, str | Path]] = []
    for name in pictures:
        caption = os.path.splitext(name)[0] + ".txt"  # noqa: PTH122
        if caption not in captions:
            raise UserError(f"the picture {folder / name} has no caption: write it to {folder / caption}")
        entries.append((name, folder / caption))
    return entries


def _entries_of_metadata(folder: Path, pictures: list[str]) -> list[tuple[str, str | Path]]:
    file = folder / "metadata.jsonl"
    missing = set(pictures)
    known = frozenset(pictures)
    entries: list[tuple[str, str | Path]] = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                name, text = os.path.normpath(record["file_name"]), record["text"]
            except (ValueError, KeyError, TypeError):
                name = text = None
            if not isinstance(text, str) or name is None:
                raise UserError(
                    f'{file}:{number} is malformed: a line is {{"file_name": "picture.png", "text": "..."}}'
                )
            if name not in known:
                raise UserError(
                    f"{file}:{number} names {name}, but {folder / name} is no picture: add it or drop the line"
                )
            missing.discard(name)
            entries.append((name, text))
    if missing:
        raise UserError(f"the picture {folder / min(missing)} has no line in {file}: add one or move the picture away")
    return entries


def _split_by_hash(
    entries: list[tuple[str, str | Path]], held_out_share: float
) -> tuple[list[tuple[str, str | Path]], list[tuple[str, str | Path]]]:
    """Training and held-out entries, both in the order of the hash, so that the first n are a fair sample."""
    if not 0 <= held_out_share < 1:
        raise UserError(f"held_out_share is {held_out_share}: a share of the pictures, at least 0 and below 1")

    def position(entry: tuple[str, str | Path]) -> float:
        return int.from_bytes(hashlib.sha256(Path(entry[0]).as_posix().encode()).digest()[:8], "big") / 2**64

    ordered = sorted(entries, key=position)
    below = sum(position(entry) < held_out_share for entry in ordered)
    first_train = max(below, 1) if held_out_share > 0 and ordered[0][0] != ordered[-1][0] else below
    # All captions of a picture stay on one side.
    while 0 < first_train < len(ordered) and ordered[first_train][0] == ordered[first_train - 1][0]:
        first_train += 1
    return ordered[first_train:], ordered[:first_train]


def add_tfds_task(
    name: str,
    builder_name: str,
    image_key: str = "image",
    caption_key: str = "caption",
    data_dir: str | Path | None = None,
    splits: Mapping[str, str] | None = None,
    picture_first: bool = False,
) -> seqio.Task:
    """Registers any image-caption data set of TFDS; it is downloaded and prepared if it is not there yet.

    Args:
      name: of the task: letters, digits and underscores.
      builder_name: as `tfds.builder` takes it, such as "coco_captions/2014:1.1.0".
      image_key: the picture, an Image feature; "a/b" names a nested feature.
      caption_key: a string or a list of strings, each of which makes a document.
      data_dir: where TFDS keeps its data; None is its default folder.
      splits: TFDS splits by split name, such as {"train": "train[:99%]", "validation": "train[99%:]"}; by default
        "train", and as "validation" the first of "validation", "test", the last hundredth of "train".
      picture_first: whether the picture stands in front of the caption.

    Raises:
      UserError: if there is no such builder or feature.
    """
    try:
        builder = tfds.builder(builder_name, data_dir=data_dir)
        for key in (image_key, caption_key):
            _feature(builder.info.features, key)
    except tfds.core.DatasetNotFoundError:
        raise UserError(
            f"TFDS has no builder {builder_name!r}: see `tfds.list_builders()`, or import the module that defines it"
        ) from None
    except KeyError:
        found = ", ".join(builder.info.features)
        raise UserError(f"TFDS builder {builder_name} has no feature {key!r}: its features are {found}") from None
    if splits is None:
        builder.download_and_prepare()
        other = next((split for split in ("validation", "test") if split in builder.info.splits), None)
        splits = {"train": "train" if other else "train[:99%]", "validation": other or "train[99%:]"}
    tfds_splits = dict(splits)

    def dataset_fn(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        builder.download_and_prepare()
        return _tfds_dataset(builder, tfds_splits[split], image_key, caption_key)

    return _add_task(name, seqio.FunctionDataSource(dataset_fn, list(tfds_splits)), picture_first=picture_first)


def _tfds_dataset(builder: tfds.core.DatasetBuilder, split: str, image_key: str, caption_key: str) -> tf.data.Dataset:
    """Examples {"image": file bytes or uint8 pixels, "caption": one or many strings}, in the stored order."""
    decoders: dict[str, Any] | None = None
    if isinstance(_feature(builder.info.features, image_key), tfds.features.Image):
        # Pillow decodes the stored bytes later: what TFDS would decode here had to be encoded again.
        *parents, last = image_key.split("/")
        decoders = {last: tfds.decode.SkipDecoding()}
        for parent in reversed(parents):
            decoders = {parent: decoders}

    def pair(example: Any) -> dict[str, Any]:
        return {"image": _feature(example, image_key), "caption": _feature(example, caption_key)}

    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        return builder.as_dataset(split=split, decoders=decoders, shuffle_files=False).map(pair)
    # TFDS reads ArrayRecord files only by index, outside tf.data.
    source = builder.as_data_source(split=split, decoders=decoders)
    first = pair(source[0])
    one_caption = isinstance(first["caption"], str | bytes)
    signature = {
        "image": tf.TensorSpec((), tf.string) if decoders else tf.TensorSpec((None, None, None), tf.uint8),
        "caption": tf.TensorSpec(() if one_caption else (None,), tf.string),
    }
    return tf.data.Dataset.from_generator(lambda: (pair(example) for example in source), output_signature=signature)


def _add_task(name: str, source: seqio.DataSource, picture_first: bool) -> seqio.Task:
    try:
        return seqio.TaskRegistry.add(
            name,
            source=source,
            preprocessors=[functools.partial(captioned_picture, picture_first=picture_first)],
            output_features=OUTPUT_FEATURES,
        )
    except ValueError as error:
        raise UserError(f"the task {name!r} cannot be registered: {error}") from None


def register_named(mixture: str) -> str:
    """Registers `folder:PATH` or `tfds:BUILDER[:IMAGE_KEY:CAPTION_KEY]`; returns the name seqio knows it by."""
    kind, _, rest = mixture.partition(":")
    if kind not in ("folder", "tfds"):
        return mixture
    # seqio allows no slashes in a name, and the name becomes a folder of the corpus.
    name = f"{kind}_" + re.sub(r"\W+", "_", (Path(rest).resolve().name if kind == "folder" else rest)).strip("_")
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    if kind == "folder":
        add_folder_task(name, rest)
    else:
        # A version stands behind a colon, too: coco_captions/2014:1.1.0.
        found = re.fullmatch(r"([^:]+(?::[\d.*]+)?)(?::([^:]+):([^:]+))?", rest)
        if found is None:
            raise UserError(
                f"config.corpus.mixture is {mixture!r}: write tfds:BUILDER or tfds:BUILDER:IMAGE_KEY:CAPTION_KEY"
            )
        builder, image_key, caption_key = found.groups()
        add_tfds_task(name, builder, image_key or "image", caption_key or "caption")
    return name


def _digits(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    def copies() -> Iterator[dict[str, np.ndarray]]:
        pixels, labels = digits.load(split)
        for copy in range(digits.NUM_COPIES if split == "train" else 1):
            moved = [digits.augmented(index, copy) for index in range(len(labels))] if copy else pixels
            captions = [digits.caption(int(label), copy * len(labels) + i) for i, label in enumerate(labels)]
            yield {"image": np.stack(list(moved)), "caption": np.array(captions, np.object_)}

    # A whole copy at a time: each crossing from Python into tf.data costs half a millisecond.
    signature = {"image": tf.TensorSpec((None, 8, 8, 1), tf.uint8), "caption": tf.TensorSpec((None,), tf.string)}
    return tf.data.Dataset.from_generator(copies, output_signature=signature).unbatch()


_NUM_DIGITS = {"train": digits.NUM_TRAIN * digits.NUM_COPIES, "validation": digits.NUM_VALIDATION}
_DIGITS = seqio.FunctionDataSource(_digits, list(_NUM_DIGITS), _NUM_DIGITS)
_add_task("digits_text_first", _DIGITS, picture_first=False)
_add_task("digits_picture_first", _DIGITS, picture_first=True)
# As many documents in each order: the first order teaches drawing, the second naming.
seqio.MixtureRegistry.add("digits", [("digits_text_first", 1.0), ("digits_picture_first", 1.0)])


class TracedSource(seqio.FunctionDataSource):
    """A function data source that says what its data follow from: texts by name, such as a file's hash."""

    def __init__(self, *arguments: Any, provenance: Callable[[], dict[str, str]], **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.provenance = provenance


class SlicedSource(seqio.FunctionDataSource):
    """A data source that reads any run of its examples without those in front of it."""

    def __init__(self, read: Callable[[str, int, int], tf.data.Dataset], sizes: Mapping[str, int]) -> None:
        """
        Args:
          read: gives the examples of a split from one number up to, and without, another.
          sizes: how many examples each split has.
        """

        def everything(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
            return read(split, 0, sizes[split])

        super().__init__(everything, list(sizes), dict(sizes))
        self._slice = read

    def between(self, split: str, start: int, stop: int) -> tf.data.Dataset:
        """A run of examples; the dataset knows how many they are."""
        return self._slice(split, start, stop).apply(tf.data.experimental.assert_cardinality(stop - start))


def _emoji(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    # What is missing is said here: an error inside of tf.data would lose its type.
    emoji.load_font()
    emoji.captions()

    def examples() -> Iterator[dict[str, str | bytes]]:
        for caption, pixels in emoji.pictures(split):
            yield {"image": encode_png(pixels), "caption": caption}

    return tf.data.Dataset.from_generator(examples, output_signature=_CAPTIONED)


_add_task("emoji", TracedSource(_emoji, emoji.SPLITS, provenance=emoji.provenance), picture_first=False)
