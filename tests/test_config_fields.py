"""The list of config fields that help and completion show."""

import dataclasses
from dataclasses import dataclass

from cm3leon_jax import config_file
from cm3leon_jax.config import Config
from cm3leon_jax.config_fields import _comments, config_fields


def test_fields_have_the_type_default_and_comment_of_their_part():
    found = {field.name: field for field in config_fields(["modules", "model", "sampling", "corpus"])}
    temperature = found["sampling.temperature"]
    assert temperature.type == "float, 0, or at least 0.001"
    assert temperature.default == 1.0
    assert temperature.help
    assert found["modules"].type == "tuple[str, ...]"
    assert "corpus.folder.caption_line" in found


def test_every_listed_field_can_be_set_to_its_default():
    parts = [field.name for field in dataclasses.fields(Config)]
    overrides = {field.name: str(field.default) for field in config_fields(parts)}
    # In the config file the defaults are absent, so nothing changes but what follows from `{workdir}`.
    loaded = config_file.load("opt_125m", "runs/x", {name: text for name, text in overrides.items() if text})
    assert isinstance(loaded, Config)


def test_a_comment_of_several_lines_is_one_text():
    assert _comments(Described) == {"first": "One line, and another.", "second": "", "third": "Alone."}


@dataclass
class Described:
    # One line,
    # and another.
    first: int = 1
    second: int = 2

    # Alone.
    third: int = 3
