"""A model with random weights and all that belongs to it, as `load_model` gives them."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from cm3leon_jax import config_file
from cm3leon_jax.checkpoints import Checkpoints
from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.config import BatchConfig
from cm3leon_jax.data.corpus.config import VocabularyConfig
from cm3leon_jax.generation.config import SamplingConfig
from cm3leon_jax.generation.load import TrainedModel
from cm3leon_jax.generation.sampler import Sampler
from cm3leon_jax.images import encode_png
from cm3leon_jax.models.config import MeshConfig, ModelConfig
from cm3leon_jax.models.sharding import make_mesh
from cm3leon_jax.models.transformer import Transformer


@pytest.fixture(scope="session")
def tiny_config(tiny_images) -> Config:
    """Images of 16 codes, documents of 160 tokens."""
    return Config(
        image_tokenizer=tiny_images,
        batch=BatchConfig(sequence_length=160),
        model=ModelConfig(
            num_layers=2,
            model_dim=32,
            num_heads=4,
            compute_dtype="float32",
            image_position_embedding=True,
            position_init_std=0.1,
        ),
        mesh=MeshConfig(fsdp=1),
        sampling=SamplingConfig(max_text_tokens=6, batch_size=8),
    )


def random_model(config: Config, vocabulary, image_tokenizer, mesh: MeshConfig) -> TrainedModel:
    length, image_length = config.batch.sequence_length, config.image_tokenizer.image_length
    model = Transformer(config.model, vocabulary.size, length, nnx.Rngs(0), image_length)
    # Big random outputs, so that answers depend on everything that a token may attend to.
    for index, parameter in enumerate((model.blocks.attention.output, model.blocks.feed_forward.down)):
        parameter.set_value(jax.random.normal(jax.random.key(index), parameter.get_value().shape))
    size = (mesh.replica or 1) * mesh.fsdp * mesh.tensor
    devices = make_mesh(mesh, jax.devices()[:size])
    graph, parameters = nnx.split(model)
    sampler = Sampler(config.model, vocabulary, length, devices, image_length)
    sampler.load(parameters)
    return TrainedModel(3, graph, parameters, sampler, devices, vocabulary, image_tokenizer)


@pytest.fixture(scope="session")
def trained(tiny_config, vocabulary, image_tokenizer) -> TrainedModel:
    return random_model(tiny_config, vocabulary, image_tokenizer, tiny_config.mesh)


@pytest.fixture
def folder(tmp_path):
    """A folder with a few images, and files that are none."""
    write_images(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"broken")
    return tmp_path


@pytest.fixture(scope="session")
def saved_run(tmp_path_factory, tiny_config, trained) -> Path:
    """The folder of a run whose checkpoint holds the random model, with images to ask about beside it."""
    workdir = tmp_path_factory.mktemp("saved") / "run"
    config = dataclasses.replace(
        tiny_config,
        vocabulary=VocabularyConfig(path=str(workdir / "vocabulary")),
        image_tokenizer=dataclasses.replace(tiny_config.image_tokenizer, path=str(workdir / "image_tokenizer")),
        mesh=MeshConfig(fsdp=-1),
    )
    trained.vocabulary.save(config.vocabulary.path)
    trained.image_tokenizer.save(config.image_tokenizer.path)
    meta = {
        "vocabulary": trained.vocabulary.fingerprint,
        "corpus": {"image_tokenizer": trained.image_tokenizer.fingerprint},
        "config": dataclasses.asdict(config),
    }
    with Checkpoints(workdir / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(3, {"parameters": trained.parameters}, meta)
    config_file.save(config, workdir / "config.json")
    write_images(workdir.parent)
    return workdir


def write_images(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    for name, image in zip("abc", pixels, strict=True):
        (folder / f"{name}.png").write_bytes(encode_png(image))
