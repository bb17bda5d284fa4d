"""The shape of the package: imports run downwards, one class per name, no file too long, no config field unused."""

import ast
import dataclasses
import typing
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from cm3leon_jax.config import Config

PACKAGE = Path(__file__).parent.parent / "cm3leon_jax"
NAME = "cm3leon_jax"

# From the bottom to the top: a room imports from its own line and those above it. Other top-level files are at the
# bottom, where files may import each other without a cycle.
ORDER = (
    ("data",),
    ("models",),
    ("checkpoints", "bucket_steps", "orbax_steps", "bit_sums", "newest_checkpoint"),
    ("training",),
    ("image_tokenizers", "encoders"),
    ("retrieval",),
    ("generation",),
    ("evaluation",),
    ("huggingface",),
    ("planning",),
    ("commands",),
    ("cli", "api", "__main__"),
)
LEVEL = {room: level for level, rooms in enumerate(ORDER, start=1) for room in rooms}

# Read by the name of a mesh axis, or as `schedules.LearningRateConfig`.
READ_BY_NAME = {"mesh.replica", "mesh.fsdp", "mesh.tensor"} | {
    f"optimizer.{name}"
    for name in ("peak_learning_rate", "warmup_steps", "final_learning_rate_fraction", "decay_fraction")
}

# Files whose `print` writes a command's result, the console handler's message, a bar's plain line, or an error of the
# process itself.
PRINTS = {
    *("cli", "commands.completion", "commands.generate", "commands.inspect", "commands.plan"),
    *("distributed", "log_handler", "progress"),
}

HEAVY = {"tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio", "torch"}


@cache
def modules() -> dict[str, Path]:
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        if "shipped" not in file.parts:
            parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


def imported_names(module: str) -> Iterator[str]:
    """Every name that a module imports, in functions and for type checkers too."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module} imports relatively"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def imports() -> dict[str, set[str]]:
    """Modules of the package that each module imports."""
    known = modules().keys() - {NAME}
    return {module: (set(imported_names(module)) & known) - {module} for module in modules() if module != NAME}


def is_config(module: str) -> bool:
    return module.split(".")[-1] in ("config", "config_part", "distributed_config")


def file_node(module: str) -> str:
    return "config" if is_config(module) else module


def room(module: str) -> str:
    """The first-level folder of a module, or its name at the top level; parts of the config are one room."""
    return "config" if is_config(module) else module.split(".")[1]


def data_room(module: str) -> str:
    if module.startswith(f"{NAME}.data.") and not is_config(module):
        return ".".join(module.split(".")[1:3])
    return room(module)


def graph(node: typing.Callable[[str], str]) -> dict[str, set[str]]:
    edges: dict[str, set[str]] = defaultdict(set)
    for module, found in imports().items():
        edges[node(module)] |= {node(other) for other in found} - {node(module)}
    return edges


def cycles(edges: dict[str, set[str]]) -> list[set[str]]:
    """The sets of nodes that reach each other."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = edges.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        return seen

    reach = {node: reached(node) for node in edges}
    found: list[set[str]] = []
    for node in sorted(edges):
        cycle = {other for other in reach[node] if node in reach.get(other, ())}
        if node in reach[node] and cycle not in found:
            found.append(cycle)
    return found


def test_files_import_each_other_without_a_cycle():
    assert cycles(graph(file_node)) == []


def test_rooms_import_each_other_without_a_cycle():
    edges = {node: {other for other in found if other in LEVEL} for node, found in graph(room).items() if node in LEVEL}
    assert cycles(edges) == []


def test_rooms_of_data_import_each_other_without_a_cycle():
    edges = {
        node: {other for other in found if other.startswith("data.")}
        for node, found in graph(data_room).items()
        if node.startswith("data.")
    }
    assert cycles(edges) == []


def test_imports_run_downwards():
    upwards = defaultdict(list)
    for module, found in imports().items():
        for other in found:
            # A folder's __init__ is not a room of its own.
            if LEVEL.get(room(other), 0) > LEVEL.get(room(module), 0) and not is_config(module):
                upwards[room(module), room(other)].append(f"{module} imports {other}")
    assert upwards == {}


def test_no_file_is_longer_than_450_lines():
    lengths = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in modules().items()}
    assert {name: length for name, length in lengths.items() if length > 450} == {}


def test_each_class_name_is_there_once():
    places = defaultdict(list)
    for module in modules():
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(module)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def parts_of_the_config(cls: type = Config) -> Iterator[tuple[str, type]]:
    """Each part's name and class, parts of parts too."""
    for name, kind in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            yield name, typing.cast(type, kind)
            yield from parts_of_the_config(typing.cast(type, kind))


@cache
def names_and_attributes(module: str) -> tuple[set[str], set[tuple[str, str]]]:
    """All names of a module, and its attributes with the name of what each belongs to."""
    names, attributes = set(), set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
            owner = node.value
            base = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
            attributes.add((base, node.attr))
    return names, attributes


def is_read(part: str, cls: str, field: str) -> bool:
    """Whether a module outside of the config reads `part.field`, or `.field` where it knows the part or its class."""
    for module in modules():
        if is_config(module):
            continue
        names, attributes = names_and_attributes(module)
        if (part, field) in attributes:
            return True
        if {part, cls} & names and any(attribute == field for _, attribute in attributes):
            return True
    return False


def read_through(cls: type) -> Iterator[tuple[str, str]]:
    """Pairs of a property of a part and a field that it reads."""
    (body,) = (
        node for node in ast.walk(tree(cls.__module__)) if isinstance(node, ast.ClassDef) and node.name == cls.__name__
    )
    for method in body.body:
        if isinstance(method, ast.FunctionDef) and method.name != "__post_init__":
            for node in ast.walk(method):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
                    yield method.name, node.attr


def test_every_field_of_the_config_is_read():
    unread = {
        f"{part}.{field.name}"
        for part, cls in parts_of_the_config()
        for field in dataclasses.fields(cls)
        if not any(
            is_read(part, cls.__name__, name)
            for name in (field.name, *(name for name, read in read_through(cls) if read == field.name))
        )
    }
    assert unread - READ_BY_NAME == set()


def test_print_writes_nothing_but_results():
    found = {
        module.removeprefix(f"{NAME}.")
        for module in modules()
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert found - PRINTS == set()


@pytest.mark.parametrize("folder", ["models", "training", "generation", "evaluation"])
def test_no_tensorflow_and_no_pytorch_in(folder):
    for module in modules():
        if module.startswith(f"{NAME}.{folder}"):
            found = {name.partition(".")[0] for name in imported_names(module)} & HEAVY
            assert not found, f"{module} imports {found}"


def test_every_command_lies_in_commands():
    from cm3leon_jax.commands.table import COMMANDS

    folders = {name: command.module.rpartition(".")[0] for name, command in COMMANDS.items()}
    assert set(folders.values()) == {f"{NAME}.commands"}
