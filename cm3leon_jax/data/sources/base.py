"""The parts of a seqio Task of documents: its features, its preprocessor, and kinds of data sources.

Where a task's data follow from more than its name, its data source is a `TracedSource` and says from what, so that a
corpus that was begun with another is refused. Each of several processes reads its part alone of a `SlicedSource`.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from cm3leon_jax.data.sources.reading import SkippedExample
from cm3leon_jax.data.templates import TEMPLATES
from cm3leon_jax.data.templates.template import Template
from cm3leon_jax.documents import Document, ImageSegment
from cm3leon_jax.errors import UserError

_PASS_THROUGH = seqio.PassThroughVocabulary(size=1)
OUTPUT_FEATURES = {
    "segments": seqio.Feature(_PASS_THROUGH, add_eos=False, dtype=tf.string, rank=1),
    "is_image": seqio.Feature(_PASS_THROUGH, add_eos=False, dtype=tf.bool, rank=1),
    # Of an instruction: the name of its template, whose fields the segments are.
    "template": seqio.Feature(_PASS_THROUGH, add_eos=False, dtype=tf.string, rank=0, required=False),
}
CAPTIONED = {"image": tf.TensorSpec((), tf.string), "caption": tf.TensorSpec((), tf.string)}
# What a source that makes its documents itself gives.
DOCUMENT = {
    "segments": tf.TensorSpec((None,), tf.string),
    "is_image": tf.TensorSpec((None,), tf.bool),
    "template": tf.TensorSpec((), tf.string),
}


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


def instruction(dataset: tf.data.Dataset, template: str, keys: Mapping[str, str] | None = None) -> tf.data.Dataset:
    """A seqio preprocessor: makes an instruction of each example, by the template of a name.

    An example has a string for each text field, and for each image field the bytes of its file, or its pixels as uint8
    [height, width, channels]; a field of the turns is a list of them. `keys` says where a field is found, if not under
    its own name. In a Task: `functools.partial(instruction, template="question", keys={"image": "photo"})`.

    Raises:
      UserError: if there is no such template, or an example lacks one of its fields.
    """
    found: Template = TEMPLATES.load(template)
    by_turn = {field.name for field in found.in_turns}
    once = [name for name in found.fields if name not in by_turn]
    in_turns = [name for name in found.fields if name in by_turn]
    keys = keys or {}
    for name in found.fields:
        try:
            feature_at(dataset.element_spec, keys.get(name, name))
        except (KeyError, TypeError):
            has = ", ".join(map(str, dataset.element_spec))
            raise UserError(
                f"the template {template!r} needs the field {name}: the examples have {has}; name it in `keys`"
            ) from None

    def feature(example: Mapping[str, Any], name: str) -> tf.Tensor:
        value = feature_at(example, keys.get(name, name))
        if value.dtype == tf.uint8:
            return tf.io.encode_png(value)
        return value if name in found.images else tf.strings.strip(value)

    def document(example: Mapping[str, Any]) -> dict[str, tf.Tensor]:
        segments = [tf.reshape(feature(example, name), [-1]) for name in once]
        is_image = [[name in found.images] for name in once]
        if in_turns:
            turns = tf.stack([feature(example, name) for name in in_turns], axis=1)
            segments.append(tf.reshape(turns, [-1]))
            of_turn = tf.constant([name in found.images for name in in_turns])
            is_image.append(tf.tile(of_turn, [tf.shape(turns)[0]]))
        return {
            "segments": tf.concat(segments, 0),
            "is_image": tf.concat(is_image, 0),
            "template": tf.constant(template),
        }

    return dataset.map(document, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


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


class DocumentSource(SlicedSource, abc.ABC):
    """A data source of whole documents; those of a task that does nothing else to them never go through TensorFlow."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        super().__init__(self._read, sizes)

    @abc.abstractmethod
    def documents(self, split: str, start: int, stop: int) -> Iterator[Document | SkippedExample]:
        """Documents start .. stop - 1 of a split, or why there is none."""

    def _read(self, split: str, start: int, stop: int) -> tf.data.Dataset:
        def examples() -> Iterator[dict[str, Any]]:
            for found in self.documents(split, start, stop):
                # To others than our own reader a skipped example is an empty document.
                document = found if isinstance(found, Document) else Document(())
                segments = document.segments
                yield {
                    "segments": [each.encoded if isinstance(each, ImageSegment) else each.text for each in segments],
                    "is_image": np.array([isinstance(each, ImageSegment) for each in segments], bool),
                    "template": document.template,
                }

        return tf.data.Dataset.from_generator(examples, output_signature=DOCUMENT)


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


def add_documents_task(name: str, source: DocumentSource) -> seqio.Task:
    """Registers a source of documents under a new name."""
    try:
        return seqio.TaskRegistry.add(name, source=source, preprocessors=[], output_features=OUTPUT_FEATURES)
    except ValueError as error:
        raise UserError(f"the task {name!r} cannot be registered: {error}") from None
