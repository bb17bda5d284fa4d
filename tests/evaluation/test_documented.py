"""The configs and the tables of docs/evaluation.md: all that it names exists, and all that exists is named."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from cm3leon_jax.config_file import load
from cm3leon_jax.evaluation.metrics import build_metrics
from cm3leon_jax.evaluation.registry import METRICS, SETS
from cm3leon_jax.evaluation.sets.configured import CommonSetOptions, build_sets
from cm3leon_jax.registry import Registry

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
SNIPPETS = [
    snippet for snippet in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL) if "config.evaluate = " in snippet
]
# The first cell of a row of a table, and the second.
ROWS = dict(re.findall(r"^\| `(\w+)` \|(.*?)\|", PAGE, flags=re.MULTILINE))
# Options that the page names once, of all metrics and of all sets.
OF_METRICS = {"set", "batch_size"}
OF_SETS = {field.name for field in fields(CommonSetOptions)}


def as_file(snippet: str) -> str:
    """The text of a config file that a snippet is, or is a part of."""
    if "def get_config" in snippet:
        return snippet
    return (
        f"from ml_collections import ConfigDict\n\nconfig = ConfigDict()\n{snippet}\n"
        "def get_config():\n    return config\n"
    )


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_config_of_the_page_is_one(snippet, tmp_path):
    file = tmp_path / "documented.py"
    file.write_text(as_file(snippet))
    evaluate = load(str(file), str(tmp_path / "run")).evaluate
    metrics, sets = build_metrics(evaluate.metrics), build_sets(evaluate)
    assert metrics
    assert {of_set for metric in metrics.values() if (of_set := getattr(metric, "set", ""))} == set(sets)


@pytest.mark.parametrize("command_file", re.findall(r"cm3leon \w+ --config=(\S+\.py)", PAGE))
def test_a_command_of_the_page_has_its_config(command_file):
    assert any(snippet.startswith(f"# {command_file}\n") for snippet in SNIPPETS)


# Other tests register more.
OF_THE_PACKAGE = [
    (registry, name) for registry in (METRICS, SETS) for name in registry if registry[name].startswith("cm3leon_jax.")
]


@pytest.mark.parametrize(("registry", "name"), OF_THE_PACKAGE)
def test_the_tables_have_every_type_and_option(registry: Registry, name: str):
    documented = set(re.findall(r"`(\w+)", ROWS[name]))
    options = {field.name for field in fields(registry.load(name))}
    assert documented - OF_METRICS == options - OF_METRICS


def test_the_page_has_a_config_of_each_protocol_and_the_options_that_all_share():
    assert len(SNIPPETS) == 6
    assert {name for name in OF_METRICS | OF_SETS if f"`{name}" not in PAGE} == set()
