"""Reads an image tokenizer of another project, and writes it as the run's."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cm3leon_jax.config import Config
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import read_object
from cm3leon_jax.huggingface.decoders import other_at
from cm3leon_jax.huggingface.image_tokenizers import LAYOUTS
from cm3leon_jax.huggingface.image_tokenizers.layout import ImageTokenizerLayout, parameter_shapes
from cm3leon_jax.huggingface.reading_weights import StoredTensor, open_weights
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.huggingface.tensor_map import check_tensors
from cm3leon_jax.image_tokenizers.base import load_image_tokenizer
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig
from cm3leon_jax.image_tokenizers.vqgan.tokenizer import VQGANTokenizer
from cm3leon_jax.lock import lock
from cm3leon_jax.weights import CONFIG_FILE

# Tensors of whole models that are no weights, and so of any type.
_OF_OTHERS = ("*.position_ids", "*.inv_freq")

log = logging.getLogger(__name__)


def import_image_tokenizer(config: Config, source: Path) -> None:
    """Writes the image tokenizer in a folder or file of weights to config.image_tokenizer.path.

    Raises a `UserError` if there is none, it is not the one that the config describes, or another is there already.
    """
    path = Path(config.image_tokenizer.path)
    with lock(path, "import"):
        tokenizer = read_image_tokenizer(config, source)
        if not (path / CONFIG_FILE).exists():
            tokenizer.save(path)
            count = sum(value.size for value in tokenizer.weights.values())
            log.info(f"imported the image tokenizer {tokenizer.fingerprint} with {count:,} parameters into {path}")
        elif load_image_tokenizer(path).fingerprint == tokenizer.fingerprint:
            log.info(f"the image tokenizer {path} is that of {source} already: nothing to do")
        else:
            raise other_at("image_tokenizer", path)


def read_image_tokenizer(config: Config, source: Path) -> VQGANTokenizer:
    """The image tokenizer among the weights of a folder or file.

    Raises a `UserError` if none is there, tensors are missing or have other shapes, or it is not that of the config;
    one line names all values that the config would have to have.
    """
    wanted = config.image_tokenizer
    if not isinstance(wanted, VQGANConfig):
        raise UserError(f"config.image_tokenizer.family is {wanted.family!r}: image tokenizers are imported as 'vqgan'")
    stored, layouts = _stored_config(source), [LAYOUTS.load(name) for name in LAYOUTS]
    weights = open_weights(source, _OF_OTHERS + tuple(name for layout in layouts for name in layout.all_ignored()))
    layout, prefix = _find_layout(layouts, weights, stored, source)
    found = layout.without_prefix(weights, prefix)
    said = {} if stored is None else layout.read_config(stored)
    if not any(name.startswith("decoder.") for name in found):
        raise UserError(
            f"{source}: its image tokenizer has no decoder, and so makes no images; take a folder that has one, or "
            "give the original weights by --image-tokenizer (Chameleon's vqgan.ckpt)"
        )
    fields = layout.architecture(found, said.get("resolution", wanted.resolution)) | said
    wrong = _differences(wanted, fields)
    if layout.filter not in (None, config.corpus.squaring.filter):
        wrong.append(f"config.corpus.squaring.filter is {config.corpus.squaring.filter!r}, it has {layout.filter!r}")
    if wrong:
        raise UserError(f"{source} is not the image tokenizer of this config: {'; '.join(wrong)}")
    check_tensors(layout.tensors(wanted), parameter_shapes(wanted), found, source)
    return VQGANTokenizer(wanted, layout.read(wanted, found))


def _stored_config(source: Path) -> StoredConfig | None:
    """The config.json of a folder; weights that are a file have none."""
    file = source / "config.json"
    if source.is_file() or not file.exists():
        return None
    return StoredConfig(read_object(file, "the folder's config"), str(file))


def _find_layout(
    layouts: Sequence[ImageTokenizerLayout],
    weights: Mapping[str, StoredTensor],
    stored: StoredConfig | None,
    source: Path,
) -> tuple[ImageTokenizerLayout, str]:
    """The layout of weights and what its names begin with: the one that config.json names, or the first that fits."""
    if stored is not None:
        kind = stored.text("_class_name", stored.text("model_type", ""))
        layouts = [layout for layout in layouts if kind in layout.kinds] or layouts
    for layout in layouts:
        prefix = layout.prefix(weights)
        if prefix is not None:
            return layout, prefix
    raise UserError(
        f"{source} has no image tokenizer: it has none of the tensors of {', '.join(each.title for each in layouts)}"
    )


def _differences(config: VQGANConfig, fields: Mapping[str, Any]) -> list[str]:
    """One phrase per field in which a config differs from what weights are of."""
    given = {name: getattr(config, name) for name in fields}
    sides = {config.resolution // 2**level for level in range(len(config.channel_multipliers))}
    # A side that no level has is as good as none.
    given["attention_resolutions"] = tuple(side for side in config.attention_resolutions if side in sides)
    return [
        f"config.image_tokenizer.{name} is {given[name]!r}, it has {value!r}"
        for name, value in fields.items()
        if (sorted(given[name]) != sorted(value) if name == "attention_resolutions" else given[name] != value)
    ]
