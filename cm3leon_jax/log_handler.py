"""Shows the package's log messages on the console, as plain lines, once the command line calls `show_messages`."""

from __future__ import annotations

import contextlib
import logging
import sys

from cm3leon_jax.storage.address import shown


class ConsoleHandler(logging.Handler):
    """Writes information to stdout, warnings and errors to stderr, above the progress bar if there is one.

    Of several processes only the coordinator shows information; warnings and errors are shown by each.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one message; a closed pipe or a full disk is the command's to handle, so it is raised."""
        is_warning = record.levelno >= logging.WARNING
        if not is_warning and _is_follower():
            return
        # Looked up now: tests and notebooks replace the streams.
        stream = sys.stderr if is_warning else sys.stdout
        # Without tqdm there is no bar.
        tqdm = sys.modules.get("tqdm")
        with tqdm.tqdm.external_write_mode(file=stream) if tqdm else contextlib.nullcontext():
            print(shown(self.format(record)), file=stream, flush=True)


def show_messages() -> None:
    """Connects the package's loggers to the console; a second call changes nothing."""
    package = logging.getLogger("cm3leon_jax")
    package.setLevel(logging.INFO)
    # A handler of a library at the root would repeat each line.
    package.propagate = False
    if not any(isinstance(handler, ConsoleHandler) for handler in package.handlers):
        package.addHandler(ConsoleHandler())


def _is_follower() -> bool:
    """Whether this process is one of several, and not the coordinator; JAX is not imported to find out."""
    distributed = sys.modules.get("cm3leon_jax.distributed")
    return distributed is not None and distributed.has_joined() and not distributed.is_coordinator()
