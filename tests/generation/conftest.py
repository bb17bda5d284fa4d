"""A model with random weights and all that belongs to it, as `restore_model` gives them."""

import jax
import numpy as np
import pytest
from flax import nnx

from cm3leon_jax.config import BatchConfig, Config, MeshConfig, ModelConfig, SamplingConfig
from cm3leon_jax.documents import encode_png
from cm3leon_jax.generation.decoder import Decoder
from cm3leon_jax.generation.restoring import TrainedModel
from cm3leon_jax.model.sharding import make_mesh
from cm3leon_jax.model.transformer import Transformer


@pytest.fixture(scope="session")
def tiny_config(tiny_pictures) -> Config:
    """Pictures of 16 codes, documents of 160 tokens."""
    return Config(
        image_tokenizer=tiny_pictures,
        batch=BatchConfig(sequence_length=160),
        model=ModelConfig(
            num_layers=2, model_dim=32, num_heads=4, compute_dtype="float32", picture_places=16, position_init_std=0.1
        ),
        mesh=MeshConfig(fsdp=1),
        sampling=SamplingConfig(max_text_tokens=6, batch_size=8),
    )


def random_model(config: Config, vocabulary, image_tokenizer, mesh: MeshConfig) -> TrainedModel:
    length = config.batch.sequence_length
    model = Transformer(config.model, vocabulary.size, length, nnx.Rngs(0))
    # Big random outputs, so that answers depend on everything that a token may attend to.
    for index, parameter in enumerate((model.blocks.attention.output, model.blocks.feed_forward.down)):
        parameter.set_value(jax.random.normal(jax.random.key(index), parameter.get_value().shape))
    size = max(1, mesh.replica) * mesh.fsdp * mesh.tensor
    devices = make_mesh(mesh, jax.devices()[:size])
    graph, parameters = nnx.split(model)
    decoder = Decoder(config.model, vocabulary, length, devices)
    decoder.load(parameters)
    return TrainedModel(3, graph, parameters, decoder, devices, vocabulary, image_tokenizer)


@pytest.fixture(scope="session")
def trained(tiny_config, vocabulary, image_tokenizer) -> TrainedModel:
    return random_model(tiny_config, vocabulary, image_tokenizer, tiny_config.mesh)


@pytest.fixture
def folder(tmp_path):
    """A folder with a few pictures, and files that are none."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    for name, picture in zip("abc", pixels, strict=True):
        (tmp_path / f"{name}.png").write_bytes(encode_png(picture))
    (tmp_path / "broken.png").write_bytes(b"broken")
    return tmp_path
