"""Write the latest checkpoint as a Hugging Face folder that `transformers` loads as OPT.

The folder holds config.json, model.safetensors (in shards where it is large), the tokenizer's files,
generation_config.json, README.md (a model card), image_tokenizer/, and cm3leon.json, by which `cm3leon import` checks
it. Weights go from disk to disk a piece at a time.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cm3leon_jax.checkpoints import Checkpoints, StreamedParameters, check_same_model
from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import atomic_write_folder, read_object, write_json
from cm3leon_jax.huggingface.export_record import FORMAT_VERSION, IMAGE_TOKENIZER_FOLDER, RECORD_FILE
from cm3leon_jax.huggingface.families.opt_config import check_opt_can_express, opt_config
from cm3leon_jax.huggingface.families.opt_names import IN_LAYERS, OUTSIDE_LAYERS, PREFIX, OptTensor, Shape
from cm3leon_jax.huggingface.model_card import Training, model_card
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.huggingface.tokenizer_files import write_tokenizer
from cm3leon_jax.huggingface.writing_weights import DTYPES, LazyTensor, parse_size, write_weights
from cm3leon_jax.image_tokenizers.base import ImageTokenizer, load_image_tokenizer
from cm3leon_jax.lock import lock
from cm3leon_jax.models.transformer import abstract_model
from cm3leon_jax.newest_checkpoint import read_newest
from cm3leon_jax.paths import output_folder
from cm3leon_jax.progress import Progress
from cm3leon_jax.vocabulary import Vocabulary
from cm3leon_jax.weights import CONFIG_FILE

# Most bytes of a tensor's rows in memory, where its rows are stored as ours.
_PIECE_BYTES, _BYTES_A_VALUE = 16 << 20, 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `export` takes beside the config."""
    parser.add_argument("--format", choices=("huggingface",), default="huggingface", help="the only one so far")
    parser.add_argument(
        "--output",
        required=True,
        type=output_folder("--output"),
        metavar="FOLDER",
        help="a folder that is not there yet, or empty",
    )
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="type of the weights")
    parser.add_argument("--shard-size", default="5GB", metavar="BYTES", help="most bytes of a file of weights")


def run(config: Config, workdir: Path, arguments: argparse.Namespace) -> int:
    """The command `cm3leon export`."""
    output = Path(arguments.output)
    # Beside the folder, which has to be empty.
    with lock(output.parent, "export", f".{output.name}.lock"):
        return _run(config, workdir, arguments, output)


def _run(config: Config, workdir: Path, arguments: argparse.Namespace, output: Path) -> int:
    shard_bytes = parse_size(arguments.shard_size)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"--output={output} is there already: name another folder, or delete this one")
    check_opt_can_express(config.model)
    vocabulary = Vocabulary.load(config.vocabulary.path)

    def export(checkpoints: Checkpoints, step: int) -> None:
        meta, what = checkpoints.meta(step), f"the checkpoint {workdir}/checkpoints/{step}"
        vocabulary.check_fingerprint(meta["vocabulary"], what)
        check_same_model(meta, config, what)
        image_tokenizer = _image_tokenizer(config, meta)
        _, abstract = abstract_model(config.model, vocabulary.size, config.batch.sequence_length)
        parameters = checkpoints.streamed_parameters(step, abstract)
        tensors = list(opt_tensors(parameters))
        with atomic_write_folder(output) as folder:
            _write_small_files(folder, config, vocabulary, arguments.dtype, image_tokenizer)
            training = Training(meta, step, _manifest(config, meta), _evaluation(workdir), image_tokenizer is not None)
            card = model_card(
                config.model,
                vocabulary,
                config.batch.sequence_length,
                sum(map(math.prod, parameters.shapes().values())),
                config.image_tokenizer.image_length,
                training,
            )
            (folder / "README.md").write_text(card, encoding="utf-8")
            progress = Progress("export", len(tensors), unit="tensor")
            try:
                sums = write_weights(folder, tensors, arguments.dtype, shard_bytes, progress.advance)
            finally:
                progress.close()
            parameters.check()
            _write_record(folder, config, vocabulary, meta, step, arguments.dtype, image_tokenizer, sums)
            size = sum((folder / name).stat().st_size for name in sums)
        print(f"exported step {step:,} to {output}: {size / 1e6:,.1f} MB of {arguments.dtype} in {len(sums)} file(s)")

    read_newest(workdir, config.train.keep_checkpoints, export)
    return 0


def opt_tensors(parameters: StreamedParameters) -> Iterator[LazyTensor]:
    """All tensors of OPT, given the parameters of a checkpoint; nothing is read yet."""
    shapes = parameters.shapes()
    unknown = shapes.keys() - OUTSIDE_LAYERS.keys() - IN_LAYERS.keys()
    assert not unknown, f"opt_names.py has no row for {unknown}"
    for name, tensor in OUTSIDE_LAYERS.items():
        if name in shapes:
            pieces = partial(_pieces, tensor, parameters, name, shapes[name])
            yield LazyTensor(PREFIX + tensor.name, tensor.shape(shapes[name]), pieces)
    stacks = {name: tensor for name, tensor in IN_LAYERS.items() if name in shapes}
    for layer in range(shapes["blocks.attention.query"][0]):
        for name, tensor in stacks.items():
            pieces = partial(_pieces, tensor, parameters, name, shapes[name][1:], layer)
            yield LazyTensor(PREFIX + tensor.name.format(layer), tensor.shape(shapes[name][1:]), pieces)


def _pieces(
    tensor: OptTensor, parameters: StreamedParameters, name: str, shape: Shape, layer: int | None = None
) -> Iterator[np.ndarray]:
    """A parameter of `shape`, or one layer of a stack of such, as OPT has it."""
    if tensor.rows_in_front:
        yield np.zeros((tensor.rows_in_front, *shape[1:]), np.float32)
    rows = shape[0]
    step = max(1, _PIECE_BYTES // (math.prod(shape[1:]) * _BYTES_A_VALUE)) if tensor.is_by_rows else rows
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        if layer is None:
            yield tensor.from_ours(parameters.read(name, (start,), (stop,)))
        else:
            yield tensor.from_ours(parameters.read(name, (layer, start), (layer + 1, stop))[0])


def _image_tokenizer(config: Config, meta: dict[str, Any]) -> ImageTokenizer | None:
    """The one that the model was trained with; None where its parameters were imported without one."""
    path = Path(config.image_tokenizer.path)
    wanted = meta["corpus"]["image_tokenizer"]
    if wanted is None and not (path / CONFIG_FILE).exists():
        return None
    found = load_image_tokenizer(path)
    if wanted not in (None, found.fingerprint):
        raise UserError(
            f"{path} holds the image tokenizer {found.fingerprint}, the model was trained with {wanted}: "
            "point config.image_tokenizer.path to that one"
        )
    return found


def _write_small_files(
    folder: Path,
    config: Config,
    vocabulary: Vocabulary,
    dtype: str,
    image_tokenizer: ImageTokenizer | None,
) -> None:
    length = config.batch.sequence_length
    opt = opt_config(config.model, vocabulary.size, length, dtype)
    write_json(folder / "config.json", opt)
    ids = {name: opt[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", ids)
    write_tokenizer(folder, vocabulary, length)
    if image_tokenizer is not None:
        image_tokenizer.save(folder / IMAGE_TOKENIZER_FOLDER)


def _write_record(
    folder: Path,
    config: Config,
    vocabulary: Vocabulary,
    meta: dict[str, Any],
    step: int,
    dtype: str,
    image_tokenizer: ImageTokenizer | None,
    sums: dict[str, str],
) -> None:
    record = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "dtype": dtype,
        "sequence_length": config.batch.sequence_length,
        "model": meta["config"]["model"],
        "vocabulary": vocabulary.fingerprint,
        "image_tokenizer": None if image_tokenizer is None else image_tokenizer.fingerprint,
        "sha256": sums,
    }
    write_json(folder / RECORD_FILE, record)


def _manifest(config: Config, meta: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of the corpus that the model was trained on, if it is where the config says."""
    path = Path(config.corpus.path)
    if not (path / "manifest.json").exists():
        return None
    corpus = PreparedCorpus.open(path)
    return corpus.manifest if corpus.identity == meta["corpus"] else None


def _evaluation(workdir: Path) -> dict[str, float] | None:
    file = workdir / "evaluation.json"
    if not file.exists():
        return None
    stored = StoredConfig(read_object(file, "the run's evaluation"), str(file))
    # What had nothing to be measured on is not a number.
    return {name: stored.number(name) for name, value in stored.values.items() if value == value}
