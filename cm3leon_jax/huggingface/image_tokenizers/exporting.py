"""Writes the run's image tokenizer as other projects have it: a folder of `diffusers`, or taming's names."""

from __future__ import annotations

import contextlib
import logging
from functools import partial
from pathlib import Path

from cm3leon_jax.errors import UserError
from cm3leon_jax.files import atomic_write_folder, write_json
from cm3leon_jax.huggingface.image_tokenizers import LAYOUTS
from cm3leon_jax.huggingface.image_tokenizers.layout import ImageTokenizerLayout, LayoutWriter, parameter_shapes
from cm3leon_jax.huggingface.writing_weights import LazyTensor, write_weights
from cm3leon_jax.image_tokenizers.base import ImageTokenizer, load_image_tokenizer
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig
from cm3leon_jax.image_tokenizers.vqgan.model import num_norm_groups
from cm3leon_jax.progress import Progress

log = logging.getLogger(__name__)


def export_image_tokenizer(path: Path, output: Path, name: str, dtype: str, shard_bytes: int) -> None:
    """Writes the image tokenizer at `path` to `output`, a folder that is not there yet or empty, in the layout `name`.

    Raises a `UserError` that names all that the layout cannot express.
    """
    layout: ImageTokenizerLayout = LAYOUTS.load(name)
    assert layout.writer is not None
    tokenizer = load_image_tokenizer(path)
    config, norm_groups = checked_config(layout, layout.writer, tokenizer)
    tensors = list(lazy_tensors(layout, config, tokenizer))
    with atomic_write_folder(output) as folder:
        write_json(folder / layout.writer.config_file, layout.writer.write_config(config, norm_groups))
        with contextlib.closing(Progress("export", len(tensors), unit="tensor")) as progress:
            files = write_weights(folder, tensors, dtype, shard_bytes, progress.advance, layout.writer.stem)
        size = sum(file.stat().st_size for file in files)
    log.info(f"exported the image tokenizer {tokenizer.fingerprint} to {output}: {size / 1e6:,.1f} MB of {dtype}")


def checked_config(
    layout: ImageTokenizerLayout, writer: LayoutWriter, tokenizer: ImageTokenizer
) -> tuple[VQGANConfig, int]:
    """The config of a tokenizer that the layout can express, and the groups of its norms.

    Raises a `UserError` that names all that it cannot.
    """
    config = tokenizer.config
    if not isinstance(config, VQGANConfig):
        raise UserError(f"an image tokenizer of the family {config.family!r} is no {layout.title}: only a 'vqgan' is")
    wrong = [
        f"{name} is {getattr(config, name)!r} and can only be {value!r}"
        for name, value in {"encoder": "convolutional", "mid_block": True}.items()
        if getattr(config, name) != value
    ]
    if config.num_res_blocks == 0:
        wrong.append("num_res_blocks is 0 and has to be at least 1")
    groups = {num_norm_groups(config.base_channels * each, config.norm_groups) for each in config.channel_multipliers}
    groups.add(num_norm_groups(config.base_channels, config.norm_groups))
    if len(groups) > 1 or writer.norm_groups not in (None, *groups):
        only = "one number" if writer.norm_groups is None else str(writer.norm_groups)
        wrong.append(f"its norms have {', '.join(map(str, sorted(groups)))} groups and can only have {only}")
    if wrong:
        raise UserError(f"a {layout.title} cannot express this image tokenizer: {'; '.join(wrong)}")
    return config, groups.pop()


def lazy_tensors(layout: ImageTokenizerLayout, config: VQGANConfig, tokenizer: ImageTokenizer) -> list[LazyTensor]:
    """The tensors of a layout, with the values of a tokenizer's arrays."""
    shapes = parameter_shapes(config)
    return [
        LazyTensor(entry.name, entry.shape(shapes[name]), partial(entry.from_ours, tokenizer.weights[name]))
        for name, entry in layout.tensors(config).items()
    ]
