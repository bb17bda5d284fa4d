"""Stores that refuse, cut connections, lose answers and take their time: nothing is lost, nothing is read in half."""

from pathlib import Path

import numpy as np
import pytest

from cm3leon_jax import files, paths
from cm3leon_jax.checkpoints import Checkpoints
from cm3leon_jax.errors import RestartError, UserError
from cm3leon_jax.lock import lock
from cm3leon_jax.storage import lease, mirror, objects
from tests.storage import servers
from tests.storage.test_checkpoints import abstract, assert_same, state_on


@pytest.mark.slow
def test_what_is_written_is_read(disturbed, tmp_path, monkeypatch):
    root, proxy = disturbed
    proxy.disturb_every(3)
    folder = Path(paths.local(f"{root}/run", "--workdir"))
    rng = np.random.default_rng(0)
    contents = {f"{number:02d}.npy" if number % 2 else f"{number:02d}.json": rng.bytes(20_000) for number in range(12)}
    for name, content in contents.items():
        with files.atomic_write(folder / name) as temporary:
            temporary.write_bytes(content)
    files.remove(folder / "00.json")
    del contents["00.json"]
    assert sorted(objects.list_objects(f"{root}/run")) == sorted(contents)
    monkeypatch.setenv("CM3LEON_CACHE", str(tmp_path / "another"))
    mirror._listed.clear()
    copy = Path(paths.local(f"{root}/run", "--workdir"))
    mirror.refresh(copy)
    mirror.fetch_arrays([copy / name for name in contents])
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == contents
    assert {fault.split()[0] for fault in proxy.faults} == set(servers.KINDS) and len(proxy.faults) > 8


@pytest.mark.slow
def test_checkpoints(disturbed):
    root, proxy = disturbed
    proxy.disturb_every(5)
    folder = Path(paths.local(f"{root}/run/checkpoints", "--workdir"))
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state_on(4, step), {"at": step})
        checkpoints.wait()
        assert checkpoints.steps == [2, 3]
        assert_same(checkpoints.restore(3, abstract(state_on(2))), state_on(2, 3))
    assert {name.split("/")[0] for name in objects.list_objects(f"{root}/run/checkpoints")} == {"2", "3"}
    assert len(proxy.faults) > 5


@pytest.mark.slow
def test_a_lock_is_held_by_one(disturbed, monkeypatch):
    root, proxy = disturbed
    proxy.disturb_every(2)
    monkeypatch.setattr(lease, "_WRITE_SECONDS", 0.2)
    folder = Path(paths.local(f"{root}/run", "--workdir"))
    refused = pytest.raises(UserError, match=f"{root}/run is in use by `cm3leon train`")
    with lock(folder, "train"), refused, lock(folder, "prepare"):
        raise AssertionError("two have the lock")
    assert objects.list_objects(f"{root}/run") == {}


def test_a_store_that_never_answers(disturbed, monkeypatch):
    root, proxy = disturbed
    proxy.fault = lambda number, line: "503"
    monkeypatch.setattr(objects, "_TRIES", 2)
    # The libraries' own tries take a minute.
    store = objects._file_system(root[:2])
    monkeypatch.setattr(store, "cat_file", lambda address: (_ for _ in ()).throw(OSError("503")), raising=False)
    with pytest.raises(RestartError, match=rf"{root}/x cannot be read after 2 tries .*run the same command again"):
        objects.read_object_bytes(f"{root}/x")
