"""The parts of a seqio Task of documents: its features, its preprocessor, and kinds of data sources.

Where a task's data follow from more than its name, its data source is a `TracedSource` and says from what, so that a
corpus that was begun with another is refused. Each of several processes reads its part alone of a `SlicedSource`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import seqio
import tensorflow as tf

from cm3leon_jax.errors import UserError

_PASS_THROUGH = seqio.PassThroughVocabulary(size=1)
OUTPUT_FEATURES = {
    "segments": seqio.Feature(_PASS_THROUGH, add_eos=False, dtype=tf.string, rank=1),
    "is_image": seqio.Feature(_PASS_THROUGH, add_eos=False, dtype=tf.bool, rank=1),
}
CAPTIONED = {"image": tf.TensorSpec((), tf.string), "caption": tf.TensorSpec((), tf.string)}


def captioned_image(
    dataset: tf.data.Dataset, image_key: str = "image", caption_key: str = "caption", image_first: bool = False
) -> tf.data.Dataset:
    """A seqio preprocessor: examples with an image and captions become documents, one per caption.

    They have the bytes of an image file, or its pixels as uint8 [height, width, channels], under `image_key`, and a
    string or a list of strings under `caption_key`; "a/b" names a nested feature.
    """

    def documents(example: Mapping[str, Any]) -> dict[str, tf.Tensor]:
        image, captions = feature_at(example, image_key), feature_at(example, caption_key)
        if image.dtype == tf.uint8:
            image = tf.io.encode_png(image)
        images = tf.fill(tf.shape(captions), image)
        segments = tf.stack([images, captions] if image_first else [captions, images], axis=-1)
        is_image = tf.broadcast_to(tf.constant([image_first, not image_first]), tf.shape(segments))
        return {"segments": segments, "is_image": is_image}

    dataset = dataset.map(documents, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.unbatch() if dataset.element_spec["segments"].shape.rank == 2 else dataset


def feature_at(example: Any, key: str) -> Any:
    """The feature that "a/b" names, below others."""
    return functools.reduce(lambda value, part: value[part], key.split("/"), example)


class TracedSource(seqio.FunctionDataSource):
    """A function data source that says what its data follow from: texts by name, such as a file's hash."""

    def __init__(self, *arguments: Any, provenance: Callable[[], dict[str, str]], **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.provenance = provenance


class SlicedSource(seqio.FunctionDataSource):
    """A data source that reads any range of its examples without those before it."""

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
        """Examples start .. stop - 1; the dataset knows how many they are."""
        return self._slice(split, start, stop).apply(tf.data.experimental.assert_cardinality(stop - start))


def add_task(name: str, source: seqio.DataSource, image_first: bool = False) -> seqio.Task:
    """Registers a task of captioned images, {"image": ..., "caption": ...}, under a new name."""
    try:
        return seqio.TaskRegistry.add(
            name,
            source=source,
            preprocessors=[functools.partial(captioned_image, image_first=image_first)],
            output_features=OUTPUT_FEATURES,
        )
    except ValueError as error:
        raise UserError(f"the task {name!r} cannot be registered: {error}") from None
