"""Prints a script that completes commands, options, configs and config fields in bash or zsh.

source <(cm3leon completion bash)
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
from pathlib import Path

from cm3leon_jax.commands.table import COMMANDS
from cm3leon_jax.config_fields import config_fields
from cm3leon_jax.shipped import shipped_configs

# bash cuts words at "=", zsh does not: `option` is what comes before it, `value` what comes after.
_SCRIPT = """\
_cm3leon() {{
  local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}" option="" value="" prefix=""
  local command="${{COMP_WORDS[1]}}" options=""
  if [[ $cur == "=" ]]; then
    option=$prev
  elif [[ $prev == "=" ]]; then
    option="${{COMP_WORDS[COMP_CWORD-2]}}" value=$cur
  elif [[ $cur == --*=* ]]; then
    option="${{cur%%=*}}" value="${{cur#*=}}" prefix="${{cur%%=*}}="
  elif [[ $prev == --config || $prev == --workdir ]]; then
    option=$prev value=$cur
  fi
  COMPREPLY=()
  if [[ $COMP_CWORD -eq 1 ]]; then
    COMPREPLY=($(compgen -W "{commands}" -- "$cur"))
    return
  fi
  if [[ $option == --config ]]; then
    COMPREPLY=($(compgen -P "$prefix" -W "{configs}" -- "$value") $(compgen -P "$prefix" -f -- "$value"))
    return
  fi
  if [[ -n $option ]]; then
    [[ $option == --config.* ]] || COMPREPLY=($(compgen -P "$prefix" -f -- "$value"))
    return
  fi
  case $command in
{cases}
  esac
  COMPREPLY=($(compgen -W "$options" -- "$cur"))
  if [[ ${{COMPREPLY[0]}} == *= ]]; then compopt -o nospace 2>/dev/null; fi
}}
complete -F _cm3leon cm3leon
"""
_ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh"))


def run(arguments: argparse.Namespace) -> None:
    print(completion_script(arguments.shell), end="")


def completion_script(shell: str) -> str:
    cases = []
    for name, command in COMMANDS.items():
        options = ["--help", *options_in(command.module)]
        if command.takes_config:
            options += ["--config=", "--workdir="]
            options += [f"--config.{field.name}=" for field in config_fields(command.reads)]
        cases.append(f'    {name}) options="{" ".join(options)}" ;;')
    script = _SCRIPT.format(
        commands=" ".join(COMMANDS),
        configs=" ".join(sorted(path.stem for path in shipped_configs())),
        cases="\n".join(cases),
    )
    return (_ZSH if shell == "zsh" else "") + script


def options_in(module: str) -> list[str]:
    """Lists the options that a command's source adds, with "=" after those that take a value.

    To import the modules of all commands would take many seconds.
    """
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    found = []
    for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            name = ast.literal_eval(node.args[0])
            is_flag = any(keyword.arg == "action" for keyword in node.keywords)
            if name.startswith("--"):
                found.append(name if is_flag else f"{name}=")
    return sorted(found)
