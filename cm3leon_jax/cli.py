"""The command line: `cm3leon COMMAND --config=FILE [--workdir=DIR] [--config.a.b=value]`."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import importlib.util
import io
import logging
import os
import select
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from cm3leon_jax import __version__, paths
from cm3leon_jax.accelerators import ignore_absent_tpu
from cm3leon_jax.commands.table import COMMANDS, Command
from cm3leon_jax.errors import EXIT_RESTART, EXIT_USER_ERROR, FailedSave, RestartError, UserError
from cm3leon_jax.files import is_full_disk
from cm3leon_jax.log_handler import show_messages
from cm3leon_jax.shipped import shipped_folder
from cm3leon_jax.storage.address import shown

log = logging.getLogger(__name__)


# The exit code that a shell gives to a program ended by SIGPIPE, such as one that writes to `head`.
_NO_READER = 141
# Statuses of the runtime's errors when a connection to another process broke.
_LOST_STATUSES = ("UNKNOWN", "UNAVAILABLE", "INTERNAL", "ABORTED", "CANCELLED", "DEADLINE_EXCEEDED")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Where the terminal or a file name is not UTF-8, escapes are shown.
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _main(list(sys.argv[1:] if argv is None else argv))
        finally:
            _flush()
    except UserError as error:
        print(f"cm3leon: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except BrokenPipeError:
        unread = _unread_streams()
        if not unread:
            raise
        for stream in unread:
            _silence(stream)
    if _is_one_of_many():
        _leave(_NO_READER)
    return _NO_READER


def _flush() -> None:
    try:
        if sys.stdout:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _silence(sys.stdout)
        raise UserError(f"the output cannot be written: {error.strerror}") from None


def _silence(stream: TextIO) -> None:
    """Redirects a stream to /dev/null: the interpreter flushes it at exit, and must not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _unread_streams() -> list[TextIO]:
    """Finds the output streams whose pipe was closed by its reader."""
    found = []
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):
            poll = select.poll()
            poll.register(stream.fileno(), 0)
            if any(event & select.POLLERR for _, event in poll.poll(0)):
                found.append(stream)
    return found


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if argv else EXIT_USER_ERROR
    if argv[0] == "--version":
        print(f"cm3leon {__version__}")
        return 0
    command, *rest = argv
    show_messages()
    ignore_absent_tpu()
    must_leave = False
    try:
        if command not in COMMANDS:
            close = difflib.get_close_matches(command, COMMANDS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"the commands are {', '.join(COMMANDS)}"
            raise UserError(f"no command {command!r}: {hint}")
        return _run(command, rest)
    except UserError as error:
        code, message = EXIT_USER_ERROR, _no_room(error) if is_full_disk(error) else str(error)
        must_leave = isinstance(error, FailedSave)
    except RestartError as error:
        code, message = EXIT_RESTART, str(error)
    except KeyboardInterrupt:
        code, message = EXIT_RESTART, "interrupted; run the same command again to go on"
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _unread_streams():
            raise
        if is_full_disk(error):
            code, message = EXIT_USER_ERROR, _no_room(error)
        elif said := paths.refusal(error):
            code, message = EXIT_USER_ERROR, str(UserError(said))
        elif _is_one_of_many():
            traceback.print_exc()
            code, message = _code_among_many(error)
        else:
            raise
    print(shown(f"cm3leon {command}: {message}"), file=sys.stderr)
    if must_leave or _is_one_of_many():
        _leave(code)
    return code


def _leave(code: int) -> None:
    # The others may wait in a collective, and JAX would wait for them at exit.
    from cm3leon_jax.distributed import hard_exit

    hard_exit(code)


def _is_one_of_many() -> bool:
    distributed = sys.modules.get("cm3leon_jax.distributed")
    return distributed is not None and distributed.has_joined()


def _no_room(error: Exception) -> str:
    where = str(error).splitlines()[-1][:200]
    return f"the disk is full: free some room and run the same command again; what was complete still is ({where})"


def _code_among_many(error: Exception) -> tuple[int, str]:
    """Exit code and message of an exception in one of several processes: a collective fails when another is gone."""
    import jax

    status = str(error).partition(":")[0]
    # A collective that fails at once, not later on the device, raises a ValueError with the runtime's status.
    if (isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error)) or (
        isinstance(error, ValueError) and status in _LOST_STATUSES
    ):
        return EXIT_RESTART, "lost another process of the run, most likely; start all of them again to continue"
    return 1, "ended by the error above"


def _overview() -> str:
    rows = "\n".join(f"  {name:<22} {command.summary}" for name, command in COMMANDS.items())
    return (
        "cm3leon COMMAND --config=FILE [--workdir=DIR] [--config.a.b=value ...]\n\n"
        f"{rows}\n\ncm3leon COMMAND --help describes a command.\n"
        f"Configs and launch scripts are in {shipped_folder()}."
    )


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        unknown, _, option = message.partition(": ")
        if unknown == "unrecognized arguments":
            name = option.split()[0].partition("=")[0]
            if close := difflib.get_close_matches(name, self._option_string_actions, n=1):
                raise UserError(f"{message}; did you mean {close[0]}?")
        raise UserError(f"{message}; see {self.prog} --help")


def _run(command: str, argv: Sequence[str]) -> int:
    overrides, rest = _split_overrides(argv)
    with _shown_as_starting(command):
        module = importlib.import_module(COMMANDS[command].module)
    parser = _parser(command, module.__doc__, lists_fields=not {"-h", "--help"}.isdisjoint(rest))
    if hasattr(module, "add_arguments"):
        module.add_arguments(parser)
    arguments = parser.parse_args(rest)
    if not COMMANDS[command].takes_config:
        return module.run(arguments) or 0

    from cm3leon_jax import config_file
    from cm3leon_jax.storage import mirror

    workdir = arguments.workdir or config_file.default_workdir(arguments.config)
    config = config_file.load(arguments.config, str(workdir), overrides)
    # For commands that load further configs.
    arguments.overrides = overrides
    mirror.refresh(workdir, whole=False)
    config_file.copy_inputs(config, COMMANDS[command].reads)
    _check_writable(COMMANDS[command], config, workdir)
    _join(command, config)
    return module.run(config, workdir, arguments) or 0


def _parser(command: str, description: str | None, lists_fields: bool) -> Parser:
    parser = Parser(
        prog=f"cm3leon {command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_help_on_fields(command) if lists_fields and COMMANDS[command].takes_config else None,
    )
    if COMMANDS[command].takes_config:
        parser.add_argument(
            "--config",
            required=True,
            metavar="FILE",
            help="a config file, configs/NAME.py[:VARIANT]; the NAME of one of the package's; "
            "or the config.json of a run",
        )
        parser.add_argument(
            "--workdir",
            type=paths.run_folder("--workdir"),
            metavar="DIR",
            help="folder of the run (default: runs/NAME, or that of config.json)",
        )
    return parser


def _help_on_fields(command: str) -> str:
    from cm3leon_jax.config_fields import config_fields

    fields = "\n".join(map(str, config_fields(COMMANDS[command].reads)))
    return f"config fields that {command} reads, set by a config file or the command line:\n{fields}"


@contextlib.contextmanager
def _shown_as_starting(command: str) -> Iterator[None]:
    """Shows that libraries are loading, which takes seconds: on a terminal for as long as it takes."""
    if not COMMANDS[command].takes_config:
        yield
    elif sys.stderr.isatty():
        print(f"cm3leon {command} is starting ...", end="", file=sys.stderr, flush=True)
        yield
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    else:
        if all(os.environ.get(name, "0") == "0" for name in ("JAX_PROCESS_ID", "SLURM_PROCID")):
            log.info(f"cm3leon {command} is starting")
        yield


def _check_writable(command: Command, config: Any, workdir: Path) -> None:
    """Checks before hours of work that the result can be written."""
    for name in command.writes:
        if name == "workdir":
            paths.writable_folder(workdir, "--workdir")
        else:
            paths.writable_folder(Path(getattr(config, name).path), f"config.{name}.path")


def _join(command: str, config: Any) -> None:
    """Joins the other processes that the environment names; refuses them if the command runs as one process."""
    from cm3leon_jax import distributed

    if COMMANDS[command].distributed:
        # Other commands have no step to save at SIGTERM: started again, they continue after what they wrote.
        distributed.join(config.distributed, notes_sigterm=command.startswith("train"))
    elif processes := distributed.named_processes(os.environ):
        raise UserError(f"runs as one process, and this is {processes}: start it once, without a launcher")


def _split_overrides(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    overrides: dict[str, str] = {}
    rest: list[str] = []
    for argument in argv:
        if argument.startswith("--config."):
            name, equals, value = argument.removeprefix("--config.").partition("=")
            if not equals:
                raise UserError(f"{argument}: write --config.{name}=value")
            overrides[name] = value
        else:
            rest.append(argument)
    return overrides, rest
