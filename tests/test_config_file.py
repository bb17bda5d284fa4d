"""Configs: every mistake is named, and every file in configs/ is right."""

from pathlib import Path

import pytest

from cm3leon_jax import config_file
from cm3leon_jax.config import Config
from cm3leon_jax.errors import UserError
from cm3leon_jax.model.transformer import parameter_count
from cm3leon_jax.vocabulary import padded_size

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture
def config_of(tmp_path):
    def load(body: str, overrides: dict[str, str] | None = None) -> Config:
        file = tmp_path / "configs" / "mine.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(
            "from ml_collections import ConfigDict\n"
            "def get_config(variant='small'):\n"
            "    config = ConfigDict()\n"
            f"    {body}\n"
            "    return config\n"
        )
        return config_file.load(str(file), "/runs/mine", overrides)

    return load


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.py")))
def test_every_config_file_loads(name):
    config_file.load(str(CONFIGS / name), "runs/x")


@pytest.mark.parametrize(("name", "billions"), [("350m", 0.374), ("760m", 0.787), ("7b", 6.73)])
def test_the_papers_configs_have_its_sizes(name, billions):
    config = config_file.load(str(CONFIGS / f"cm3leon_{name}.py"), "runs/x")
    size = padded_size(config.vocabulary.num_text_tokens, config.image_tokenizer.codebook_size, 512)
    assert parameter_count(config.model, size, config.batch.sequence_length) / 1e9 == pytest.approx(billions, rel=5e-3)
    # 8.4M tokens a step, and the 3% that hold a fourth picture whole.
    assert config.batch.batch_size * config.batch.sequence_length == pytest.approx(2**23, rel=0.04)
    assert config.image_tokenizer.image_length == 1024


def test_values_defaults_paths_and_overrides(config_of):
    config = config_of("config.model = dict(num_layers=3)", {"model.num_heads": "8", "corpus.mixture": "digits"})
    assert (config.model.num_layers, config.model.num_heads, config.model.model_dim) == (3, 8, 1024)
    assert config.corpus.mixture == "digits"
    assert config.vocabulary.path == "/runs/mine/vocabulary"


def test_numbers_that_mean_the_same_are_taken(config_of):
    config = config_of(
        "config.optimizer = dict(peak_learning_rate=1)",
        {"train.num_tokens": "1e9", "train.log_every": "1e2", "image_tokenizer.channel_multipliers": "[1, 1, 2, 2]"},
    )
    assert config.optimizer.peak_learning_rate == 1.0
    assert config.train.log_every == 100
    assert config.image_tokenizer.channel_multipliers == (1, 1, 2, 2)


@pytest.mark.parametrize(
    ("body", "overrides", "message"),
    [
        ("config.model = dict(num_layer=3)", {}, r"config.model.num_layer: no such field; did you mean num_layers"),
        ("config.modle = dict(num_layers=3)", {}, r"config.modle: no such field; did you mean model"),
        ("config.model = dict(num_layers='3')", {}, r"config.model.num_layers is '3', a str: it must be a int"),
        ("config.model = dict(num_layers=2.5)", {}, r"config.model.num_layers is 2.5, a float"),
        ("config.model = dict(scan_layers=1)", {}, r"config.model.scan_layers is 1, a int: it must be a bool"),
        ("config.model = 3", {}, r"config.model is 3"),
        ("pass", {"model.num_layrs": "3"}, r"--config.model.num_layrs: no such field; did you mean num_layers"),
        ("pass", {"model": "3"}, r"--config.model: this is a whole part"),
        ("pass", {"model.num_layers.x": "3"}, r"--config.model.num_layers.x: x is no field of a int"),
        ("pass", {"model.num_layers": "many"}, r"config.model.num_layers is 'many', a str"),
        ("pass", {"model.num_heads": "7"}, r"config.model.model_dim 1024 does not divide into model.num_heads 7"),
        ("pass", {"model.picture_places": "7"}, r"config.model.picture_places is 7: 0, or the 1024 codes"),
        ("pass", {"batch.packing": "tight"}, r"config.batch.packing is 'tight'"),
        ("raise ValueError('no disk')", {}, r"mine.py cannot be run: ValueError: no disk"),
    ],
)
def test_a_mistake_is_named(config_of, body, overrides, message):
    with pytest.raises(UserError, match=message):
        config_of(body, overrides)


def test_files_that_are_no_configs(tmp_path):
    with pytest.raises(UserError, match=r"no config file .*nothing.py"):
        config_file.load(str(tmp_path / "nothing.py"), "runs/x")
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(UserError, match=r"a config file defines get_config"):
        config_file.load(str(tmp_path / "empty.py"), "runs/x")
