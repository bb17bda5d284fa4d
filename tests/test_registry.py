"""Families by name."""

import sys

import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.registry import Registry


def test_a_registered_name_loads_its_attribute_on_demand(tmp_path, monkeypatch):
    (tmp_path / "toy_family.py").write_text("class Toy:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("config.toy.family", {})
    registry.add("toy", "toy_family:Toy")
    assert "toy_family" not in sys.modules
    assert registry.load("toy").__name__ == "Toy"
    assert list(registry) == ["toy"]


def test_an_unknown_name_is_answered_with_the_nearest_one():
    registry = Registry("config.toy.family", {"vqgan": "math:pi"})
    with pytest.raises(UserError, match=r"config\.toy\.family is 'vgqan'.*did you mean 'vqgan'"):
        registry.load("vgqan")
    with pytest.raises(UserError, match="the choices are 'vqgan'"):
        registry.load("x")


def test_two_implementations_of_one_name_are_refused():
    registry = Registry("config.toy.family", {"pi": "math:pi"})
    registry.add("pi", "math:pi")
    with pytest.raises(UserError, match="registered twice"):
        registry.add("pi", "math:e")


@pytest.mark.parametrize("target", ["no_such_module:x", "math:no_such_attribute"])
def test_a_target_that_cannot_be_imported_is_said_in_one_line(target):
    with pytest.raises(UserError, match="cannot be imported"):
        Registry("config.toy.family", {"toy": target}).load("toy")
