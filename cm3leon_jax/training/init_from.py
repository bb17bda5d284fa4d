"""Starts a run from the parameters of another (`config.train.init_from`), which may have other words and lengths.

A row of the embedding table goes to the same token of the new vocabulary: by the text it stands for, the number of an
image code, the name of a special token. Tokens and positions that the other run lacks begin as in a run from scratch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
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
from cm3leon_jax.vocabulary import Vocabulary

# How a model is computed and initialized, not what shape it has.
_SHAPES_NOTHING = changeable(ModelConfig, after_import=True)


@dataclass(frozen=True)
class TakenOver:
    """The parameters of another run, laid out for this one."""

    parameters: nnx.State
    # The other run and its step, in words.
    source: str
    # What is not simply taken, in words.
    notes: tuple[str, ...]


@dataclass(frozen=True)
class NewRun:
    """What the parameters are laid out for."""

    config: Config
    vocabulary: Vocabulary
    # Fingerprint of that of its corpus.
    image_tokenizer: str | None
    # Its parameters as they would be from scratch; used up.
    fresh: nnx.State
    # That of the other run may have been any.
    mesh: Mesh


def taken_over(run: NewRun, workdir: Path) -> TakenOver:
    """The parameters of the newest sound checkpoint of `config.train.init_from`, for a run in `workdir`.

    Raises:
      UserError: if the other run is none, or its model has another shape.
    """
    other = Path(run.config.train.init_from)
    if not (other / "checkpoints").is_dir():
        raise UserError(f"config.train.init_from is {other}: no checkpoints there; name the --workdir of a run")
    if other.resolve() == workdir.resolve():
        raise UserError(f"config.train.init_from is {other}, where this run is to be: give it another --workdir")

    def read(checkpoints: Checkpoints, newest: int) -> TakenOver:
        damages = []
        for step in reversed([step for step in checkpoints.steps if step <= newest]):
            try:
                return _at_step(run, other, checkpoints, step)
            except DamagedCheckpoint as damage:
                damages.append(damage)
                if jax.process_count() > 1:
                    # The others may read it without a fault.
                    break
        raise damages[0]

    return read_newest(other, 1, read)


def _at_step(run: NewRun, other: Path, checkpoints: Checkpoints, step: int) -> TakenOver:
    config, vocabulary, fresh, notes = run.config, run.vocabulary, run.fresh, []
    stored = checkpoints.meta(step)
    _refuse_another_shape(config, stored, other)
    theirs = _vocabulary_of(stored, other, vocabulary)
    length, own_length = stored["config"]["batch"]["sequence_length"], config.batch.sequence_length
    _, abstract = abstract_model(config.model, theirs.size, length)
    known = checkpoints.restore_parameters(step, abstract_on(abstract, shardings(abstract, run.mesh)))
    if theirs is not vocabulary:
        rows, named = same_tokens(vocabulary, theirs), _names(vocabulary)
        count = sum(bool(rows[index] >= 0) for index in named)
        notes.append(f"vocabulary: {count:,} of {len(named):,} tokens are taken over, {len(named) - count:,} are new")
        known["token_embedding"] = _joined(fresh["token_embedding"], known["token_embedding"], rows)
    if "position_embedding" in known and length != own_length:
        rows = np.where(np.arange(own_length) < length, np.arange(own_length), -1).astype(np.int32)
        count = min(length, own_length)
        notes.append(f"positions: {count:,} of {own_length:,} are taken over, {own_length - count:,} are new")
        known["position_embedding"] = _joined(fresh["position_embedding"], known["position_embedding"], rows)
    if run.image_tokenizer != stored["corpus"]["image_tokenizer"]:
        notes.append("image tokenizer: another one than there; its codes take over the rows of the same numbers")
    return TakenOver(known, f"{other} at step {step:,}", tuple(notes))


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
    """The tokens by id; places that the vocabulary only keeps free are none."""
    named = {index: vocabulary.name(index) for index in range(vocabulary.size)}
    return {index: name for index, name in named.items() if name not in (f"<id:{index}>", f"<unused:{index}>")}


def _joined(fresh: Any, known: Any, rows: Int[np.ndarray, "R"]) -> Any:
    """A table with the named rows of `known`, and those of `fresh` where a row is -1."""

    def chosen(fresh: Float[Array, "R D"], known: Float[Array, "K D"], rows: Int[Array, "R"]) -> Float[Array, "R D"]:
        return jnp.where((rows >= 0)[:, None], known[jnp.maximum(rows, 0)], fresh)

    table = fresh.get_value()
    chosen_here = jax.jit(chosen, out_shardings=table.sharding, donate_argnums=0)
    return fresh.replace(chosen_here(table, known.get_value(), rows))


def _refuse_another_shape(config: Config, stored: Mapping[str, Any], other: Path) -> None:
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    given = stored["config"]["model"]
    theirs = _spelled_out(ModelConfig(**{name: value for name, value in given.items() if name in fields}))
    ours = _spelled_out(config.model)
    differing = [
        f"config.model.{name} is {theirs[name]!r} there and {ours[name]!r} here"
        for name in ours
        if theirs[name] != ours[name] and name not in _SHAPES_NOTHING
    ]
    if differing:
        raise UserError(
            f"config.train.init_from is {other}, whose model is another: {'; '.join(differing)}; set what it has, or "
            "leave init_from empty"
        )


def _spelled_out(model: ModelConfig) -> dict[str, Any]:
    """The fields of a model, where 0 stands for a value that follows from the others with that value."""
    return dataclasses.asdict(model) | {
        "num_key_value_heads": model.key_value_heads,
        "ffn_dim": model.hidden_dim,
        "embedding_dim": model.token_dim,
    }


def _vocabulary_of(stored: Mapping[str, Any], other: Path, vocabulary: Vocabulary) -> Vocabulary:
    """That of the other run: at the path of its config, or in its folder if that has moved."""
    if stored["vocabulary"] == vocabulary.fingerprint:
        return vocabulary
    paths = (Path(stored["config"]["vocabulary"]["path"]), other / "vocabulary")
    for path in paths:
        if (path / "tokenizer.json").is_file():
            found = Vocabulary.load(path)
            if found.fingerprint == stored["vocabulary"]:
                return found
    raise UserError(
        f"config.train.init_from is {other}, which has another vocabulary than this run, and it is neither at "
        f"{paths[0]} nor at {paths[1]}: put it there, since rows of tokens go by their texts"
    )
