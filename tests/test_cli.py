"""The command line: help on everything, exit codes, one line for a mistake."""

import subprocess
import sys

import pytest

from cm3leon_jax.cli import COMMANDS, main


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "--config FILE" in capsys.readouterr().out


def test_the_overview_names_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)
    assert main([]) == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "no command 'trian'"),
        (["train", "--config=configs/nothing.py"], "no config file configs/nothing.py"),
        (["train", "--config=configs/demo.py", "--config.model.depth=3"], "--config.model.depth: no such field"),
        (["train", "--config=configs/demo.py", "--config.model.num_layers"], "write --config.model.num_layers=value"),
        (["train", "--config=configs/demo.py", "--workdir={tmp}"], "no vocabulary at"),
        (["generate", "--config=configs/demo.py", "--workdir={tmp}", "--prompt=x"], "no checkpoints in"),
        (["evaluate", "--config=configs/demo.py", "--workdir={tmp}"], "no checkpoints in"),
        (["generate", "--config=configs/demo.py", "--workdir={tmp}"], "give either --prompt=TEXT or --prompts=FILE"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(argv, message, tmp_path, capsys):
    assert main([argument.replace("{tmp}", str(tmp_path)) for argument in argv]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


LIGHT = ("train", "generate", "evaluate", "train-image-tokenizer", "train-bi-encoder", "export", "import")


@pytest.mark.parametrize("command", LIGHT)
def test_these_commands_import_neither_tensorflow_nor_pytorch(command):
    module = COMMANDS[command][0]
    code = (
        f"import sys, {module}, cm3leon_jax.config_file; "
        "heavy = {'tensorflow', 'torch', 'seqio', 'tensorflow_datasets'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
