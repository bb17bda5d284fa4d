"""Which fields of the config may change when a run goes on: declared beside each field."""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated

from cm3leon_jax.checkpoints import flat
from cm3leon_jax.config import Config
from cm3leon_jax.config_part import AFTER_IMPORT, AT_RESUME, changeable
from cm3leon_jax.ranges import PositiveInt


@dataclass(frozen=True)
class Inner:
    free: Annotated[PositiveInt, AT_RESUME] = 1
    fixed: int = 1
    imported: Annotated[int, AFTER_IMPORT] = 1


@dataclass(frozen=True)
class Outer:
    number: int = 1
    inner: Inner = field(default_factory=Inner)
    free: Annotated[Inner, AT_RESUME] = field(default_factory=Inner)


def test_marks_stand_beside_fields_and_those_of_a_part_hold_for_all_without_one():
    assert changeable(Outer, "config.") == ("config.inner.free", "config.free.free", "config.free.fixed")
    added = set(changeable(Outer, after_import=True)) - set(changeable(Outer))
    assert added == {"inner.imported", "free.imported"}


@dataclass(frozen=True)
class Family(Inner):
    free: PositiveInt = 1
    more: Annotated[int, AT_RESUME] = 1
    other: int = 1


def test_fields_of_a_subclass_count_where_a_config_has_one_and_keep_the_marks_of_its_base():
    config = Outer(inner=Family(), free=Family())
    names = ("inner.free", "inner.more", "free.free", "free.fixed", "free.more", "free.other")
    assert changeable(config) == names


def test_what_decides_the_parameters_of_a_run_may_not_change_at_a_resume():
    free = set(changeable(Config))
    fields = set(flat(dataclasses.asdict(Config())))
    assert {"train.seed", "train.z_loss", "batch.seed", "optimizer.beta1", "model.num_layers"} <= fields - free
    assert {"train.num_tokens", "train.loggers", "mesh.fsdp", "retrieval.search", "model.remat"} <= free
    # What shapes a parameter stays as it is after an import, too.
    assert {"model.num_layers", "batch.sequence_length", "vocabulary.num_masks"} <= fields - set(
        changeable(Config, after_import=True)
    )
