"""launch/Dockerfile is read by hadolint, takes what the package is made of, and asks for versions that agree."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "launch" / "Dockerfile"
INSTALLS = "pip install"


def instructions() -> list[tuple[str, str]]:
    """The instructions and what follows each, on one line."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines()) if name]


def installed(folder: Path, **arguments: str) -> tuple[str, str]:
    """What the Dockerfile asks pip for with these arguments, and the versions that it allows."""
    (command,) = [rest for name, rest in instructions() if name == "RUN" and INSTALLS in rest]
    pip = folder / "pip"
    pip.write_text('#!/bin/sh\necho "$*"\ncat "$PIP_CONSTRAINT"\n')
    pip.chmod(0o755)
    given = {name: value for name, _, value in (rest.partition("=") for kind, rest in instructions() if kind == "ARG")}
    printed = subprocess.run(
        ["sh", "-ec", command.replace("/tmp/", f"{folder}/")],
        env={"PATH": f"{folder}:{os.environ['PATH']}", **given, **arguments},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    asked, _, allowed = printed.partition("\n")
    return asked.split()[-1], allowed


def test_hadolint_finds_nothing():
    hadolint = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, ""), found.stdout


def test_each_kind_of_devices_is_a_stage():
    header = DOCKERFILE.read_text().partition("\nFROM")[0]
    named = re.search(r"what it runs on: (.*)", header)
    assert named is not None
    stages = {rest.split()[-1] for name, rest in instructions() if name == "FROM" and rest.startswith("installed ")}
    assert stages == set(re.split(r", | or ", named[1]))
    assert instructions()[-1] == ("FROM", "${DEVICES}")


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ({"DEVICES": "cpu", "EXTRAS": "data,cloud"}, ".[data,cloud]"),
        ({"DEVICES": "tpu", "EXTRAS": "data,cloud"}, ".[data,cloud,tpu]"),
        ({"DEVICES": "cuda13", "EXTRAS": "cloud"}, ".[cloud,cuda13]"),
        ({"DEVICES": "cuda13", "EXTRAS": ""}, ".[cuda13]"),
        ({"DEVICES": "cpu", "EXTRAS": ""}, "."),
    ],
)
def test_the_parts_of_the_package_that_are_asked_for_are_installed(arguments, asked, tmp_path):
    found, allowed = installed(tmp_path, **arguments)
    assert found == asked
    assert "\njax==" in allowed
    assert [each.name for each in tmp_path.iterdir()] == ["pip"]


@pytest.mark.parametrize("devices", ["cpu", "tpu", "cuda13"])
def test_the_versions_that_are_allowed_are_those_that_jax_asks_for(devices, tmp_path):
    _, allowed = installed(tmp_path, DEVICES=devices, EXTRAS="")
    versions = dict(line.split("==") for line in allowed.splitlines() if not line.startswith("#"))
    asked = [Requirement(each) for each in importlib.metadata.requires("jax") or ()]
    asked = [each for each in asked if each.marker is None or each.marker.evaluate({"extra": devices})]
    assert {each.name for each in asked} & versions.keys() >= {"jaxlib", "numpy", "scipy"}
    wrong = [str(each) for each in asked if each.name in versions and versions[each.name] not in each.specifier]
    assert wrong == []


def test_what_is_sent_to_the_builder_is_what_the_package_is_made_of():
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert rules[0] == "*"
    sent = {rule[1:] for rule in rules if rule.startswith("!")}
    assert {name for name in sent if not (ROOT / name).exists()} == set()
    copied = {part.partition("/")[0] for kind, rest in instructions() if kind == "COPY" for part in rest.split()[:-1]}
    (shipped,) = [
        ast.literal_eval(node.value)
        for node in ast.parse((ROOT / "setup.py").read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SHIPPED"
    ]
    assert sent >= (copied - {"."}) | set(shipped) | {"cm3leon_jax", "pyproject.toml"}
    # What is a user's or a machine's own stays out of the image.
    assert not {"runs", ".venv", ".git"} & sent


def test_the_image_is_of_the_python_that_the_lock_file_is_for():
    (python,) = re.findall(r"Python (\d+\.\d+)", (ROOT / "requirements.lock").read_text().splitlines()[0])
    assert ("FROM", f"python:{python}-slim-bookworm AS installed") in instructions()


def test_only_the_image_of_tpus_runs_as_root():
    stage, users = "", dict[str, str]()
    for kind, rest in instructions():
        if kind == "FROM":
            stage = rest.split()[-1]
        elif kind == "USER":
            users[stage] = rest
    assert users == {"cpu": "1000", "cuda13": "1000"}
