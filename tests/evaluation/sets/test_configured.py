"""Evaluation sets of a config: the options that all of them have, the items that they select, and mistakes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.config import EvaluateConfig
from cm3leon_jax.evaluation.registry import SETS
from cm3leon_jax.evaluation.sets.base import Item
from cm3leon_jax.evaluation.sets.configured import CommonSetOptions, ConfiguredSet, build_sets
from cm3leon_jax.evaluation.sets.prompts_file import PromptsFile


@dataclass(frozen=True)
class Numbers:
    """A user's own set: so many prompts, and how often it was read."""

    num: int = 10
    files: Sequence[str] = ()

    def __call__(self) -> list[Item]:
        READ.append(self.num)
        return [Item(str(number), {"prompt": f"the number {number}"}) for number in range(self.num)]


@dataclass(frozen=True)
class WithCount:
    count: int = 1
    files: tuple[str, ...] = ()

    def __call__(self) -> list[Item]:
        return []


READ: list[int] = []


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    READ.clear()
    monkeypatch.setitem(SETS, "numbers", f"{__name__}:Numbers")
    monkeypatch.setitem(SETS, "with_count", f"{__name__}:WithCount")


def configured(**options: Any) -> ConfiguredSet:
    return build_sets(EvaluateConfig(sets={"mine": {"type": "numbers", **options}}))["mine"]


def ids_of(asked: ConfiguredSet) -> list[str]:
    return [item.id for item in asked.items]


def write(file: Path, content: str) -> str:
    file.write_text(content, encoding="utf-8")
    return str(file)


def test_every_set_takes_the_common_options(tmp_path: Path) -> None:
    ids = write(tmp_path / "ids.txt", "7\n2\n\n5\n")
    asked = configured(num=9, ids=ids, count=2, samples_per_prompt=3, sampling={"guidance": 2.0})
    assert asked.options == CommonSetOptions(3, {"guidance": 2.0}, ids, 2)
    assert asked.reader == Numbers(9)
    assert len(asked.items) == 2 and set(ids_of(asked)) < {"7", "2", "5"}


def test_images_per_prompt_are_those_of_the_config_unless_the_set_says_otherwise() -> None:
    assert configured().options == CommonSetOptions(EvaluateConfig().samples_per_prompt)


def test_ids_choose_items_in_their_order(tmp_path: Path) -> None:
    assert ids_of(configured(ids=write(tmp_path / "ids.txt", "7\n2\n\n5\n"))) == ["7", "2", "5"]
    unknown = configured(ids=write(tmp_path / "more.txt", "11\n"))
    with pytest.raises(UserError, match=r"names the id 11, which no item of config\.evaluate\.sets\.mine has"):
        _ = unknown.items
    nothing = configured(ids=write(tmp_path / "none.txt", "\n"))
    with pytest.raises(UserError, match=r"evaluation set has no items of those that .*none\.txt names"):
        _ = nothing.items


def test_a_sample_of_items_is_always_the_same_and_in_order() -> None:
    found = ids_of(configured(num=1000, count=100))
    assert found == ids_of(configured(num=1000, count=100))
    numbers = [int(name) for name in found]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 100
    assert np.mean(numbers) == pytest.approx(500, abs=100)


def test_a_set_is_read_once() -> None:
    asked = configured(num=3)
    assert READ == []
    assert len(asked.items) == len(asked.requests) == 3 and asked.sha256
    assert READ == [3]


def test_the_hash_covers_the_files_and_the_ids_that_are_measured(tmp_path: Path) -> None:
    file, ids = write(tmp_path / "a", "content"), write(tmp_path / "ids.txt", "2\n1\n")
    asked = configured(num=3, ids=ids)
    assert asked.sha256 == hashlib.sha256(b"2\n1\n2\n1\n").hexdigest()
    with_file = ConfiguredSet("mine", Numbers(3, (file,)), CommonSetOptions(1))
    assert with_file.sha256 == hashlib.sha256(b"content0\n1\n2\n").hexdigest()
    assert len({configured(num=3, count=count).sha256 for count in (0, 1, 2)}) == 3


def test_what_a_set_asks_is_checked() -> None:
    asked = configured()
    asked.check_asks(("text_to_image", "edit"), "images")
    with pytest.raises(UserError, match=r"config\.evaluate\.sets\.mine asks for text_to_image, and a metric needs cap"):
        asked.check_asks(("caption",), "captions")


def test_an_item_that_is_no_request_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "set.jsonl", '{"id": "a", "prompt": "one"}\n{"id": "b", "task": "edit", "prompt": "two"}\n')
    asked = ConfiguredSet("mine", PromptsFile(file), CommonSetOptions(1))
    with pytest.raises(UserError, match=r"^config\.evaluate\.sets\.mine, item b: the task edit needs image"):
        _ = asked.requests


def test_two_items_of_one_id_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "set.jsonl", '{"id": "a", "prompt": "one"}\n{"id": "a", "prompt": "two"}\n')
    with pytest.raises(UserError, match=r"^config\.evaluate\.sets\.mine: two items have the id a: give each"):
        _ = ConfiguredSet("mine", PromptsFile(file), CommonSetOptions(1)).items
    # A line without an id has its number, which another may have been given.
    file = write(tmp_path / "set.jsonl", '{"id": 2, "prompt": "one"}\n{"prompt": "two"}\n')
    with pytest.raises(UserError, match="two items have the id 2"):
        _ = ConfiguredSet("mine", PromptsFile(file), CommonSetOptions(1)).items
    with pytest.raises(UserError, match=r"ids\.txt names the id 3 twice: name each item of config"):
        _ = configured(ids=write(tmp_path / "ids.txt", "3\n4\n3\n")).items


def test_an_empty_file_is_no_set(tmp_path: Path) -> None:
    asked = ConfiguredSet("mine", PromptsFile(write(tmp_path / "set.jsonl", "")), CommonSetOptions(1))
    with pytest.raises(UserError, match=r"config\.evaluate\.sets\.mine: this evaluation set has no items$"):
        _ = asked.items


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": "number"}, "the type in config.evaluate.sets is 'number', which no module registers: did you mean"),
        ({"type": "numbers", "nun": 3}, "config.evaluate.sets.mine.nun: no such field; did you mean num?"),
        ({"type": "numbers", "samples_per_prompt": 0}, "sets.mine.samples_per_prompt is 0: at least 1"),
        ({"type": "numbers", "count": -1}, "sets.mine.count is -1: at least 0"),
        ({"type": "numbers", "ids": 3}, "sets.mine.ids is 3, a int: it must be a str"),
        ({"type": "with_count"}, "sets.mine: WithCount has an option count, as every set has: remove its own"),
    ],
)
def test_a_mistake_is_one_line(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        build_sets(EvaluateConfig(sets={"mine": entry}))
