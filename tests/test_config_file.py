"""Configs: every mistake is named, and every file in configs/ is right."""

import contextlib
import dataclasses
import importlib.util
import json
import operator
import os
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax import config_file, config_values, shipped
from cm3leon_jax.config import Config
from cm3leon_jax.errors import UserError
from cm3leon_jax.models.transformer import parameter_count
from cm3leon_jax.paths import IsPath
from cm3leon_jax.vocabulary import padded_size

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture
def config_of(tmp_path):
    def load(body: str, overrides: dict[str, str] | None = None) -> Config:
        file = tmp_path / "configs" / "mine.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(
            "from ml_collections import ConfigDict\n"
            "def get_config(variant='small'):\n"
            "    config = ConfigDict()\n"
            f"    {body}\n"
            "    return config\n"
        )
        return config_file.load(str(file), "/runs/mine", overrides)

    return load


@pytest.mark.parametrize("name", sorted(path.stem for path in shipped.shipped_configs()))
def test_every_config_file_loads(name):
    config_file.load(name, "runs/x")


@pytest.mark.parametrize(("name", "billions"), [("350m", 0.374), ("760m", 0.787), ("7b", 6.73)])
def test_the_papers_configs_have_its_sizes(name, billions):
    config = config_file.load(str(CONFIGS / f"cm3leon_{name}.py"), "runs/x")
    size = padded_size(config.vocabulary.num_text_tokens, config.image_tokenizer.codebook_size, 512)
    assert parameter_count(config.model, size, config.batch.sequence_length) / 1e9 == pytest.approx(billions, rel=5e-3)
    # 8.4M tokens a step, and the 3% that hold a fourth image whole.
    assert config.batch.batch_size * config.batch.sequence_length == pytest.approx(2**23, rel=0.04)
    assert config.image_tokenizer.image_length == 1024


def test_values_defaults_paths_and_overrides(config_of):
    config = config_of("config.model = dict(num_layers=3)", {"model.num_heads": "8", "corpus.mixture": "digits"})
    assert (config.model.num_layers, config.model.num_heads, config.model.model_dim) == (3, 8, 1024)
    assert config.corpus.mixture == "digits"
    assert config.vocabulary.path == "/runs/mine/vocabulary"


def test_numbers_that_mean_the_same_are_taken(config_of):
    config = config_of(
        "config.optimizer = dict(peak_learning_rate=1)",
        {"train.num_tokens": "1e9", "train.log_every": "1e2", "image_tokenizer.channel_multipliers": "[1, 1, 2, 2]"},
    )
    assert config.optimizer.peak_learning_rate == 1.0
    assert config.train.log_every == 100
    assert config.image_tokenizer.channel_multipliers == (1, 1, 2, 2)


@pytest.mark.parametrize(
    ("body", "overrides", "message"),
    [
        ("config.model = dict(num_layer=3)", {}, r"config.model.num_layer: no such field; did you mean num_layers"),
        ("config.modle = dict(num_layers=3)", {}, r"config.modle: no such field; did you mean mod"),
        ("config.model = dict(num_layers='3')", {}, r"config.model.num_layers is '3', a str: it must be a int"),
        ("config.model = dict(num_layers=2.5)", {}, r"config.model.num_layers is 2.5, a float"),
        ("config.model = dict(scan_layers=1)", {}, r"config.model.scan_layers is 1, a int: it must be a bool"),
        ("config.model = 3", {}, r"config.model is 3"),
        ("pass", {"model.num_layrs": "3"}, r"--config.model.num_layrs: no such field; did you mean num_layers"),
        ("pass", {"model": "3"}, r"--config.model: this is a whole part"),
        ("pass", {"model.num_layers.x": "3"}, r"--config.model.num_layers.x: x is no field of a int"),
        ("pass", {"model.num_layers": "many"}, r"config.model.num_layers is 'many', a str"),
        ("pass", {"model.num_heads": "7"}, r"config.model.model_dim 1024 does not divide into model.num_heads 7"),
        ("pass", {"model.ffn_dim": "0"}, r"config.model.ffn_dim is 0: at least 1"),
        ("pass", {"batch.packing": "tight"}, r"config.batch.packing is 'tight'"),
        ("raise ValueError('no disk')", {}, r"mine.py, line 4, cannot be run: ValueError: no disk"),
    ],
)
def test_a_mistake_is_named(config_of, body, overrides, message):
    with pytest.raises(UserError, match=message):
        config_of(body, overrides)


def test_files_that_are_no_configs(tmp_path):
    with pytest.raises(UserError, match=r"no config file .*nothing.py"):
        config_file.load(str(tmp_path / "nothing.py"), "runs/x")
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(UserError, match=r"a config file defines get_config"):
        config_file.load(str(tmp_path / "empty.py"), "runs/x")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("import sys; sys.exit()", "SystemExit"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise BaseException('odd')", "BaseException: odd"),
        ("config.model.depth.width", "AttributeError"),
        ("get_config()", "RecursionError"),
        ("from configs import nothing", "ImportError"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_whatever_a_config_file_raises_is_one_line_with_its_place(config_of, body, reason):
    with pytest.raises(UserError, match=rf"mine\.py, line \d, cannot be run: {reason}"):
        config_of(body)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("mytasks", ("mytasks",)),
        ("mytasks,other.tasks", ("mytasks", "other.tasks")),
        ("('mytasks',)", ("mytasks",)),
        ("['mytasks', 'other']", ("mytasks", "other")),
        ("'mytasks'", ("mytasks",)),
        ("7", ("7",)),
        ("a cat, sitting", ("a cat, sitting",)),
        ("", ()),
    ],
)
def test_a_tuple_of_strings_takes_one_string(config_of, text, names):
    assert config_of("pass", {"corpus.modules": text}).corpus.modules == names
    assert config_of("pass", {"evaluate.prompts": text}).evaluate.prompts == names


def test_one_string_and_one_number_stand_for_a_tuple(config_of):
    config = config_of("config.corpus = dict(modules='mytasks')", {"image_tokenizer.attention_resolutions": "16"})
    assert (config.corpus.modules, config.image_tokenizer.attention_resolutions) == (("mytasks",), (16,))


@settings(deadline=None, max_examples=25)
@given(text=st.text())
def test_any_text_is_a_value_or_one_line(text):
    for name in ("train.z_loss", "model.num_layers", "model.biases", "image_tokenizer.channel_multipliers"):
        with contextlib.suppress(UserError):
            config_file.load("demo", "runs/x", {name: text})


@pytest.mark.parametrize("text", ["(" * 10_000, "9" * 10_000, "-" * 100_000 + "1", "{[]: 1}", "1e999", "\0"])
def test_texts_that_python_itself_stumbles_over(text):
    with pytest.raises(UserError, match=r"config\.train\.z_loss is"):
        config_file.load("demo", "runs/x", {"train.z_loss": text})


def test_the_packages_configs_can_be_named_and_imported_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in ("demo", "examples/digits/demo.py", str(CONFIGS.parent / "examples" / "digits" / "demo.py")):
        assert config_file.load(file, "runs/x").model.num_layers == 4
    (tmp_path / "beside.py").write_text("layers = 7\n")
    (tmp_path / "mine.py").write_text(
        "import beside\n"
        "from configs import demo\n"
        "def get_config():\n"
        "    from configs import beside as same\n"
        "    config = demo.get_config()\n"
        "    config.model.num_layers = beside.layers + (same.layers - 7)\n"
        "    return config\n"
    )
    config = config_file.load("mine.py", "runs/x")
    assert (config.model.num_layers, config.model.model_dim) == (7, 128)


def test_a_config_file_finds_its_own_neighbors_and_not_those_of_another(tmp_path):
    for name, layers in (("a", 3), ("b", 5)):
        folder = tmp_path / name / "configs"
        folder.mkdir(parents=True)
        (folder / "base.py").write_text(f"layers = {layers}\n")
        (folder / "mine.py").write_text(
            "from ml_collections import ConfigDict\n"
            "from configs import base\n"
            "def get_config():\n"
            "    return ConfigDict(dict(model=dict(num_layers=base.layers)))\n"
        )
        assert config_file.load(str(folder / "mine.py"), "runs/x").model.num_layers == layers


def test_what_lies_beside_a_config_hides_no_installed_package(tmp_path):
    (tmp_path / "json.py").write_text("raise RuntimeError\n")
    (tmp_path / "mine.py").write_text((CONFIGS.parent / "examples" / "digits" / "demo.py").read_text())
    config_file.load(str(tmp_path / "mine.py"), "runs/x")
    assert importlib.util.find_spec("json").origin != str(tmp_path / "json.py")


def test_the_config_of_a_run_goes_on_with_it_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = {"corpus.mixture": "folder:images", "vocabulary.path": "shared/vocabulary", "model.num_layers": "2"}
    config = config_file.load("demo", "runs/one", changes)
    config_file.save(config, Path("runs/one/config.json"))
    Path("runs").rename("moved")
    monkeypatch.chdir("/")
    file = str(tmp_path / "moved" / "one" / "config.json")
    assert config_file.default_workdir(file) == tmp_path / "moved" / "one"
    found = config_file.load(file, str(config_file.default_workdir(file)), {"train.num_tokens": "1e9"})
    assert found.corpus.path == str(tmp_path / "moved" / "one" / "corpus")
    assert found.corpus.mixture == f"folder:{tmp_path}/images"
    assert found.vocabulary.path == str(tmp_path / "shared" / "vocabulary")
    assert (found.train.num_tokens, found.model) == (1e9, config.model)


def test_json_that_is_no_config(tmp_path):
    for text, message in (("{", "not JSON"), ("[]", "not an object"), ('{"model_type": "opt"}', "no such field")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=message):
            config_file.load(str(tmp_path / "config.json"), "runs/x")


def test_the_config_of_a_run_of_another_version_is_one_line(tmp_path):
    file = tmp_path / "config.json"
    config_file.save(config_file.load("demo", "runs/x"), file)
    values = json.loads(file.read_text())
    for version, when in ((None, "an earlier"), (99, "a later")):
        changed = {name: value for name, value in values.items() if name != "format_version"}
        file.write_text(json.dumps(changed | ({"format_version": version} if version else {})))
        with pytest.raises(UserError, match=rf"config.json was made by {when} version of cm3leon_jax .*: start from"):
            config_file.load(str(file), "runs/x")


def test_an_optional_field_takes_none_from_files_and_overrides(config_of):
    name = "distributed.stall_seconds"
    assert config_of("config.distributed = dict(stall_seconds=None)").distributed.stall_seconds is None
    assert config_of("pass", {name: "None"}).distributed.stall_seconds is None
    assert config_of("pass", {name: "7"}).distributed.stall_seconds == 7.0
    with pytest.raises(UserError, match=rf"config\.{name} is 'x', a str: it must be a float"):
        config_of("pass", {name: "x"})
    with pytest.raises(UserError, match=rf"config\.{name} is 0\.0: above 0"):
        config_of("pass", {name: "0"})


def fields_of(cls: type, prefix: str = "") -> Iterator[tuple[str, IsPath | None]]:
    """The dotted names of all fields, each with the kind of path that it holds, if any."""
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            yield from fields_of(hint, f"{prefix}{name}.")
        else:
            notes = getattr(hint, "__metadata__", ())
            yield prefix + name, next((note for note in notes if isinstance(note, IsPath)), None)


PATHS = [(name, kind) for name, kind in fields_of(Config) if kind]


@pytest.mark.parametrize(("name", "kind"), PATHS)
def test_every_path_of_the_config_is_checked(name, kind, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for text, message in (
        ("hdfs://bucket/x", "hdfs:// is not supported"),
        ("s3://bucket//x", "no empty part"),
        ("~nobody-of-that-name/x", "no such home folder"),
        ("a\0b", "NUL"),
        ("caf\udce9", "not UTF-8"),
    ):
        with pytest.raises(UserError, match=rf"config\.{name}.*{message}"):
            config_file.load("demo", "runs/x", {name: kind.prefix + text})
    config = config_file.load("demo", "runs/x", {name: kind.prefix + "~/y"})
    assert operator.attrgetter(name)(config) == kind.prefix + "/home/me/y"


def test_fields_that_are_named_like_paths_are_paths():
    for name, kind in fields_of(Config):
        assert kind or not re.search(r"[._](path|paths|file|folder|dir|cache)$", name), name


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner),
    max_leaves=4,
)
PARTS = {part: cls for part, cls in typing.get_type_hints(Config).items() if dataclasses.is_dataclass(cls)}
FIELDS = [(part, name) for part, cls in PARTS.items() for name in typing.get_type_hints(cls)]


@settings(deadline=None)
@given(field=st.sampled_from(FIELDS), value=ODD)
def test_any_value_of_any_type_is_taken_or_one_line(field, value):
    part, name = field
    for values in ({part: {name: value}}, {part: value}):
        try:
            config_file._fill_paths(config_values.build(Config, values, "config", "mine.py"), "runs/x")
        except UserError as error:
            assert "\n" not in str(error)


def test_modules_of_a_config_are_imported_before_its_parts_are_read(config_of, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "registers.py").write_text("LOADED = True\n")
    config = config_of("config.modules = ('registers',)")
    assert config.modules == ("registers",) and sys.modules["registers"].LOADED
    with pytest.raises(UserError, match=r"config\.modules: no module 'no_such_module'"):
        config_of("config.modules = ('no_such_module',)")


def test_processes_that_a_command_starts_import_the_examples(tmp_path):
    # Spawned processes inherit sys.path and nothing else; the checkout is not the folder they start in.
    code = (
        "import importlib.util, multiprocessing, sys\n"
        "if __name__ == '__main__':\n"
        f"    sys.path.insert(0, {str(CONFIGS.parent)!r})\n"
        "    from cm3leon_jax import config_file\n"
        "    del sys.path[0]\n"
        "    config = config_file.load('demo', 'runs/x')\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.apply(importlib.util.find_spec, (config.modules[0],)).name)\n"
    )
    (tmp_path / "program.py").write_text(code)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "examples.digits.metric", done.stderr
