"""Start a run from a Hugging Face folder: one that `cm3leon export` wrote, or any OPT (OPT-125M to 66B, Galactica).

Writes the parameters as the checkpoint of step 0, from which `cm3leon train` starts with a fresh optimizer, and the
folder's vocabulary and image tokenizer to where the config says. Around a text-only vocabulary the ids of images and
marks are laid; their rows of the embedding table, and positions beyond the folder's, are initialized as for a new run.

A CLIP folder becomes the run's encoder instead, at config.encoder.path.
"""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from cm3leon_jax import config_file
from cm3leon_jax.checkpoints import Checkpoints, abstract_on, flat
from cm3leon_jax.config import Config
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import read_object
from cm3leon_jax.huggingface.export_record import (
    IMAGE_TOKENIZER_FOLDER,
    RECORD_FILE,
    ExportRecord,
    read_record,
    refuse_other_weights,
)
from cm3leon_jax.huggingface.families import clip as clip_import
from cm3leon_jax.huggingface.families.opt_config import differences, model_fields
from cm3leon_jax.huggingface.families.opt_names import IN_LAYERS, OUTSIDE_LAYERS, PREFIX, TIED, Index, OptTensor, Shape
from cm3leon_jax.huggingface.reading_weights import StoredTensor, open_weights
from cm3leon_jax.huggingface.tokenizer_files import read_vocabulary
from cm3leon_jax.image_tokenizers.base import ImageTokenizer, architecture, load_image_tokenizer
from cm3leon_jax.lock import lock
from cm3leon_jax.models.sharding import make_mesh, parameter_name, shardings
from cm3leon_jax.models.transformer import Transformer, abstract_model
from cm3leon_jax.paths import input_path
from cm3leon_jax.progress import Progress
from cm3leon_jax.vocabulary import Vocabulary
from cm3leon_jax.weights import CONFIG_FILE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `import` takes beside the config."""
    parser.add_argument(
        "--from",
        required=True,
        dest="source",
        type=input_path("--from"),
        metavar="FOLDER",
        help="config.json, weights, tokenizer",
    )


def run(config: Config, workdir: Path, arguments: argparse.Namespace) -> int:
    """The command `cm3leon import`."""
    folder = Path(arguments.source)
    opt = read_object(folder / "config.json", f"the config.json of --from={folder}")
    if opt.get("model_type") == clip_import.MODEL_TYPE:
        return clip_import.run(config, folder, opt)
    with lock(workdir, "import"):
        return _run(config, workdir, folder, opt)


def _run(config: Config, workdir: Path, folder: Path, opt: dict[str, Any]) -> int:
    _refuse_a_run(workdir / "checkpoints")
    fields = model_fields(opt, f"{folder}/config.json")
    record = read_record(folder)
    weights = open_weights(folder)
    _refuse_another_table(weights, opt["vocab_size"], folder)
    vocabulary = read_vocabulary(folder, opt["vocab_size"], config)
    theirs = _folders_image_tokenizer(folder)
    _refuse_another_architecture(config, fields, vocabulary, theirs, record, folder)
    _refuse_other_files(record, vocabulary, theirs, folder)
    image_tokenizer = _refuse_what_is_there(config, vocabulary, theirs)

    refuse_other_weights(record, folder)
    mesh = make_mesh(config.mesh)
    _, abstract = abstract_model(config.model, vocabulary.size, config.batch.sequence_length)
    abstract = abstract_on(abstract, shardings(abstract, mesh))
    rows = {"token_embedding": opt["vocab_size"], "position_embedding": opt["max_position_embeddings"]}
    parameters = read_parameters(config, vocabulary, abstract, weights, rows, folder)
    num_tensors = len(weights)
    # Its files are mapped into memory, which the checkpoint needs.
    del weights

    if not (Path(config.vocabulary.path) / "tokenizer.json").exists():
        vocabulary.save(config.vocabulary.path)
    if theirs is not None and not (Path(config.image_tokenizer.path) / CONFIG_FILE).exists():
        theirs.save(config.image_tokenizer.path)
    meta = {
        "vocabulary": vocabulary.fingerprint,
        "corpus": {"image_tokenizer": image_tokenizer},
        "config": dataclasses.asdict(config),
        "imported": True,
    }
    config_file.save(config, workdir / "config.json")
    # Last: without it there is no run, and an import that was killed can be started again.
    with Checkpoints(workdir / "checkpoints", keep=config.train.keep_checkpoints) as opened:
        opened.save(0, {"parameters": parameters}, meta)
    _announce(config, vocabulary, num_tensors, parameters, opt, workdir)
    return 0


def read_parameters(
    config: Config,
    vocabulary: Vocabulary,
    abstract: nnx.State,
    weights: dict[str, StoredTensor],
    rows: dict[str, int],
    folder: Path,
) -> nnx.State:
    """The parameters on the mesh that `abstract` names; of the folder's tensors each device's part is read alone.

    Args:
      config: the run's.
      vocabulary: the run's.
      abstract: shapes and shardings of the parameters.
      weights: the folder's tensors.
      rows: of each parameter that may have other rows in the folder, how many that are; the others are those of a new
        run with this config.
      folder: named when something is wrong.

    Raises:
      UserError: names the first tensor that is missing, has another shape, or has no place in the model.
    """
    prefix = PREFIX if any(name.startswith(PREFIX) for name in weights) else ""
    wanted = flat(nnx.to_pure_dict(abstract))
    table = {**OUTSIDE_LAYERS, **IN_LAYERS}
    _refuse_other_tensors(wanted, weights, rows, prefix, folder)
    sources = {name: [weights[key] for key in _keys(prefix + table[name].name, leaf)] for name, leaf in wanted.items()}
    progress = Progress("import", len(wanted), unit="parameter")

    def read(path: tuple[Any, ...], leaf: nnx.Variable) -> nnx.Variable:
        name = parameter_name(path)
        shape, sharding = leaf.get_value().shape, leaf.get_value().sharding
        tensor, known = table[name], rows.get(name, shape[0])
        if name in IN_LAYERS:
            part = partial(_stack_part, tensor, sources[name], shape)
        else:
            part = partial(_part, tensor, sources[name][0], shape, known)
        array: jax.Array = jax.make_array_from_callback(shape, sharding, part)
        if known < shape[0]:
            array = _with_new_rows(config, vocabulary.size, name, array, known)
        progress.advance()
        return leaf.replace(array)

    try:
        return jax.tree_util.tree_map_with_path(read, abstract, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    finally:
        progress.close()


def _keys(name: str, leaf: Any) -> list[str]:
    return [name.format(layer) for layer in range(leaf.shape[0])] if "{}" in name else [name]


def _part(tensor: OptTensor, found: StoredTensor, shape: Shape, known: int, index: Index) -> Float[np.ndarray, "..."]:
    """A part of a parameter outside the layers; zeros in the rows past the `known` ones."""
    rows, *others = index
    start, stop, _ = rows.indices(shape[0])
    read = tensor.to_ours(found.read, shape, (slice(min(start, known), min(stop, known)), *others))
    missing = stop - start - len(read)
    return np.pad(read, [(0, missing)] + [(0, 0)] * len(others)) if missing else read


def _stack_part(tensor: OptTensor, found: list[StoredTensor], shape: Shape, index: Index) -> Float[np.ndarray, "..."]:
    layers, *others = index
    sizes = [len(range(*part.indices(size))) for part, size in zip(index, shape, strict=True)]
    result = np.empty(sizes, np.float32)
    for place, source in enumerate(found[layers]):
        result[place] = tensor.to_ours(source.read, shape[1:], tuple(others))
    return result


def _with_new_rows(
    config: Config, vocabulary_size: int, name: str, known: Float[Array, "R D"], num_known: int
) -> Float[Array, "R D"]:
    """The first rows as they are, the others as a new run of this config begins with them."""

    def drawn() -> Float[Array, "R D"]:
        # The compiler drops all but the one table.
        rngs = nnx.Rngs(config.train.seed)
        return getattr(Transformer(config.model, vocabulary_size, config.batch.sequence_length, rngs), name)[...]

    def joined(known: Float[Array, "R D"]) -> Float[Array, "R D"]:
        return jnp.where(jnp.arange(len(known))[:, None] < num_known, known, drawn())

    return jax.jit(joined, out_shardings=known.sharding, donate_argnums=0)(known)


def _refuse_other_tensors(
    wanted: dict[str, Any], weights: dict[str, StoredTensor], rows: dict[str, int], prefix: str, folder: Path
) -> None:
    expected: dict[str, Shape] = {}
    for name, leaf in wanted.items():
        tensor = IN_LAYERS.get(name) or OUTSIDE_LAYERS[name]
        shape = (rows[name], *leaf.shape[1:]) if name in rows else leaf.shape
        shape = tensor.shape(shape[1:] if name in IN_LAYERS else shape)
        expected |= dict.fromkeys(_keys(prefix + tensor.name, leaf), shape)
    for key in sorted(expected.keys() | (weights.keys() - {TIED, PREFIX + TIED})):
        shapes = (weights[key].shape if key in weights else "absent", expected.get(key, "absent"))
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{folder}: tensor {key} is {shapes[0]}, by config.json it has to be {shapes[1]}: they do not belong "
                "together"
            )


def _refuse_a_run(checkpoints: Path) -> None:
    """Refuses a folder with a complete step; what an import that was killed left there is no run."""
    if not checkpoints.is_dir():
        return
    with Checkpoints(checkpoints, keep=1, read_only=True) as opened:
        if opened.latest_step is not None:
            raise UserError(
                f"{checkpoints.parent} holds a run already: give another --workdir, or delete {checkpoints}"
            )


def _refuse_another_table(weights: dict[str, StoredTensor], rows: int, folder: Path) -> None:
    """Compares vocab_size with the table itself, before as many ids are laid."""
    name = OUTSIDE_LAYERS["token_embedding"].name
    for key in (PREFIX + name, name):
        if key in weights and weights[key].shape[:1] != (rows,):
            raise UserError(
                f"{folder}: tensor {key} is {weights[key].shape}, by config.json it has to have {rows} rows: they do "
                "not belong together"
            )


def _folders_image_tokenizer(folder: Path) -> ImageTokenizer | None:
    path = folder / IMAGE_TOKENIZER_FOLDER
    return load_image_tokenizer(path) if path.exists() else None


def _refuse_another_architecture(
    config: Config,
    fields: dict[str, Any],
    vocabulary: Vocabulary,
    image_tokenizer: ImageTokenizer | None,
    record: ExportRecord | None,
    folder: Path,
) -> None:
    """Compares everything that decides the shapes of parameters; one line names all that is to change."""
    theirs = {
        "vocabulary.num_text_tokens": vocabulary.num_text_tokens,
        "vocabulary.num_masks": vocabulary.num_masks,
        "image_tokenizer.codebook_size": vocabulary.num_image_codes,
    }
    if image_tokenizer is not None:
        theirs |= flat({"image_tokenizer": architecture(image_tokenizer.config)})
    if record is not None:
        theirs["batch.sequence_length"] = record.sequence_length
    given = flat(dataclasses.asdict(config))
    wrong = differences(config.model, fields) + [
        f"config.{name} is {given.get(name)!r}, the folder has {value!r}"
        for name, value in theirs.items()
        if given.get(name) != value
    ]
    if wrong:
        raise UserError(f"{folder} is not the model of this config: {'; '.join(wrong)}")


def _refuse_other_files(
    record: ExportRecord | None, vocabulary: Vocabulary, image_tokenizer: ImageTokenizer | None, folder: Path
) -> None:
    """An exported folder whose files were exchanged is not the model that was exported."""
    if record is None:
        return
    found = {
        "vocabulary": (vocabulary.fingerprint, record.vocabulary),
        "image tokenizer": (None if image_tokenizer is None else image_tokenizer.fingerprint, record.image_tokenizer),
    }
    for name, (fingerprint, exported) in found.items():
        if fingerprint != exported:
            raise UserError(
                f"{folder}: its {name} has the fingerprint {fingerprint}, {RECORD_FILE} says {exported}: a file was "
                "exchanged; export it again"
            )


def _refuse_what_is_there(config: Config, vocabulary: Vocabulary, image_tokenizer: ImageTokenizer | None) -> str | None:
    """Refuses to mix the folder's files with others; returns the fingerprint of the run's image tokenizer, if any."""
    path = Path(config.vocabulary.path)
    if (path / "tokenizer.json").exists() and Vocabulary.load(path).fingerprint != vocabulary.fingerprint:
        raise UserError(
            f"config.vocabulary.path {path} holds another vocabulary than the folder's: name another path, or delete it"
        )
    path = Path(config.image_tokenizer.path)
    there = load_image_tokenizer(path) if (path / CONFIG_FILE).exists() else None
    if image_tokenizer is not None and there is not None and there.fingerprint != image_tokenizer.fingerprint:
        raise UserError(
            f"config.image_tokenizer.path {path} holds another image tokenizer than the folder's: name another path, "
            "or delete it"
        )
    found = image_tokenizer or there
    return None if found is None else found.fingerprint


def _announce(
    config: Config,
    vocabulary: Vocabulary,
    num_tensors: int,
    parameters: nnx.State,
    opt: dict[str, Any],
    workdir: Path,
) -> None:
    count = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    print(f"imported {count:,} parameters from {num_tensors} tensors into {workdir}/checkpoints/0")
    new = {
        "rows of the embedding table": (opt["vocab_size"], vocabulary.size),
        "positions": (opt["max_position_embeddings"], config.batch.sequence_length),
    }
    for what, (theirs, ours) in new.items():
        if theirs < ours:
            print(f"{what}: {theirs:,} are the folder's, {ours - theirs:,} are new")
        elif theirs > ours:
            print(f"{what}: the first {ours:,} of the folder's {theirs:,}")
    if not (Path(config.image_tokenizer.path) / CONFIG_FILE).exists():
        print(
            f"no image tokenizer yet: run `cm3leon train-image-tokenizer`, or put one at {config.image_tokenizer.path}"
        )
