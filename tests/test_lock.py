"""A folder is one command's at a time, and a dead process holds nothing."""

import dataclasses
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from cm3leon_jax import lock as locks
from cm3leon_jax.errors import UserError
from cm3leon_jax.lock import LOCK_FILE, Holder, lock

SPAWN = multiprocessing.get_context("spawn")


def hold(folder: Path, held) -> None:
    """What another process does: holds a folder until it is ended."""
    with lock(folder, "train"):
        held.set()
        time.sleep(600)


@pytest.fixture
def other(tmp_path):
    """Another process of this machine that holds tmp_path."""
    held = SPAWN.Event()
    process = SPAWN.Process(target=hold, args=(tmp_path, held), daemon=True)
    process.start()
    assert held.wait(60)
    yield process
    process.kill()
    process.join()


@pytest.fixture
def impatient(monkeypatch):
    """Waits in hundredths of seconds."""
    monkeypatch.setattr(locks, "_TOUCH_SECONDS", 0.02)
    monkeypatch.setattr(locks, "_DEAD_AFTER_SECONDS", 0.3)
    monkeypatch.setattr(locks, "_LEASE_SECONDS", 0.6)
    monkeypatch.setattr(locks, "_POLL_SECONDS", 0.01)


def write_holder(folder: Path, **differs) -> Holder:
    holder = dataclasses.replace(Holder.this_process("train"), **differs)
    (folder / LOCK_FILE).write_text(json.dumps(dataclasses.asdict(holder)))
    return holder


def test_the_second_is_refused_by_name_and_a_killed_one_is_no_obstacle(tmp_path, other):
    with pytest.raises(UserError) as refused, lock(tmp_path, "prepare"):
        pass
    said = str(refused.value)
    assert f"process {other.pid}" in said and str(tmp_path) in said and "`cm3leon train`" in said and "since 20" in said
    assert "\n" not in said
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    assert (tmp_path / LOCK_FILE).exists()
    started = time.monotonic()
    with lock(tmp_path, "prepare"):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["command"] == "prepare"
    assert time.monotonic() - started < locks._RELEASE_SECONDS
    assert not list(tmp_path.iterdir())


def test_it_is_let_go_however_the_body_ends(tmp_path):
    for folder in (tmp_path / "new" / "folder", tmp_path):
        with pytest.raises(ZeroDivisionError), lock(folder, "train"):
            _ = 1 / 0
        assert not list(tmp_path.iterdir())
    with lock(tmp_path, "export", ".out.lock"), lock(tmp_path, "train"):
        pass


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"command": "train"}', b"null"])
def test_a_lock_that_names_nobody_is_taken(tmp_path, content):
    (tmp_path / LOCK_FILE).write_bytes(content)
    with lock(tmp_path, "train"):
        pass


@pytest.mark.parametrize("has_flock", [True, False])
def test_another_host_holds_it_as_long_as_it_touches_it(tmp_path, monkeypatch, impatient, capsys, has_flock):
    monkeypatch.setattr(locks, "_flock", lambda descriptor: has_flock or None)
    descriptor = os.open(tmp_path / LOCK_FILE, os.O_RDWR | os.O_CREAT)
    write_holder(tmp_path, boot="another", host="far")
    alive = locks._Held(tmp_path / LOCK_FILE, descriptor)
    with pytest.raises(UserError, match="on host far"), lock(tmp_path, "train"):
        pass
    alive.release()
    write_holder(tmp_path, boot="another", host="far")
    with lock(tmp_path, "train"):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["boot"] != "another"
    assert "waiting for a sign of life" in capsys.readouterr().out


def test_without_kernel_locks_a_process_of_this_machine_is_looked_up(tmp_path, monkeypatch, impatient):
    monkeypatch.setattr(locks, "_flock", lambda descriptor: None)
    process = SPAWN.Process(target=time.time)
    process.start()
    process.join()
    monkeypatch.setattr(locks, "_DEAD_AFTER_SECONDS", 600.0)
    write_holder(tmp_path, process=process.pid)
    with lock(tmp_path, "train"):
        pass
    # The number is another process's by now, which touches nothing.
    monkeypatch.setattr(locks, "_DEAD_AFTER_SECONDS", 0.1)
    write_holder(tmp_path, process=os.getppid())
    with lock(tmp_path, "train"):
        pass


def test_a_file_server_that_still_holds_a_dead_host_s_lock_is_given_up_on_by_name(tmp_path, monkeypatch, impatient):
    monkeypatch.setattr(locks, "_flock", lambda descriptor: False)
    write_holder(tmp_path, boot="another", host="far")
    with pytest.raises(UserError, match="on host far"), lock(tmp_path, "train"):
        pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/run"), lock(tmp_path / "file" / "run", "train"):
        pass


def test_the_other_processes_of_a_run_hear_of_a_refusal(tmp_path, monkeypatch, other):
    monkeypatch.setattr(locks, "has_joined", lambda: True)
    monkeypatch.setattr(locks, "is_coordinator", lambda: False)
    monkeypatch.setattr(locks, "all_processes", lambda value: False)
    with pytest.raises(UserError, match="process 0"), lock(tmp_path, "train"):
        pass
    # Where the first process has it, the others run beside it.
    monkeypatch.setattr(locks, "all_processes", lambda value: value)
    with lock(tmp_path, "train"):
        pass
