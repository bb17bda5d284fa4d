"""The lock in a bucket: one holder, and another only once that one is gone."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

from cm3leon_jax import paths
from cm3leon_jax.errors import UserError
from cm3leon_jax.lock import lock
from cm3leon_jax.storage import lease, objects


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lease, "_WRITE_SECONDS", 0.2)
    monkeypatch.setattr(lease, "_GONE_AFTER_SECONDS", 2.0)
    monkeypatch.setattr(lease, "_POLL_SECONDS", 0.05)


def holder(**values) -> bytes:
    return json.dumps({"command": "train", "host": "far", "boot": "other", "process": 1, "count": 1} | values).encode()


def test_one_holder_at_a_time(root):
    folder = Path(paths.local(f"{root}/run", "--workdir"))
    with lock(folder, "train"):
        (name,) = objects.list_objects(f"{root}/run")
        assert name == ".lock" and not (folder / ".lock").exists()
        with (
            pytest.raises(
                UserError, match=rf"^{root}/run is in use by `cm3leon train` \(process {os.getpid()} on host"
            ),
            lock(folder, "prepare"),
        ):
            raise AssertionError("two have the lock")
    assert objects.list_objects(f"{root}/run") == {}
    with lock(folder, "prepare"):
        pass


def test_a_holder_that_is_silent_is_gone(root):
    objects.write_object_bytes(f"{root}/.lock", holder())
    started = time.monotonic()
    held = lease.Lease(f"{root}/.lock", {"command": "prepare"}, lambda other: False)
    assert time.monotonic() - started > 2.0
    held.release()
    assert objects.list_objects(root) == {}


def test_a_holder_that_is_known_to_have_ended_is_not_waited_for(root):
    objects.write_object_bytes(f"{root}/.lock", holder(boot="here"))
    started = time.monotonic()
    held = lease.Lease(f"{root}/.lock", {"command": "prepare"}, lambda other: other["boot"] == "here")
    assert time.monotonic() - started < 2.0
    held.release()


def test_of_many_that_wait_one_takes_over(root):
    objects.write_object_bytes(f"{root}/.lock", holder())
    held, refused = [], []

    def waits(number: int) -> None:
        try:
            held.append(lease.Lease(f"{root}/.lock", {"command": "prepare", "host": number}, lambda other: False))
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=waits, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1 and len(refused) == 4
    held[0].release()
    assert objects.list_objects(root) == {}


def test_a_claim_of_one_that_is_gone_does_not_last(root):
    objects.write_object_bytes(f"{root}/.lock", holder())
    objects.write_object_bytes(f"{root}/.lock.claim", holder(command="prepare"))
    held = lease.Lease(f"{root}/.lock", {"command": "prepare"}, lambda other: False)
    held.release()
    assert objects.list_objects(root) == {}
