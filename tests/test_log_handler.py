"""Log messages on the console: plain lines, on the right stream, of the right process."""

import io
import logging
import sys

import pytest
from tqdm import tqdm

from cm3leon_jax import distributed
from cm3leon_jax.log_handler import ConsoleHandler, show_messages

log = logging.getLogger("cm3leon_jax.somewhere")


def test_information_goes_to_stdout_and_warnings_to_stderr(capsys):
    log.debug("too much")
    log.info("step 3, 100% of it")
    log.warning("odd: %s", "a file")
    log.error("bad")
    shown = capsys.readouterr()
    assert shown.out == "step 3, 100% of it\n"
    assert shown.err == "odd: a file\nbad\n"


def test_a_second_call_does_not_repeat_the_lines(capsys):
    show_messages()
    show_messages()
    log.info("once")
    assert capsys.readouterr().out == "once\n"
    assert sum(isinstance(handler, ConsoleHandler) for handler in logging.getLogger("cm3leon_jax").handlers) == 1


@pytest.mark.parametrize("is_coordinator", [True, False])
def test_only_the_coordinator_of_several_processes_shows_information(is_coordinator, capsys, monkeypatch):
    monkeypatch.setattr(distributed, "has_joined", lambda: True)
    monkeypatch.setattr(distributed, "is_coordinator", lambda: is_coordinator)
    log.info("all have joined")
    log.warning("this process's disk is slow")
    shown = capsys.readouterr()
    assert shown.out == ("all have joined\n" if is_coordinator else "")
    assert shown.err == "this process's disk is slow\n"


def test_a_message_stands_above_the_progress_bar(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    with tqdm(total=3, file=terminal, desc="training", mininterval=0) as bar:
        bar.update()
        log.info("a checkpoint is saved")
        bar.update()
    # The bar was cleared before the message, and shown again after it.
    before, after = terminal.getvalue().split("a checkpoint is saved\n")
    assert before.endswith("\r") and "training" in before and "training" in after


def test_a_closed_pipe_reaches_the_command(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(BrokenPipeError):
        log.info("nobody reads this")
