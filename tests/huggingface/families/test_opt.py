"""OPT's config.json in our fields."""

import dataclasses

import pytest

from cm3leon_jax import config_file
from cm3leon_jax.huggingface.decoders import model_differences
from cm3leon_jax.huggingface.families.opt import FAMILY
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.models.config import ModelConfig


def written(model):
    return FAMILY.write_config(model, 1024, 64, "float32")


def read(stored):
    return FAMILY.model_fields(StoredConfig(stored, "it"))


@pytest.mark.parametrize("file", ["configs/cm3leon_350m.py", "configs/cm3leon_7b.py", "configs/opt_125m.py"])
def test_there_and_back_says_the_same(file, tmp_path):
    model = config_file.load(file, str(tmp_path)).model
    found = read(written(model))
    assert not model_differences(model, found) and not FAMILY.cannot_express(model)
    assert dataclasses.replace(model, **found) == model


def test_the_config_for_opt_125m_is_what_transformers_calls_so(tmp_path, transformers):
    config = config_file.load("configs/opt_125m.py", str(tmp_path))
    theirs = transformers.OPTConfig().to_dict()
    assert not model_differences(config.model, read(theirs))
    assert config.vocabulary.num_text_tokens + 4 == theirs["vocab_size"]
    assert config.batch.sequence_length == theirs["max_position_embeddings"]


def test_none_stands_for_the_width_of_the_folder():
    wide = read(written(ModelConfig(model_dim=64, num_heads=4, ffn_dim=256, embedding_dim=64)))
    assert not model_differences(dataclasses.replace(ModelConfig(num_heads=4), model_dim=64), wide)
    narrow = ModelConfig(num_heads=4, model_dim=32, ffn_dim=256)
    assert model_differences(narrow, wide) == ["config.model.model_dim is 32, the folder has 64"]
    other = ModelConfig(num_heads=4, model_dim=64, ffn_dim=200, embedding_dim=16)
    assert model_differences(other, wide) == [
        "config.model.ffn_dim is 200, the folder has None",
        "config.model.embedding_dim is 16, the folder has None",
    ]


@pytest.mark.parametrize("name", ["gelu_new", "gelu_python_tanh", "gelu_pytorch_tanh"])
def test_the_approximate_function_has_several_names(name):
    assert read(written(ModelConfig()) | {"activation_function": name})["activation"] == "gelu_tanh"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (dict(positions="rotary"), "positions is 'rotary' and can only be 'learned'"),
        (dict(positions="learned+rotary"), "positions is 'learned+rotary'"),
        (dict(image_position_embedding=True), "image_position_embedding is True"),
        (dict(layer_norm_epsilon=1e-6), "layer_norm_epsilon is 1e-06"),
        (dict(norm="rms"), "norm is 'rms' and can only be 'layer'"),
        (dict(num_key_value_heads=2), "num_key_value_heads is 2 and can only be None"),
        (dict(gated=True), "gated is True"),
        (dict(query_key_norm="rms"), "query_key_norm is 'rms'"),
        (dict(tied_embeddings=False), "tied_embeddings is False"),
        (dict(norm_position="output"), "norm_position is 'output'"),
        (dict(activation="silu"), "activation is 'silu'"),
    ],
)
def test_what_has_no_field_cannot_be_expressed(changes, field):
    (phrase,) = FAMILY.cannot_express(ModelConfig(**changes))
    assert f"config.model.{field}" in phrase
