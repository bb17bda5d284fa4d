"""Image-caption data sets of TFDS as tasks."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3leon_jax.data.sources.registry import NamedSource
from cm3leon_jax.errors import UserError

if TYPE_CHECKING:
    import seqio
    import tensorflow as tf
    import tensorflow_datasets as tfds

log = logging.getLogger(__name__)


class NamedTfds(NamedSource):
    """`tfds:BUILDER` or `tfds:BUILDER:IMAGE_KEY:CAPTION_KEY` as `config.corpus.mixture`."""

    def add_task(self) -> None:
        log.info(f"tfds:{self.location}: looking for the data set, which is downloaded where it is not there yet")
        # A version follows a colon, too: coco_captions/2014:1.1.0.
        found = re.fullmatch(r"([^:]+(?::[\d.*]+)?)(?::([^:]+):([^:]+))?", self.location)
        if found is None:
            raise UserError(
                f"config.corpus.mixture is {f'tfds:{self.location}'!r}: write tfds:BUILDER or "
                "tfds:BUILDER:IMAGE_KEY:CAPTION_KEY"
            )
        builder, image_key, caption_key = found.groups()
        add_tfds_task(self.task_name, builder, image_key or "image", caption_key or "caption")


def add_tfds_task(
    name: str,
    builder_name: str,
    image_key: str = "image",
    caption_key: str = "caption",
    data_dir: str | Path | None = None,
    splits: Mapping[str, str] | None = None,
    image_first: bool = False,
) -> seqio.Task:
    """Registers any image-caption data set of TFDS; it is downloaded and prepared if it is not there yet.

    Args:
      builder_name: as `tfds.builder` takes it, such as "coco_captions/2014:1.1.0".
      image_key: the image, an Image feature; "a/b" names a nested feature.
      caption_key: a string or a list of strings, each of which makes a document.
      data_dir: where TFDS keeps its data; None is its default folder.
      splits: TFDS splits by split name, such as {"train": "train[:99%]", "validation": "train[99%:]"}; by default
        "train", and as "validation" the first of "validation", "test", the last hundredth of "train".

    Raises:
      UserError: if there is no such builder or feature, or the data set cannot be downloaded.
    """
    import seqio
    import tensorflow_datasets as tfds

    from cm3leon_jax.data.sources.base import add_task, feature_at

    try:
        builder = tfds.builder(builder_name, data_dir=data_dir)
        for key in (image_key, caption_key):
            feature_at(builder.info.features, key)
    except tfds.core.DatasetNotFoundError:
        raise UserError(
            f"TFDS has no builder {builder_name!r}: see `tfds.list_builders()`, or import the module that defines it"
        ) from None
    except KeyError:
        found = ", ".join(builder.info.features)
        raise UserError(f"TFDS builder {builder_name} has no feature {key!r}: its features are {found}") from None
    if splits is None:
        _download(builder)
        other = next((split for split in ("validation", "test") if split in builder.info.splits), None)
        splits = {"train": "train" if other else "train[:99%]", "validation": other or "train[99%:]"}
    tfds_splits = dict(splits)

    def dataset_fn(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        _download(builder)
        return _tfds_dataset(builder, tfds_splits[split], image_key, caption_key)

    return add_task(name, seqio.FunctionDataSource(dataset_fn, list(tfds_splits)), image_first=image_first)


def _download(builder: tfds.core.DatasetBuilder) -> None:
    # The library tries a failing download ten times, for three to four minutes, with a page of warnings each.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    if not builder.is_prepared():
        log.info(f"{builder.info.full_name} is not in {builder.data_path}: it is downloaded and prepared there")
    try:
        builder.download_and_prepare()
    # Hundreds of builders raise whatever they like here.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(
            f"TFDS cannot download and prepare {builder.info.full_name} ({reason[:500]}): give this host a network, or "
            f"prepare the data set on another and copy it to {builder.data_path}"
        ) from None


def _tfds_dataset(builder: tfds.core.DatasetBuilder, split: str, image_key: str, caption_key: str) -> tf.data.Dataset:
    """Examples {"image": file bytes or uint8 pixels, "caption": one or many strings}, in the stored order."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    from cm3leon_jax.data.sources.base import feature_at

    decoders: dict[str, Any] | None = None
    if isinstance(feature_at(builder.info.features, image_key), tfds.features.Image):
        # Pillow decodes the stored bytes later: what TFDS would decode here had to be encoded again.
        *parents, last = image_key.split("/")
        decoders = {last: tfds.decode.SkipDecoding()}
        for parent in reversed(parents):
            decoders = {parent: decoders}

    def pair(example: Any) -> dict[str, Any]:
        return {"image": feature_at(example, image_key), "caption": feature_at(example, caption_key)}

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
