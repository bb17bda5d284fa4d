"""The values of a run: every number has a range, which is checked with its name."""

import dataclasses
import math
import typing

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cm3leon_jax import config_values
from cm3leon_jax.config import Config
from cm3leon_jax.config_part import Part
from cm3leon_jax.errors import UserError
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig
from cm3leon_jax.ranges import Range, ranges_of
from cm3leon_jax.training.config import OptimizerConfig


def parts_of(config: object, prefix: str = "") -> dict[str, type]:
    """The dataclasses that a config is made of, by dotted name."""
    found = {}
    for field in dataclasses.fields(config):
        part = getattr(config, field.name)
        if dataclasses.is_dataclass(part):
            found |= {prefix + field.name: type(part)} | parts_of(part, f"{prefix}{field.name}.")
    return found


PARTS = parts_of(Config())


def is_number(kind: object) -> bool:
    """Whether a type is that of a number, or of a tuple of numbers."""
    return kind in (int, float) or any(is_number(entry) for entry in typing.get_args(kind) if entry is not ...)


NUMBERS = [
    (part, name) for part, cls in PARTS.items() for name, kind in typing.get_type_hints(cls).items() if is_number(kind)
]
ODD = (0, -1, 10**30, 10**400, 1e300, 1e-300, -1e-300, 5e-324, math.nan, math.inf, -math.inf, 2**31, 2**32, 2**63, 0.5)


def outcome(part: str, name: str, value: float) -> str:
    """Sets one field as a config file does: its message, or nothing where it is taken."""
    kind = type(getattr(PARTS[part](), name))
    given = {name: {tuple: (value,), dict: {"one": value}}.get(kind, value)}
    for each in reversed(part.split(".")):
        given = {each: given}
    try:
        config_values.build(Config, given, "config", "mine.py")
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("part", [part for part in PARTS if "." not in part])
def test_parts_know_their_names(part):
    assert issubclass(PARTS[part], Part)
    assert PARTS[part].name_in_config() == part


@pytest.mark.parametrize(("part", "name"), NUMBERS)
def test_every_number_has_a_range(part, name):
    kind, allowed = ranges_of(PARTS[part])[name]
    assert kind in (int, float)
    assert isinstance(allowed, Range)


@pytest.mark.parametrize(("part", "name"), NUMBERS)
def test_a_number_is_taken_or_named_in_one_line(part, name):
    for value in ODD:
        message = outcome(part, name, value)
        assert not message or (message.startswith(f"config.{part}.") and name in message), (value, message)
        assert "\n" not in message and len(message) < 300
        assert message or math.isfinite(value), f"{value} is taken"


@settings(deadline=None)
@given(field=st.sampled_from(NUMBERS), value=st.one_of(st.floats(), st.integers()))
def test_what_is_taken_is_the_same_number_on_a_device(field, value):
    part, name = field
    if outcome(part, name, value):
        return
    (kind, _) = ranges_of(PARTS[part])[name]
    on_device = np.float32(value) if kind is float else np.int64(value)
    assert np.isfinite(on_device)
    assert (on_device == 0) == (value == 0)
    assert kind is float or -(2**31) <= value < 2**32


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "text"),
    [
        (Range(at_least=0, below=1), (0, 0.5), (-1, 1), "at least 0 and below 1"),
        (Range(above=0, at_most=1), (1, 1e-9), (0, 2), "above 0 and at most 1"),
        (Range(at_least=2, other=0), (0, 2), (1, -1), "0, or at least 2"),
        (Range(), (-3, 3), (math.nan,), "any number"),
    ],
)
def test_a_range_says_what_lies_in_it(allowed, inside, outside, text):
    assert all(value in allowed for value in inside)
    assert not any(value in allowed and math.isfinite(value) for value in outside)
    assert str(allowed) == text


def test_the_value_and_the_range_are_said():
    with pytest.raises(UserError, match=r"^config\.optimizer\.beta2 is 1\.0: at least 0 and below 1$"):
        OptimizerConfig(beta2=1.0)
    with pytest.raises(UserError, match=r"^config\.optimizer\.epsilon is inf: above 0, and finite$"):
        OptimizerConfig(epsilon=math.inf)
    with pytest.raises(UserError, match=r"config\.image_tokenizer\.channel_multipliers is 0: at least 1"):
        VQGANConfig(channel_multipliers=(1, 0))


@given(part=st.sampled_from(["optimizer", "encoder.training", "image_tokenizer.training"]), share=st.floats(0.99, 1))
@example(part="optimizer", share=1 - 1e-12)
@settings(deadline=None)
def test_a_share_below_1_is_below_1_on_a_device(part, share):
    assert bool(outcome(part, "beta2", share)) == (np.float32(share) >= 1)
