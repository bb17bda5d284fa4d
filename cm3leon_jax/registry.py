"""Registries map names that a config may use to their implementations."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from cm3leon_jax.errors import UserError


class Registry(dict[str, str]):
    """Maps names to "module:attribute"; a module is imported when its name is first loaded.

    `registry.add(name, "package.module:Class")` registers one more, from a module that `config.modules` names.
    """

    def __init__(self, field: str, entries: Mapping[str, str]) -> None:
        """`field` is the config's field that names an entry, for messages."""
        super().__init__(entries)
        self._field = field

    def add(self, name: str, target: str) -> None:
        """Registers "module:attribute" under a name. Raises a `UserError` if something else has that name."""
        if self.setdefault(name, target) != target:
            raise UserError(f"{self._field} {name!r} is registered twice: {self[name]} and {target}")

    def load(self, name: str) -> Any:
        """The attribute registered under a name. Raises a `UserError` if there is none, or it cannot be imported."""
        if name not in self:
            close = difflib.get_close_matches(name, self, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"the choices are {', '.join(map(repr, self))}"
            raise UserError(f"{self._field} is {name!r}, which no module registers: {hint}")
        return load_attribute(self[name], f"{self._field} {name!r}")


def load_attribute(target: str, what: str) -> Any:
    """What "module:attribute" names. Raises a `UserError` if it cannot be imported; begins with `what`."""
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{what}: {target} cannot be imported ({error})") from None


def import_module(name: str, field: str) -> None:
    """Imports a module of the user's for its registrations; raises a `UserError` for whatever goes wrong in it.

    `field` is the config's field that names it.
    """
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(f"{field}: {name} needs {error.name}, which is not installed") from None
        raise UserError(
            f"{field}: no module {name!r}: put it next to the config file, or its folder on PYTHONPATH"
        ) from None
    except (UserError, KeyboardInterrupt):
        raise
    # A SystemExit, too, would end the command without a message.
    except BaseException as error:
        raise UserError(f"{field}: {name} cannot be imported: {type(error).__name__}: {error}") from None
