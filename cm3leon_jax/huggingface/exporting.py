"""Writes a checkpoint as a Hugging Face folder that `transformers` loads.

Besides its usual files the folder holds image_tokenizer/, vllm_guidance.py, and cm3leon.json, by which `cm3leon import`
checks it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import shutil
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from cm3leon_jax.checkpoints import Checkpoints, StreamedParameters, check_same_model, flat
from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import atomic_write_folder, read_object, write_json
from cm3leon_jax.huggingface.decoders import DecoderFamily
from cm3leon_jax.huggingface.export_record import FORMAT_VERSION, IMAGE_TOKENIZER_FOLDER, RECORD_FILE, file_sums
from cm3leon_jax.huggingface.families import FAMILIES
from cm3leon_jax.huggingface.model_card import Training, model_card
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.huggingface.tensor_map import Shape, TensorMap
from cm3leon_jax.huggingface.tokenizer_files import token_ids, write_tokenizer
from cm3leon_jax.huggingface.writing_weights import LazyTensor, write_weights
from cm3leon_jax.image_tokenizers.base import ImageTokenizer, load_image_tokenizer
from cm3leon_jax.models.config import ModelConfig
from cm3leon_jax.models.transformer import abstract_model
from cm3leon_jax.newest_checkpoint import read_newest
from cm3leon_jax.progress import Progress
from cm3leon_jax.vocabulary import Vocabulary
from cm3leon_jax.weights import CONFIG_FILE

log = logging.getLogger(__name__)

VLLM_GUIDANCE = "vllm_guidance.py"


def choose_family(config: ModelConfig, name: str | None = None) -> DecoderFamily:
    """The family of this name, or the first that can express a model.

    Raises a `UserError` that names every field that the family, or the one that is nearest, cannot express.
    """
    found = [FAMILIES.load(entry) for entry in ([name] if name else FAMILIES)]
    families = [family for family in found if isinstance(family, DecoderFamily) and family.write_config is not None]
    if not families:
        raise UserError(f"--family={name} can only be imported")
    nearest = min(families, key=lambda family: len(family.cannot_express(config)))
    if wrong := nearest.cannot_express(config):
        fitting = _fitting_family(config) if name else None
        fix = f"--family={fitting} can" if fitting else "a model that is to be exported has to be trained without"
        raise UserError(
            f"a Hugging Face folder ({nearest.model_type}) cannot express this model: {'; '.join(wrong)}; {fix}"
        )
    return nearest


def _fitting_family(config: ModelConfig) -> str | None:
    """The name of a family that can express a model, if there is one."""
    try:
        return choose_family(config).model_type
    except UserError:
        return None


def with_materialized_norms(config: ModelConfig) -> ModelConfig:
    """The model whose norms have the scales (ones) and shifts (zeros) that those of `config` do without."""
    return dataclasses.replace(config, norm_scale_and_bias=True)


def export_run(
    config: Config, workdir: Path, output: Path, model: ModelConfig, family: DecoderFamily, dtype: str, shard_bytes: int
) -> None:
    """Writes the latest sound checkpoint of a run to `output`, a folder that is not there yet or empty.

    `model` is the model as the folder has it: the run's, or that `with_materialized_norms`.
    """
    vocabulary = Vocabulary.load(config.vocabulary.path)
    length, image_length = config.batch.sequence_length, config.image_tokenizer.image_length

    def export(checkpoints: Checkpoints, step: int) -> None:
        meta, what = checkpoints.meta(step), f"the checkpoint {workdir}/checkpoints/{step}"
        vocabulary.check_fingerprint(meta["vocabulary"], what)
        check_same_model(meta, config, what)
        image_tokenizer = _image_tokenizer(config, meta)
        _, abstract = abstract_model(config.model, vocabulary.size, length, image_length)
        parameters = checkpoints.streamed_parameters(step, abstract)
        _, written = abstract_model(model, vocabulary.size, length, image_length)
        shapes = {name: leaf.shape for name, leaf in flat(nnx.to_pure_dict(written)).items()}
        parts = family.write_parts(vocabulary, image_tokenizer)
        tensors = [
            *lazy_tensors(family.tensors, parameters),
            *norm_tensors(family.tensors, shapes, parameters.shapes()),
            *parts.tensors,
        ]
        assert family.write_config is not None
        stored = {
            **family.write_config(model, vocabulary.size, length, dtype),
            **token_ids(vocabulary),
            **parts.fields,
        }
        with atomic_write_folder(output) as folder:
            write_json(folder / "config.json", stored)
            write_json(folder / "generation_config.json", token_ids(vocabulary))
            write_tokenizer(folder, vocabulary, length)
            if image_tokenizer is not None:
                image_tokenizer.save(folder / IMAGE_TOKENIZER_FOLDER)
            training = Training(meta, step, _manifest(config, meta), _evaluation(workdir), image_tokenizer is not None)
            shutil.copyfile(Path(__file__).with_name(VLLM_GUIDANCE), folder / VLLM_GUIDANCE)
            num_parameters = sum(map(math.prod, parameters.shapes().values()))
            card = model_card(config.model, stored, vocabulary, num_parameters, image_length, training)
            (folder / "README.md").write_text(f"{card}\n", encoding="utf-8")
            with contextlib.closing(Progress("export", len(tensors), unit="tensor")) as progress:
                files = write_weights(folder, tensors, dtype, shard_bytes, progress.advance)
            parameters.check()
            record = {
                "format_version": FORMAT_VERSION,
                "step": step,
                "dtype": dtype,
                "sequence_length": length,
                "model": meta["config"]["model"],
                "vocabulary": vocabulary.fingerprint,
                "ids": vocabulary.ids.ranges_by_modality,
                "image_tokenizer": None if image_tokenizer is None else image_tokenizer.fingerprint,
                "sha256": file_sums(files, "sums"),
            }
            write_json(folder / RECORD_FILE, record)
            size = sum(file.stat().st_size for file in files)
        log.info(f"exported step {step:,} to {output}: {size / 1e6:,.1f} MB of {dtype} in {len(files)} file(s)")

    read_newest(workdir, config.train.keep_checkpoints, export)


def lazy_tensors(table: Mapping[str, TensorMap], parameters: StreamedParameters) -> Iterator[LazyTensor]:
    """All tensors of a folder, given the parameters of a checkpoint; nothing is read yet."""
    shapes = parameters.shapes()
    assert shapes.keys() <= table.keys(), f"no tensor for {shapes.keys() - table.keys()}"

    def tensor(name: str, layer: int | None) -> LazyTensor:
        entry, shape = table[name], shapes[name]
        read = partial(_read_tensor, entry, parameters, name, layer)
        return LazyTensor(entry.name.format(layer), entry.shape(shape), read)

    yield from (tensor(name, None) for name in table if name in shapes and not table[name].is_stacked)
    stacked = [name for name in table if name in shapes and table[name].is_stacked]
    for layer in range(shapes[stacked[0]][0]):
        yield from (tensor(name, layer) for name in stacked)


def norm_tensors(
    table: Mapping[str, TensorMap], shapes: Mapping[str, Shape], stored: Collection[str]
) -> Iterator[LazyTensor]:
    """The tensors of norms that a folder has, by the `shapes` of its parameters, and a checkpoint has not."""
    for name in [name for name in table if name in shapes and name not in stored]:
        assert name.endswith(("norm.scale", "norm.bias")), name
        entry, shape, value = table[name], shapes[name], 1.0 if name.endswith("scale") else 0.0
        layer = shape[1:] if entry.is_stacked else shape
        for tensor in entry.names(shape):
            read = partial(entry.from_ours, np.full(layer, value, np.float32))
            yield LazyTensor(tensor, entry.shape(shape), read)


def _read_tensor(entry: TensorMap, parameters: StreamedParameters, name: str, layer: int | None) -> np.ndarray:
    if layer is None:
        return entry.from_ours(parameters.read(name, (), ()))
    return entry.from_ours(parameters.read(name, (layer,), (layer + 1,))[0])


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
