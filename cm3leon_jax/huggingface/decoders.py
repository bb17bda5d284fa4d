"""Families whose models are values of ModelConfig: what one is, and how a folder of one starts a run.

An import writes the parameters as the checkpoint of step 0, from which `cm3leon train` starts with a fresh optimizer.
A text-only vocabulary gets the ids of images and special tokens in addition; their rows of the embedding table and of
the LM head are sampled like those of the text tokens, and positions beyond the folder's are initialized as for a new
run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32

from cm3leon_jax import config_file
from cm3leon_jax.checkpoints import Checkpoints, abstract_on, flat
from cm3leon_jax.config import Config
from cm3leon_jax.config_file import stored_values
from cm3leon_jax.errors import UserError
from cm3leon_jax.huggingface.export_record import IMAGE_TOKENIZER_FOLDER, ExportRecord
from cm3leon_jax.huggingface.new_rows import sample_rows
from cm3leon_jax.huggingface.reading_weights import Index, StoredTensor, open_weights, weight_files
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.huggingface.tensor_map import Shape, TensorMap, check_tensors
from cm3leon_jax.huggingface.tokenizer_files import read_vocabulary
from cm3leon_jax.huggingface.writing_weights import LazyTensor
from cm3leon_jax.image_tokenizers.base import ImageTokenizer, architecture, load_image_tokenizer
from cm3leon_jax.lock import lock
from cm3leon_jax.models.config import ModelConfig
from cm3leon_jax.models.sharding import make_mesh, parameter_name, shardings
from cm3leon_jax.models.transformer import Transformer, abstract_model
from cm3leon_jax.named_parameters import named_generator
from cm3leon_jax.progress import Progress
from cm3leon_jax.vocabulary import Vocabulary
from cm3leon_jax.weights import CONFIG_FILE

log = logging.getLogger(__name__)

# Fields that say how a model is computed or begun, and not what it is.
_NOT_ARCHITECTURE = ("attention", "remat", "scan_layers", "compute_dtype", "init_std", "position_init_std")
_PLAIN = {name: value for name, value in dataclasses.asdict(ModelConfig()).items() if name not in _NOT_ARCHITECTURE}
# Before most names in a whole model; some published folders leave it out.
_PREFIX = "model."


def _no_window(stored: StoredConfig) -> None:
    return None


def exported_image_tokenizer(config: Config, folder: Path) -> ImageTokenizer | None:
    """The image tokenizer that `cm3leon export` wrote beside the weights; None of a folder from elsewhere."""
    del config
    path = folder / IMAGE_TOKENIZER_FOLDER
    return load_image_tokenizer(path) if path.exists() else None


@dataclasses.dataclass(frozen=True)
class OtherParts:
    """What a folder holds besides its decoder."""

    # Fields of config.json.
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tensors: Sequence[LazyTensor] = ()


def _no_parts(vocabulary: Vocabulary, image_tokenizer: ImageTokenizer | None) -> OtherParts:
    return OtherParts()


@dataclasses.dataclass(frozen=True)
class DecoderFamily:
    """What another project calls the values and the parameters of our transformer."""

    model_type: str
    # By the names of our parameters, in the order in which a forward pass needs them.
    tensors: Mapping[str, TensorMap]
    # The fields of ModelConfig that a config.json says; the others have their defaults.
    read_config: Callable[[StoredConfig], dict[str, Any]]
    # The config.json of a model, its vocabulary size, sequence length and dtype; None: folders are only read.
    write_config: Callable[[ModelConfig, int, int, str], dict[str, Any]] | None = None
    # Patterns of tensors that a folder may have besides.
    ignored: tuple[str, ...] = ()
    # How many tokens, itself included, a token attends to by a config.json, at least in some layers; None: to all.
    attention_window: Callable[[StoredConfig], int | None] = _no_window
    # The file that says a folder's values.
    config_file: str = "config.json"
    # All tensors of a folder but those of such names.
    open_tensors: Callable[[Path, tuple[str, ...]], dict[str, StoredTensor]] = open_weights
    # The vocabulary of a folder, whose embedding table has so many rows.
    read_vocabulary: Callable[[Path, int, Config], Vocabulary] = read_vocabulary
    # The image tokenizer that a folder brings; the second argument is the folder.
    read_image_tokenizer: Callable[[Config, Path], ImageTokenizer | None] = exported_image_tokenizer
    # What else is written, of the run's vocabulary and image tokenizer.
    write_parts: Callable[[Vocabulary, ImageTokenizer | None], OtherParts] = _no_parts

    def model_fields(self, stored: StoredConfig) -> dict[str, Any]:
        """Every field of ModelConfig that says what a model is; refuses what no field says."""
        return _PLAIN | self.read_config(stored)

    def cannot_express(self, config: ModelConfig) -> list[str]:
        """One phrase per field of a model that its config.json would not give back."""
        assert self.write_config is not None
        written = StoredConfig(self.write_config(config, 1, 1, "float32"), self.model_type)
        return [
            f"config.model.{name} is {ours!r} and can only be {theirs!r}"
            for name, ours, theirs in _differences(config, self.model_fields(written))
        ]

    def import_folder(self, config: Config, workdir: Path, folder: Path, stored: Mapping[str, Any]) -> None:
        """Starts a run in `workdir` from a folder, whose config.json is, or would be, `stored`."""
        with lock(workdir, "import", subfolders=False):
            _import_folder(self, config, workdir, folder, StoredConfig(stored, f"{folder}/{self.config_file}"))

    def open_weights(self, folder: Path, fields: Mapping[str, Any]) -> dict[str, StoredTensor]:
        """The tensors of a folder, given the fields of its model: a tied LM head may be stored besides."""
        is_tied = fields["tied_embeddings"] and "output_embedding" in self.tensors
        tied = (self.tensors["output_embedding"].name,) if is_tied else ()
        return self.open_tensors(folder, (*self.ignored, *tied))

    def tables(self, rows: int, positions: int) -> dict[str, int]:
        """The parameters that may have other rows in a folder than in the run, with their rows in the folder."""
        return {"token_embedding": rows, "output_embedding": rows, "position_embedding": positions}


def common_config(
    model_type: str, config: ModelConfig, vocabulary_size: int, sequence_length: int, dtype: str
) -> dict[str, Any]:
    """The fields of a config.json that every family of `transformers` has under the same names."""
    return {
        "model_type": model_type,
        "dtype": dtype,
        # The name of the same before transformers 4.56.
        "torch_dtype": dtype,
        "vocab_size": vocabulary_size,
        "hidden_size": config.model_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": sequence_length,
        "attention_dropout": 0.0,
        "use_cache": True,
    }


def model_differences(config: ModelConfig, fields: Mapping[str, Any]) -> list[str]:
    """One phrase per field in which a model differs from a folder's."""
    return [
        f"config.model.{name} is {ours!r}, the folder has {theirs!r}"
        for name, ours, theirs in _differences(config, fields)
    ]


def _differences(config: ModelConfig, fields: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    given, width = dataclasses.asdict(config), fields["model_dim"]
    implied = {"ffn_dim": 4 * width, "embedding_dim": width, "num_key_value_heads": fields["num_heads"]}
    implied |= {} if width % fields["num_heads"] else {"head_size": width // fields["num_heads"]}
    for name, value in implied.items():
        given[name] = None if given[name] == value else given[name]
    return [(name, given[name], value) for name, value in fields.items() if given[name] != value]


def _import_folder(family: DecoderFamily, config: Config, workdir: Path, folder: Path, stored: StoredConfig) -> None:
    _refuse_existing_run(workdir / "checkpoints")
    fields = family.model_fields(stored)
    rows, positions = stored.size("vocab_size"), stored.size("max_position_embeddings")
    _check_window(family.attention_window(stored), config.batch.sequence_length, stored.where)
    record = ExportRecord.read(folder)
    weights = family.open_weights(folder, fields)
    if not any(name.startswith(_PREFIX) for name in weights):
        weights = {_PREFIX + name: tensor for name, tensor in weights.items()}
    _check_table(family, weights, rows, folder)
    vocabulary = family.read_vocabulary(folder, rows, config)
    image_tokenizer = family.read_image_tokenizer(config, folder)
    _check_architecture(config, fields, vocabulary, image_tokenizer, record, folder)
    if record is not None:
        fingerprint = None if image_tokenizer is None else image_tokenizer.fingerprint
        record.check_files(vocabulary.fingerprint, fingerprint, folder)
    used_image_tokenizer = _check_paths(config, vocabulary, image_tokenizer)
    if record is not None:
        record.check_weights(weight_files(folder))

    mesh = make_mesh(config.mesh)
    length, image_length = config.batch.sequence_length, config.image_tokenizer.image_length
    _, abstract = abstract_model(config.model, vocabulary.size, length, image_length)
    abstract = abstract_on(abstract, shardings(abstract, mesh))
    new_rows = partial(_new_rows, family, config, vocabulary, weights, rows)
    parameters = read_parameters(family, abstract, weights, family.tables(rows, positions), new_rows, folder)
    num_tensors = len(weights)
    # Its files are mapped into memory, which the checkpoint needs.
    del weights

    if not (Path(config.vocabulary.path) / "tokenizer.json").exists():
        vocabulary.save(config.vocabulary.path)
    if image_tokenizer is not None and not (Path(config.image_tokenizer.path) / CONFIG_FILE).exists():
        image_tokenizer.save(config.image_tokenizer.path)
    meta = {
        "vocabulary": vocabulary.fingerprint,
        "corpus": {"image_tokenizer": used_image_tokenizer},
        "config": stored_values(config),
        "imported": True,
    }
    config_file.save(config, workdir / "config.json")
    # Last: without it there is no run, and an import that was killed can be started again.
    with Checkpoints(workdir / "checkpoints", keep=config.train.keep_checkpoints) as opened:
        opened.save(0, {"parameters": parameters}, meta)

    count = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    log.info(f"imported {count:,} parameters from {num_tensors} tensors into {workdir}/checkpoints/0")
    _log_rows("rows of the embedding table", rows, vocabulary.size)
    if "position_embedding" in parameters:
        _log_rows("positions", positions, length)
    if not (Path(config.image_tokenizer.path) / CONFIG_FILE).exists():
        log.info(
            f"no image tokenizer yet: run `cm3leon train-image-tokenizer`, or put one at {config.image_tokenizer.path}"
        )


def read_parameters(
    family: DecoderFamily,
    abstract: nnx.State,
    weights: Mapping[str, StoredTensor],
    tables: Mapping[str, int],
    new_rows: Callable[[str, int], Float32[np.ndarray, "n D"]],
    folder: Path,
) -> nnx.State:
    """The parameters on the mesh that `abstract` names; of the folder's tensors each device's part is read alone.

    `tables` are how many rows the folder has of each parameter that may have others than the run; `new_rows` gives
    those that the folder lacks, so many of the parameter of a name.

    Raises a `UserError` that names the first tensor that is missing, has another shape, or has no place in the model.
    """
    shapes = {name: leaf.shape for name, leaf in flat(nnx.to_pure_dict(abstract)).items()}
    in_folder = {name: (tables.get(name, shape[0]), *shape[1:]) for name, shape in shapes.items()}
    if unknown := sorted(shapes.keys() - family.tensors.keys()):
        raise UserError(f"{folder}: a {family.model_type} has no parameters {', '.join(unknown)}; change config.model")
    check_tensors(family.tensors, in_folder, weights, folder)

    def read(path: tuple[Any, ...], leaf: nnx.Variable) -> nnx.Variable:
        name = parameter_name(path)
        shape, sharding, known = shapes[name], leaf.get_value().sharding, in_folder[name][0]
        tensor = family.tensors[name]
        new = new_rows(name, shape[0] - known) if known < shape[0] else None
        part = partial(_read_part, tensor, [weights[key] for key in tensor.names(shape)], shape, known, new)
        array: jax.Array = jax.make_array_from_callback(shape, sharding, part)
        progress.advance()
        return leaf.replace(array)

    with contextlib.closing(Progress("import", len(shapes), unit="parameter")) as progress:
        return jax.tree_util.tree_map_with_path(read, abstract, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def _read_part(
    tensor: TensorMap,
    stored: list[StoredTensor],
    shape: Shape,
    known: int,
    new: Float32[np.ndarray, "n D"] | None,
    index: Index,
) -> Float[np.ndarray, "..."]:
    """A part of a parameter; new ones are the rows past the `known` ones."""
    rows, *others = index
    start, stop, _ = rows.indices(shape[0])
    read = tensor.read(stored, shape, (slice(min(start, known), min(stop, known)), *others))
    if new is None:
        return read
    added = new[(slice(max(start - known, 0), max(stop - known, 0)), *others)]
    return np.concatenate([read, added])


def _new_rows(
    family: DecoderFamily,
    config: Config,
    vocabulary: Vocabulary,
    weights: Mapping[str, StoredTensor],
    rows: int,
    name: str,
    count: int,
) -> Float32[np.ndarray, "n D"]:
    """Rows of a table that the folder lacks: of tokens by those of the folder, of positions as in a new run."""
    if name == "position_embedding":
        return _new_positions(config, vocabulary.size)[-count:]
    tensor = family.tensors[name]
    stored = weights[tensor.name]

    def read(start: int, stop: int) -> Float32[np.ndarray, "r D"]:
        return tensor.read([stored], stored.shape, (slice(start, stop), slice(None)))

    is_used = np.array([vocabulary.name(index) != f"<unused:{index}>" for index in range(rows)])
    return sample_rows(read, is_used, count, named_generator(config.train.seed, name))


def _new_positions(config: Config, vocabulary_size: int) -> Float32[np.ndarray, "L D"]:
    """The table of positions as a new run of this config begins with it."""

    def table() -> Float[Array, "L D"]:
        # The compiler drops all but the one table.
        rngs, image_length = nnx.Rngs(config.train.seed), config.image_tokenizer.image_length
        model = Transformer(config.model, vocabulary_size, config.batch.sequence_length, rngs, image_length)
        return model.position_embedding[...]

    return np.asarray(jax.jit(table)())


def _refuse_existing_run(checkpoints: Path) -> None:
    """Refuses a folder with a complete step; what a killed import left there is no run."""
    if not checkpoints.is_dir():
        return
    with Checkpoints(checkpoints, keep=1, read_only=True) as opened:
        if opened.latest_step is not None:
            raise UserError(
                f"{checkpoints.parent} holds a run already: give another --workdir, or delete {checkpoints}"
            )


def _check_window(window: int | None, sequence_length: int, where: str) -> None:
    """Refuses a sliding window that rows of the run would outgrow: our attention sees a whole document."""
    if window is not None and window < sequence_length:
        raise UserError(
            f"{where}: a token attends to {window:,} tokens (sliding_window), which this package's model cannot "
            f"express for the longer config.batch.sequence_length {sequence_length:,}: set that to at most {window:,}"
        )


def _check_table(family: DecoderFamily, weights: Mapping[str, StoredTensor], rows: int, folder: Path) -> None:
    """Compares vocab_size with the embedding table, before a vocabulary of that size is built."""
    name = family.tensors["token_embedding"].name
    if name in weights and weights[name].shape[:1] != (rows,):
        raise UserError(
            f"{folder}: tensor {name} is {weights[name].shape}, by config.json it has to have {rows} rows: they do not "
            "belong together"
        )


def _check_architecture(
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
        theirs |= flat({"image_tokenizer": architecture(image_tokenizer.config, with_defaults=True)})
    if record is not None:
        theirs["batch.sequence_length"] = record.sequence_length
    given = flat(dataclasses.asdict(config))
    wrong = model_differences(config.model, fields) + [
        f"config.{name} is {given[name]!r}, the folder has {value!r}"
        for name, value in theirs.items()
        if given[name] != value
    ]
    if wrong:
        raise UserError(f"{folder} is not the model of this config: {'; '.join(wrong)}")


def _check_paths(config: Config, vocabulary: Vocabulary, image_tokenizer: ImageTokenizer | None) -> str | None:
    """Refuses to mix the folder's files with others; returns the fingerprint of the run's image tokenizer, if any."""
    path = Path(config.vocabulary.path)
    if (path / "tokenizer.json").exists() and Vocabulary.load(path).fingerprint != vocabulary.fingerprint:
        raise other_at("vocabulary", path)
    path = Path(config.image_tokenizer.path)
    present = load_image_tokenizer(path) if (path / CONFIG_FILE).exists() else None
    if image_tokenizer is not None and present is not None and present.fingerprint != image_tokenizer.fingerprint:
        raise other_at("image_tokenizer", path)
    found = image_tokenizer or present
    return None if found is None else found.fingerprint


def other_at(part: str, path: Path) -> UserError:
    """What to raise where a part of the config has its files already, of something else than the folder's."""
    what = f"holds another {part.replace('_', ' ')} than the folder's: name another path, or delete it"
    return UserError(f"config.{part}.path {path} {what}")


def _log_rows(what: str, theirs: int, ours: int) -> None:
    if theirs < ours:
        log.info(f"{what}: {theirs:,} are the folder's, {ours - theirs:,} are new")
    elif theirs > ours:
        log.info(f"{what}: the first {ours:,} of the folder's {theirs:,}")
