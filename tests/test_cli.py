"""The command line: help on everything, exit codes, one line for a mistake."""

import argparse
import dataclasses
import errno
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import cm3leon_jax
from cm3leon_jax.cli import COMMANDS, main
from cm3leon_jax.commands.completion import completion_script, options_in
from cm3leon_jax.config import Config

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert ("--config FILE" in capsys.readouterr().out) == COMMANDS[command].takes_config


def test_the_overview_names_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)
    assert main([]) == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "no command 'trian': did you mean train?"),
        (["prepar"], "no command 'prepar': did you mean prepare?"),
        (["x"], "no command 'x': the commands are train-text-tokenizer, "),
        (["train", "--config=demmo"], "no config file demmo: did you mean demo?"),
        (["train", "--config=hdfs://b/demo.py"], "--config=hdfs://b/demo.py: hdfs:// is not supported"),
        (["train", "--config=configs/nothing.py"], "no config file configs/nothing.py"),
        (
            ["train", "--config=examples/digits/demo.py", "--config.model.depth=3"],
            "--config.model.depth: no such field",
        ),
        (
            ["train", "--config=examples/digits/demo.py", "--config.model.num_layers"],
            "write --config.model.num_layers=value",
        ),
        (["train", "--config=examples/digits/demo.py", "--workdir={tmp}"], "no vocabulary at"),
        (["generate", "--config=examples/digits/demo.py", "--workdir={tmp}", "--prompt=x"], "no checkpoints in"),
        (["evaluate", "--config=examples/digits/demo.py", "--workdir={tmp}"], "no checkpoints in"),
        (
            ["generate", "--config=examples/digits/demo.py", "--workdir={tmp}"],
            "give either --prompt=TEXT or --prompts=FILE",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(argv, message, tmp_path, capsys):
    assert main([argument.replace("{tmp}", str(tmp_path)) for argument in argv]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


# Every argument that is a path, beside --config, and what else its command has to be given.
READS = [("generate", "--prompts"), ("import", "--from")]
WRITES = [
    *((command, "--workdir") for command in ("train-image-tokenizer", "train-encoder", "train", "evaluate")),
    ("train-text-tokenizer", "--config.vocabulary.path"),
    ("train-image-tokenizer", "--config.image_tokenizer.path"),
    ("train-encoder", "--config.encoder.path"),
    ("prepare", "--config.corpus.path"),
    ("generate", "--output"),
    ("export", "--output"),
    ("inspect", "--html"),
    ("plan", "--json"),
    ("compare", "--output"),
]
NO_PATHS = ("gs://b/x", "s3://b/x", "~nobody-of-that-name/x", "", "a\0b", "caf\udce9", "{tmp}/file/x", "{tmp}/loop/x")
UNWRITABLE = ("/proc/cm3leon", "/sys/cm3leon", "{tmp}/file/x/y", "{tmp}/" + "x" * 300)


@pytest.mark.parametrize(("command", "argument"), [*READS, *WRITES])
def test_every_path_argument_is_checked_before_anything_is_written(
    command, argument, tmp_path, tmp_path_factory, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    evaluated = tmp_path_factory.mktemp("evaluated")
    (evaluated / "evaluation.json").write_text("{}")
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    more = {"plan": ["--topology=v5e:4x4"], "generate": ["--prompt=x"]}.get(command, [])
    more = [] if argument == "--prompts" else more
    given = [str(evaluated)] if command == "compare" else ["--config=demo", *more]
    is_file = argument in ("--html", "--json", "--prompts") or command == "compare"
    values = [*NO_PATHS, *UNWRITABLE, "{tmp}" if is_file else "{tmp}/file"]
    for value in (value.replace("{tmp}", str(tmp_path)) for value in values):
        code = main([command, *given, f"{argument}={value}"])
        error = capsys.readouterr().err
        assert code == 2 and error.count("\n") == 1, (value, error)
        if value or argument != "--prompts":
            assert argument.lstrip("-").split(".")[0] in error or "no checkpoints in" in error, (value, error)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"], value


def test_the_paths_above_are_all():
    parsers = {}
    for command, described in COMMANDS.items():
        module = importlib.import_module(described.module)
        parsers[command] = parser = argparse.ArgumentParser()
        getattr(module, "add_arguments", lambda _: None)(parser)
    checked = {(command, argument) for command, argument in (*READS, *WRITES)}
    for command, parser in parsers.items():
        for action in parser._actions:
            if action.metavar in ("FILE", "DIR", "FOLDER"):
                assert (command, action.option_strings[0]) in checked


@pytest.mark.parametrize(
    ("command", "argument"),
    [
        *(("inspect", "--count"), ("plan", "--search"), ("export", "--shard-size"), ("plan", "--topology")),
        *(("plan", "--storage-rate"), ("plan", "--mtbf"), ("plan", "--images")),
    ],
)
def test_numbers_that_make_no_sense_are_one_line(command, argument, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = {"plan": ["--topology=v5e:4x4"], "export": ["--output=o"]}[command] if command != "inspect" else []
    for value in ("0", "-1", "9" * 30, "9" * 5000, "nan", "inf", "1e999", "1.5x", "", "x", "h100:9x9", "h100:999999x8"):
        code = main([command, "--config=demo", *more, f"{argument}={value}"])
        error = capsys.readouterr().err
        assert code == 2 and error.count("\n") == 1 and argument in error, (value, error)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train"], "the following arguments are required: --config; see cm3leon train --help"),
        (["train", "--config=demo", "--workdri=x"], "unrecognized arguments: --workdri=x; did you mean --workdir?"),
        (["generate", "--config=demo", "--samples=x"], "argument --samples"),
        (["export", "--config=demo", "--output=o", "--dtype=x"], "argument --dtype: invalid choice: 'x'"),
    ],
)
def test_arguments_that_cannot_be_read_are_one_line(argv, message, capsys):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_what_the_system_has_against_a_path_is_one_line_at_any_time(tmp_path, capsys, monkeypatch):
    def fails(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "corpus" / ".x.12.partial"))

    monkeypatch.setattr("cm3leon_jax.commands.prepare.run", fails)
    assert main(["prepare", "--config=demo", f"--workdir={tmp_path}"]) == 2
    assert f"cm3leon prepare: {tmp_path}/corpus/x: Permission denied; give yourself" in capsys.readouterr().err


def run_in_shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of bash in which `cm3leon` is this package's; no error of a pipe's first part is hidden."""
    line = f'set -o pipefail; cm3leon() {{ {sys.executable} -m cm3leon_jax "$@"; }}; {line}'
    settings = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, env=settings, cwd="/")


@pytest.mark.parametrize("arguments", ["--help", "train --help", "plan --help"])
def test_a_pipe_that_is_closed_early_ends_quietly(arguments):
    done = run_in_shell(f"(sleep 0.1; cm3leon {arguments}) | true")
    assert (done.returncode, done.stderr) == (141, "")


def test_a_disk_that_is_full_behind_the_output():
    done = run_in_shell("cm3leon --help > /dev/full")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "No space left" in done.stderr


@pytest.mark.parametrize("locale", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}, {"LANG": "C"}])
def test_a_terminal_that_is_not_utf8_shows_what_it_can(locale):
    done = run_in_shell("cm3leon größer", **locale)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "cm3leon gr" in done.stderr and "did you mean" not in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (jax.errors.JaxRuntimeError("UNAVAILABLE: Task /job:jax_worker/replica:0/task:1 is gone"), 75),
        # What a collective raises while it is dispatched.
        (ValueError("UNKNOWN: Gloo AllGather failed: pair.cc:547 Connection closed by peer [127.0.0.1]:61115"), 75),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17 bytes"), 1),
        (ValueError("INVALID_ARGUMENT: shapes do not match"), 1),
        (ValueError("operands could not be broadcast together"), 1),
    ],
)
def test_one_of_several_processes_is_restarted_if_another_is_lost(error, code, tmp_path, capsys, monkeypatch):
    def fails(*_):
        raise error

    left = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cm3leon_jax.commands.prepare.run", fails)
    monkeypatch.setattr("cm3leon_jax.cli._is_one_of_many", lambda: True)
    monkeypatch.setattr("cm3leon_jax.cli._leave", left.append)
    assert main(["prepare", f"--config={ROOT}/examples/digits/demo.py"]) == code
    assert left == [code]
    assert ("lost another process" in capsys.readouterr().err) == (code == 75)


def test_output_that_no_encoding_holds(capsys, monkeypatch):
    monkeypatch.setattr("cm3leon_jax.cli._main", lambda argv: print("an image of caf\udce9") or 0)
    assert main([]) == 0
    assert capsys.readouterr().out == "an image of caf\\udce9\n"


LIGHT = ("train", "generate", "evaluate", "train-image-tokenizer", "train-encoder", "export", "import")


def test_these_commands_import_neither_tensorflow_nor_pytorch():
    modules = ["cm3leon_jax.config_file", *(COMMANDS[command].module for command in LIGHT)]
    code = (
        "import importlib, sys\n"
        f"for module in {modules}:\n"
        "    importlib.import_module(module)\n"
        "    heavy = {'tensorflow', 'torch', 'seqio', 'tensorflow_datasets'} & set(sys.modules)\n"
        "    if heavy: sys.exit(f'{module} imports {heavy}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"cm3leon {cm3leon_jax.__version__}\n"


def test_help_lists_the_config_fields_that_a_command_reads(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--config.evaluate.num_documents=256 int, at least 0. Held-out documents that are captioned" in shown
    assert "--config.corpus.folder.held_out_fraction=0.01 float" in shown
    assert "--config.optimizer" not in shown


def test_the_commands_read_every_part_of_the_config():
    read = {part for command in COMMANDS.values() for part in command.reads}
    assert read == {field.name for field in dataclasses.fields(Config)}
    assert all(bool(command.reads) == command.takes_config for command in COMMANDS.values())


def complete(line: str, tmp_path: Path) -> list[str]:
    """What bash offers at the end of a line, by the script that `cm3leon completion bash` prints."""
    script = tmp_path / "completion.bash"
    if not script.exists():
        script.write_text(completion_script("bash"))
    # As readline does, with "=" a word of its own.
    words = re.findall(r"=|[^=\s]+", line) + ([""] if line.endswith(" ") else [])
    listed = " ".join(f"'{word}'" for word in words)
    program = (
        f"source {script}; COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _cm3leon; "
        'for found in "${COMPREPLY[@]}"; do echo "$found"; done'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("cm3leon tr", ["train-text-tokenizer", "train-image-tokenizer", "train-encoder", "train"]),
        ("cm3leon train --config=de", ["demo", "demo_opt", "demo_sft"]),
        ("cm3leon train --config de", ["demo", "demo_opt", "demo_sft"]),
        ("cm3leon train --config=", ["demo", "mine.py"]),
        ("cm3leon train --config=mi", ["mine.py"]),
        ("cm3leon train --work", ["--workdir="]),
        ("cm3leon train --config.train.num_m", ["--config.train.num_microbatches="]),
        ("cm3leon evaluate --config=demo --config.evaluate.num_d", ["--config.evaluate.num_documents="]),
        ("cm3leon evaluate --config.optimizer.", []),
        ("cm3leon inspect --ch", ["--check"]),
        ("cm3leon generate --prompts=mi", ["mine.py"]),
        ("cm3leon train --config.train.seed=m", []),
    ],
)
def test_completion_in_bash(line, found, tmp_path):
    (tmp_path / "mine.py").touch()
    completed = complete(line, tmp_path)
    assert set(found) <= set(completed)
    if line != "cm3leon train --config=":
        assert set(completed) == set(found)


def test_completion_lists_the_options_of_the_parsers():
    for command, described in COMMANDS.items():
        parser = argparse.ArgumentParser()
        getattr(importlib.import_module(described.module), "add_arguments", lambda _: None)(parser)
        options = {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
        listed = {option.rstrip("=") for option in options_in(described.module)}
        assert listed == options - {"--help"}, command


def test_completion_is_printed(capsys):
    assert main(["completion", "bash"]) == 0
    assert "complete -F _cm3leon cm3leon" in capsys.readouterr().out
    assert main(["completion", "fish"]) == 2
