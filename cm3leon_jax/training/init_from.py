"""Starts a run from the parameters of another (`config.train.init_from`), which may have other words and lengths.

A row of the embedding table goes to the same token of the new vocabulary: by the text it stands for, the number of an
image code, the name of a special token. Tokens and positions that the other run lacks begin as in a run from scratch.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from cm3leon_jax.checkpoints import Checkpoints, DamagedCheckpoint, abstract_on
from cm3leon_jax.config import Config
from cm3leon_jax.config_part import changeable
from cm3leon_jax.errors import UserError
from cm3leon_jax.models.config import ModelConfig
from cm3leon_jax.models.sharding import shardings
from cm3leon_jax.models.transformer import abstract_model
from cm3leon_jax.newest_checkpoint import read_newest
from cm3leon_jax.paths import copied
from cm3leon_jax.storage import mirror
from cm3leon_jax.vocabulary import Vocabulary

log = logging.getLogger(__name__)

# How a model is computed and initialized, not what shape it has.
_SHAPES_NOTHING = changeable(ModelConfig, after_import=True)


def load_from_run(
    config: Config, workdir: Path, vocabulary: Vocabulary, image_tokenizer: str | None, fresh: nnx.State, mesh: Mesh
) -> tuple[nnx.State, str]:
    """The newest undamaged parameters of `config.train.init_from`, and which run and step they are from.

    All arguments are of the new run: `image_tokenizer` is the fingerprint of that of its corpus, and `fresh` are its
    parameters as they would be from scratch, which are used up.

    Raises a `UserError` if there is no other run, or its model has another shape.
    """
    other = Path(config.train.init_from)
    mirror.refresh(other, whole=False)
    if not (other / "checkpoints").is_dir():
        raise UserError(f"config.train.init_from is {other}: no checkpoints there; name the --workdir of a run")
    if other.resolve() == workdir.resolve():
        raise UserError(f"config.train.init_from is {other}, where this run is to be: give it another --workdir")

    def read(checkpoints: Checkpoints, newest: int) -> tuple[nnx.State, str]:
        damages = []
        for step in reversed([step for step in checkpoints.steps if step <= newest]):
            try:
                meta = checkpoints.meta(step)
                _check_shape(config, meta, other)
                theirs = _vocabulary_of(meta, other, vocabulary)
                length = meta["config"]["batch"]["sequence_length"]
                _, abstract = abstract_model(config.model, theirs.size, length, config.image_tokenizer.image_length)
                known = checkpoints.restore_parameters(step, abstract_on(abstract, shardings(abstract, mesh)))
            except DamagedCheckpoint as damage:
                damages.append(damage)
                if jax.process_count() > 1:
                    # The others may read it without a fault.
                    break
                continue
            _fit_vocabulary(known, fresh, vocabulary, theirs)
            _fit_positions(known, fresh, length, config.batch.sequence_length)
            if image_tokenizer != meta["corpus"]["image_tokenizer"]:
                log.info("image tokenizer: not the one of that run; its codes take the rows of the same numbers")
            return known, f"{other} at step {step:,}"
        raise damages[0]

    return read_newest(other, 1, read)


def same_tokens(vocabulary: Vocabulary, other: Vocabulary) -> Int[np.ndarray, "V"]:
    """For every row of the embedding table, that of the same token in another vocabulary; -1 where it has none."""
    if vocabulary.fingerprint == other.fingerprint:
        return np.arange(vocabulary.size, dtype=np.int32)
    ids = {name: index for index, name in _names(other).items()}
    rows = np.full(vocabulary.size, -1, np.int32)
    for index, name in _names(vocabulary).items():
        rows[index] = ids.get(name, -1)
    return rows


def _names(vocabulary: Vocabulary) -> dict[int, str]:
    """The tokens by id, without ids that the vocabulary only reserves."""
    named = {index: vocabulary.name(index) for index in range(vocabulary.size)}
    return {index: name for index, name in named.items() if name not in (f"<id:{index}>", f"<unused:{index}>")}


def _fit_vocabulary(known: nnx.State, fresh: nnx.State, vocabulary: Vocabulary, theirs: Vocabulary) -> None:
    """Replaces the embedding table, and an LM head of its own, by those for the new vocabulary."""
    if theirs is vocabulary:
        return
    rows, total = same_tokens(vocabulary, theirs), len(_names(vocabulary))
    _fit_table("token_embedding", known, fresh, rows, total, "vocabulary")
    if "output_embedding" in known:
        _fit_table("output_embedding", known, fresh, rows, total, "LM head")


def _fit_positions(known: nnx.State, fresh: nnx.State, length: int, new_length: int) -> None:
    """Replaces the table of positions by one of the new length."""
    if "position_embedding" not in known or length == new_length:
        return
    rows = np.where(np.arange(new_length) < length, np.arange(new_length), -1).astype(np.int32)
    _fit_table("position_embedding", known, fresh, rows, new_length, "positions")


def _fit_table(name: str, known: Any, fresh: Any, rows: Int[np.ndarray, "R"], total: int, what: str) -> None:
    """Replaces a table by one with these rows of it, and fresh ones where a row is -1."""
    count = int((rows >= 0).sum())
    log.info(f"{what}: {count:,} of {total:,} are taken over, {total - count:,} are new")

    def join(fresh: Float[Array, "R D"], known: Float[Array, "K D"], rows: Int[Array, "R"]) -> Float[Array, "R D"]:
        return jnp.where((rows >= 0)[:, None], known[jnp.maximum(rows, 0)], fresh)

    table = fresh[name].get_value()
    joined = jax.jit(join, out_shardings=table.sharding, donate_argnums=0)(table, known[name].get_value(), rows)
    known[name] = fresh[name].replace(joined)


def _check_shape(config: Config, meta: Mapping[str, Any], other: Path) -> None:
    theirs, ours = ModelConfig(**meta["config"]["model"]), config.model
    # Where None stands for a value that follows from the others.
    derived = (
        ("num_key_value_heads", "key_value_heads"),
        ("head_size", "head_dim"),
        ("ffn_dim", "hidden_dim"),
        ("embedding_dim", "token_dim"),
    )
    values = [
        dataclasses.asdict(model) | {name: getattr(model, value) for name, value in derived} for model in (theirs, ours)
    ]
    if differing := [
        f"config.model.{name} is {value!r} there and {values[1][name]!r} here"
        for name, value in values[0].items()
        if value != values[1][name] and name not in _SHAPES_NOTHING
    ]:
        raise UserError(
            f"config.train.init_from is {other}, whose model is another: {'; '.join(differing)}; set what it has, or "
            "leave init_from empty"
        )


def _vocabulary_of(meta: Mapping[str, Any], other: Path, vocabulary: Vocabulary) -> Vocabulary:
    """That of the other run: at the path of its config, or in its folder if that has moved."""
    if meta["vocabulary"] == vocabulary.fingerprint:
        return vocabulary
    candidates = (
        copied(meta["config"]["vocabulary"]["path"], "config.vocabulary.path of that run"),
        other / "vocabulary",
    )
    mirror.refresh(candidates[1])
    for path in candidates:
        if (path / "tokenizer.json").is_file():
            found = Vocabulary.load(path)
            if found.fingerprint == meta["vocabulary"]:
                return found
    raise UserError(
        f"config.train.init_from is {other}, which has another vocabulary than this run, and it is neither at "
        f"{candidates[0]} nor at {candidates[1]}: put it there, since rows of tokens go by their texts"
    )
