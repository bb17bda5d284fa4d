"""Chameleon in the folders of its authors: shards of tensor parallelism, beside them the tokenizers of all sizes.

    models/7b/params.json
    models/7b/consolidated.00.pth, consolidated.01.pth, ..       or one consolidated.pth
    tokenizer/text_tokenizer.json
    tokenizer/vqgan.ckpt

A shard has a part of each matrix. Its rotary positions turn neighboring numbers of a head, where `transformers` turns
halves: the rows of queries and keys are in another order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from cm3leon_jax.config import Config
from cm3leon_jax.errors import UserError
from cm3leon_jax.huggingface.families import chameleon
from cm3leon_jax.huggingface.image_tokenizers.importing import read_image_tokenizer
from cm3leon_jax.huggingface.reading_weights import Index, StoredTensor, open_weights
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.huggingface.tokenizer_files import read_vocabulary
from cm3leon_jax.image_tokenizers.base import ImageTokenizer, load_image_tokenizer
from cm3leon_jax.vocabulary import Vocabulary
from cm3leon_jax.weights import CONFIG_FILE

PARAMS_FILE = "params.json"
_TEXT_TOKENIZER, _IMAGE_TOKENIZER = "text_tokenizer.json", "vqgan.ckpt"
# Frequencies of the rotary positions.
_IGNORED = ("rope.*", "*.rope.*")
_POSITIONS = 4096
# What its loader takes; of other fields nothing is known but that they have to be empty.
_FIELDS = {"model_parallel_size", "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "ffn_dim_multiplier"}
_FIELDS |= {"multiple_of", "norm_eps", "rope_theta", "qk_normalization", "swin_norm"}

# How the parts of a tensor make it up: end to end along an axis, or as equals.
_ROWS, _COLUMNS, _MEAN = 0, 1, None
_LAYER = "model.layers.{}."
# Their name, that of transformers, and how its parts are put together.
_TENSORS: dict[str, tuple[str, int | None]] = {
    "tok_embeddings.weight": ("model.embed_tokens.weight", _COLUMNS),
    "norm.weight": ("model.norm.weight", _MEAN),
    "output.weight": ("lm_head.weight", _ROWS),
    "layers.{}.attention_norm.weight": (_LAYER + "input_layernorm.weight", _MEAN),
    "layers.{}.ffn_norm.weight": (_LAYER + "post_attention_layernorm.weight", _MEAN),
    "layers.{}.attention.wq.weight": (_LAYER + "self_attn.q_proj.weight", _ROWS),
    "layers.{}.attention.wk.weight": (_LAYER + "self_attn.k_proj.weight", _ROWS),
    "layers.{}.attention.wv.weight": (_LAYER + "self_attn.v_proj.weight", _ROWS),
    "layers.{}.attention.wo.weight": (_LAYER + "self_attn.o_proj.weight", _COLUMNS),
    "layers.{}.feed_forward.w1.weight": (_LAYER + "mlp.gate_proj.weight", _ROWS),
    "layers.{}.feed_forward.w2.weight": (_LAYER + "mlp.down_proj.weight", _COLUMNS),
    "layers.{}.feed_forward.w3.weight": (_LAYER + "mlp.up_proj.weight", _ROWS),
}
_NORMS = {
    f"layers.{{}}.attention.{ours}_normalization.{kind}": f"{_LAYER}self_attn.{ours}_norm.{kind}"
    for ours in ("q", "k")
    for kind in ("weight", "bias")
}
_Read = Callable[[Index], Float[np.ndarray, "..."]]


def is_of_meta(folder: Path) -> bool:
    """Whether a folder is one of Chameleon's authors."""
    # What the system has against a path is said by what reads it.
    with contextlib.suppress(OSError):
        return (folder / PARAMS_FILE).exists() and not (folder / "config.json").exists()
    return False


def import_of_meta(config: Config, workdir: Path, folder: Path, params: Mapping[str, Any]) -> None:
    """Starts a run in `workdir` from a folder, whose params.json is `params`."""
    where = f"{folder}/{PARAMS_FILE}"
    stored = stored_config(StoredConfig(params, where), open_shards(folder))
    heads = (stored["num_attention_heads"], stored["num_key_value_heads"])

    def open_tensors(folder: Path, ignored: tuple[str, ...]) -> dict[str, StoredTensor]:
        del ignored
        return merged(open_shards(folder), *heads)

    family = dataclasses.replace(
        chameleon.FAMILY,
        config_file=PARAMS_FILE,
        open_tensors=open_tensors,
        read_vocabulary=_read_vocabulary,
        read_image_tokenizer=_read_image_tokenizer,
    )
    family.import_folder(config, workdir, folder, stored)


def stored_config(params: StoredConfig, shards: Sequence[Mapping[str, StoredTensor]]) -> dict[str, Any]:
    """The config.json that `transformers` would have; raises a `UserError` for a field that it has no word for."""
    model = params.part("model") if params.get("model") else params
    for name, value in model.values.items():
        model.refuse_if(name, name not in _FIELDS and bool(value))
    model.refuse_if("qk_normalization", not model.flag("qk_normalization", True))
    heads = model.size("n_heads")
    sizes = {
        theirs: sum(_tensor(shard, name).shape[0] for shard in shards)
        for theirs, name in (("vocab_size", "output.weight"), ("intermediate_size", "layers.0.feed_forward.w1.weight"))
    }
    return sizes | {
        "model_type": chameleon.FAMILY.model_type,
        "hidden_size": model.size("dim"),
        "num_hidden_layers": model.num_layers("n_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": model.size("n_kv_heads", heads),
        "max_position_embeddings": _POSITIONS,
        "rms_norm_eps": model.number("norm_eps", 1e-5),
        "rope_theta": model.number("rope_theta", 10_000.0),
        "swin_norm": model.flag("swin_norm", False),
    }


def open_shards(folder: Path) -> list[dict[str, StoredTensor]]:
    """The tensors of each shard, opened and not read.

    Raises a `UserError` if there are none, or one is missing among others or has other tensors.
    """
    whole = folder / "consolidated.pth"
    files = [whole] if whole.exists() else sorted(folder.glob("consolidated.*.pth"))
    expected = [f"consolidated.{number:02d}.pth" for number in range(len(files))]
    if not files or (files != [whole] and [file.name for file in files] != expected):
        found = ", ".join(file.name for file in files) or "none"
        raise UserError(
            f"{folder}: its shards are {found}, not consolidated.pth or consolidated.00.pth and on: it is not complete"
        )
    shards = [open_weights(file, _IGNORED) for file in files]
    for file, shard in zip(files, shards, strict=True):
        if different := sorted(shard.keys() ^ shards[0].keys()):
            raise UserError(f"{file} and {files[0].name} do not both have {different[0]}: they do not belong together")
    return shards


def merged(
    shards: Sequence[Mapping[str, StoredTensor]], num_heads: int, num_key_value_heads: int
) -> dict[str, StoredTensor]:
    """The tensors of all shards together, in the order and under the names of `transformers`; nothing is read yet.

    What has no name there keeps its own.
    """
    result = {}
    for name in shards[0]:
        parts = [shard[name] for shard in shards]
        layer = (re.findall(r"^layers\.(\d+)\.", name) or [""])[0]
        pattern = re.sub(r"^layers\.\d+\.", "layers.{}.", name)
        heads = num_key_value_heads if ".wk." in name or ".k_normalization." in name else num_heads
        if pattern in _NORMS:
            tensor = _per_head(parts, heads)
            theirs = _NORMS[pattern].format(layer)
        else:
            theirs, axis = _TENSORS.get(pattern, (name, _MEAN))
            theirs = theirs.format(layer)
            tensor = _mean(parts) if axis is None else _joined(parts, axis)
            if pattern.endswith((".wq.weight", ".wk.weight")):
                tensor = _in_halves(tensor, heads)
        result[theirs] = dataclasses.replace(tensor, name=theirs)
    return result


def _tensor(shard: Mapping[str, StoredTensor], name: str) -> StoredTensor:
    if name not in shard:
        file = next((tensor.file for tensor in shard.values()), "the shard")
        raise UserError(f"{file}: there is no tensor {name}: these are no weights of Chameleon's authors")
    return shard[name]


def _joined(parts: Sequence[StoredTensor], axis: int) -> StoredTensor:
    """Parts end to end along an axis; a slice reads the parts that it touches."""
    sizes = [part.shape[axis] for part in parts]
    shape = (*parts[0].shape[:axis], sum(sizes), *parts[0].shape[axis + 1 :])

    def read(index: Index) -> Float32[np.ndarray, "..."]:
        start, stop, _ = index[axis].indices(shape[axis])
        found, offset = [], 0
        for part, size in zip(parts, sizes, strict=True):
            first, last = max(start - offset, 0), max(min(stop - offset, size), 0)
            found.append(part.read((*index[:axis], slice(first, max(first, last)), *index[axis + 1 :])))
            offset += size
        return np.concatenate(found, axis=axis)

    return dataclasses.replace(parts[0], shape=shape, _read=read)


def _mean(parts: Sequence[StoredTensor]) -> StoredTensor:
    """Parts that every shard has whole, and updated by itself."""
    return dataclasses.replace(parts[0], _read=lambda index: np.mean([part.read(index) for part in parts], axis=0))


def _in_halves(tensor: StoredTensor, num_heads: int) -> StoredTensor:
    """The rows of each head, of which neighbors are turned together, with the first of all pairs first."""
    size = tensor.shape[0] // num_heads

    def read(index: Index) -> Float32[np.ndarray, "..."]:
        start, stop, _ = index[0].indices(tensor.shape[0])
        assert start % size == stop % size == 0, index
        part = tensor.read(index)
        return part.reshape(-1, size // 2, 2, *part.shape[1:]).swapaxes(1, 2).reshape(part.shape)

    return dataclasses.replace(tensor, _read=read)


def _per_head(parts: Sequence[StoredTensor], num_heads: int) -> StoredTensor:
    """The scales or shifts of each head, of which a shard has one vector for all of its own."""
    size = math.prod(parts[0].shape)

    def read(index: Index) -> Float32[np.ndarray, "..."]:
        vectors = np.stack([part.read((slice(None),)) for part in parts]).reshape(len(parts), -1, 2)
        in_halves = vectors.swapaxes(1, 2).reshape(len(parts), -1)
        return in_halves.repeat(num_heads // len(parts), axis=0)[index]

    return dataclasses.replace(parts[0], shape=(num_heads, size), _read=read)


def _tokenizer_folder(folder: Path) -> Path:
    """The folder of the tokenizers: beside those of all models, or within that of one."""
    for parent in (folder, folder.parent, folder.parent.parent):
        if (parent / "tokenizer" / _TEXT_TOKENIZER).exists():
            return parent / "tokenizer"
    raise UserError(f"{folder}: there is no tokenizer/{_TEXT_TOKENIZER} in it or in the two folders around it")


def _read_vocabulary(folder: Path, rows: int, config: Config) -> Vocabulary:
    return read_vocabulary(_tokenizer_folder(folder), rows, config, chameleon.token_roles, _TEXT_TOKENIZER)


def _read_image_tokenizer(config: Config, folder: Path) -> ImageTokenizer:
    """The image tokenizer at the config's path, if it is there; otherwise the one beside the text tokenizer."""
    path, file = Path(config.image_tokenizer.path), _tokenizer_folder(folder) / _IMAGE_TOKENIZER
    if (path / CONFIG_FILE).exists():
        return load_image_tokenizer(path)
    if not file.exists():
        raise chameleon.no_image_tokenizer(folder, path)
    return read_image_tokenizer(config, file)
