"""An evaluation set as a config names it: the reader of a data set, and the options that all sets have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cm3leon_jax.config_part import field_types
from cm3leon_jax.config_values import build
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.config import EvaluateConfig
from cm3leon_jax.evaluation.registry import SETS
from cm3leon_jax.evaluation.sets.base import EvaluationSet, Item, read_text, sha256
from cm3leon_jax.generation.requests import Request, request_of
from cm3leon_jax.ranges import NonNegativeInt, PositiveInt, first_fault

_SEED = 0


@dataclass(frozen=True)
class CommonSetOptions:
    """Options of every evaluation set."""

    # Images per prompt; texts and edits are one each.
    samples_per_prompt: PositiveInt
    # Fields of `config.sampling` that differ for this set.
    sampling: Mapping[str, Any] = field(default_factory=dict)
    # A file of the ids to measure, one per line, in that order; empty: all items.
    ids: str = ""
    # Of these, a random sample of so many, always the same one (30,000 of COCO's val2014 are COCO-30k); 0: all.
    count: NonNegativeInt = 0


@dataclass(frozen=True)
class OwnItems:
    """Items that a metric makes, not a file."""

    items: Sequence[Item]
    files: Sequence[str] = ()

    def __call__(self) -> list[Item]:
        return list(self.items)


@dataclass(frozen=True)
class ConfiguredSet:
    """An evaluation set of a config; its items are read when first used, then kept."""

    name: str
    reader: EvaluationSet
    options: CommonSetOptions

    @cached_property
    def items(self) -> list[Item]:
        """The items that a run measures.

        Raises:
          UserError: if there are none, two have one id, or the file of ids names what is no item.
        """
        items, ids, count = self.reader(), self.options.ids, self.options.count
        if (repeated := _repeated(item.id for item in items)) is not None:
            raise UserError(f"{self._where}: two items have the id {repeated:.60}: give each item another")
        if ids:
            by_id = {item.id: item for item in items}
            named = [line.strip() for line in read_text(ids).splitlines() if line.strip()]
            for each in named:
                if each not in by_id:
                    raise UserError(f"{ids} names the id {each:.60}, which no item of {self._where} has")
            if (repeated := _repeated(named)) is not None:
                raise UserError(f"{ids} names the id {repeated:.60} twice: name each item of {self._where} once")
            items = [by_id[each] for each in named]
        if count and count < len(items):
            order = np.random.default_rng(_SEED).permutation(len(items))[:count]
            items = [items[index] for index in sorted(order)]
        if not items:
            of = f" of those that {ids} names" if ids else ""
            raise UserError(f"{self._where}: this evaluation set has no items{of}")
        return items

    @cached_property
    def requests(self) -> list[Request]:
        """What each item asks.

        Raises:
          UserError: names the first item that is no request.
        """
        requests = []
        for number, item in enumerate(self.items):
            try:
                requests.append(request_of(item.request, Path(), number + 1, number))
            except UserError as error:
                raise self.error(item, str(error)) from None
        return requests

    @cached_property
    def sha256(self) -> str:
        """The hash of the files that say what is asked and what is true, and of the ids that are measured."""
        return sha256([*self.reader.files, *filter(None, [self.options.ids])], (item.id for item in self.items))

    def check_asks(self, tasks: Collection[str], what: str) -> None:
        """Refuses a set that asks for anything but these tasks; `what` says in words what a metric needs."""
        for request in self.requests:
            if request.task not in tasks:
                raise UserError(f"{self._where} asks for {request.task}, and a metric needs {what}")

    def error(self, item: Item, what: str) -> UserError:
        """What is wrong with an item, in one line."""
        return UserError(f"{self._where}, item {item.id}: {what}")

    @property
    def _where(self) -> str:
        return f"config.evaluate.sets.{self.name}"


def _repeated(ids: Iterable[str]) -> str | None:
    """The first id that is there more than once."""
    return next((name for name, count in Counter(ids).items() if count > 1), None)


def set_named(sets: Mapping[str, ConfiguredSet], name: str) -> ConfiguredSet:
    """The set that a metric names; a `UserError` if the config has none of that name."""
    if name not in sets:
        known = ", ".join(map(repr, sets)) or "none"
        raise UserError(f"a metric takes the evaluation set {name!r}: config.evaluate.sets has {known}")
    return sets[name]


def build_sets(config: EvaluateConfig) -> dict[str, ConfiguredSet]:
    """Makes the evaluation sets of `config.evaluate.sets`; reads none.

    Raises:
      UserError: names the set or option that does not exist, or a value that is out of range.
    """
    sets, common = {}, field_types(CommonSetOptions)
    for name, entry in config.sets.items():
        where = f"config.evaluate.sets.{name}"
        values = {"samples_per_prompt": config.samples_per_prompt, **entry}
        kind = SETS.load(values.pop("type"))
        if repeated := [option for option in common if option in field_types(kind)]:
            raise UserError(f"{where}: {kind.__name__} has an option {repeated[0]}, as every set has: remove its own")
        options = build(CommonSetOptions, {key: values.pop(key) for key in common if key in values}, where)
        sets[name] = ConfiguredSet(name, build(kind, values, where), options)
        if fault := first_fault(sets[name].reader) or first_fault(options):
            raise UserError(f"{where}.{fault}")
    return sets
