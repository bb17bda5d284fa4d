"""OPT's config.json in our fields."""

import dataclasses

import pytest

from cm3leon_jax import config_file
from cm3leon_jax.huggingface.families.opt_config import differences, model_fields, opt_config
from cm3leon_jax.models.config import ModelConfig


@pytest.mark.parametrize("file", ["configs/cm3leon_350m.py", "configs/cm3leon_7b.py", "configs/opt_125m.py"])
def test_there_and_back_says_the_same(file, tmp_path):
    model = config_file.load(file, str(tmp_path)).model
    found = model_fields(opt_config(model, 1024, 64, "float32"), "it")
    assert not differences(model, found)
    assert dataclasses.replace(model, **found) == model


def test_the_config_for_opt_125m_is_what_transformers_calls_so(tmp_path, transformers):
    config = config_file.load("configs/opt_125m.py", str(tmp_path))
    theirs = transformers.OPTConfig().to_dict()
    assert not differences(config.model, model_fields(theirs, "it"))
    assert config.vocabulary.num_text_tokens + 4 == theirs["vocab_size"]
    assert config.batch.sequence_length == theirs["max_position_embeddings"]


def test_zero_stands_for_the_width_of_the_folder():
    wide = opt_config(ModelConfig(model_dim=64, num_heads=4, ffn_dim=256, embedding_dim=64), 128, 8, "float32")
    found = model_fields(wide, "it")
    assert not differences(dataclasses.replace(ModelConfig(num_heads=4), model_dim=64), found)
    narrow = ModelConfig(num_heads=4, model_dim=32, ffn_dim=256)
    assert differences(narrow, found) == ["config.model.model_dim is 32, the folder has 64"]
    other = ModelConfig(num_heads=4, model_dim=64, ffn_dim=200, embedding_dim=16)
    assert differences(other, found) == [
        "config.model.ffn_dim is 200, the folder has 0",
        "config.model.embedding_dim is 16, the folder has 0",
    ]


@pytest.mark.parametrize("name", ["gelu_new", "gelu_python_tanh", "gelu_pytorch_tanh"])
def test_the_approximate_function_has_several_names(name):
    theirs = opt_config(ModelConfig(), 128, 8, "float32") | {"activation_function": name}
    assert model_fields(theirs, "it")["activation"] == "gelu_tanh"
