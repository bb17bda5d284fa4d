"""Checkpoints in buckets, against real stores: what `tests/test_checkpoints.py` asks of those on a disk."""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cm3leon_jax import bucket_steps, paths
from cm3leon_jax.checkpoints import Checkpoints, DamagedCheckpoint
from cm3leon_jax.errors import FailedSave, NotFinite, UserError
from cm3leon_jax.storage import objects


@pytest.fixture
def folder(root) -> Path:
    return Path(paths.local(f"{root}/run/checkpoints", "--workdir"))


@pytest.fixture
def address(root) -> str:
    return f"{root}/run/checkpoints"


def state_on(num_devices: int, value: float = 1.0) -> dict:
    """A stack sharded over devices, a replicated array, and a tuple, as a training state has them."""
    mesh = Mesh(np.array(jax.devices()[:num_devices]), ("fsdp",))
    sharded, whole = NamedSharding(mesh, PartitionSpec(None, "fsdp")), NamedSharding(mesh, PartitionSpec())
    stack = jax.device_put(value * jnp.arange(3 * 8 * 4, dtype=jnp.float32).reshape(3, 8, 4), sharded)
    return {
        "parameters": {"blocks": {"kernel": stack}, "bias": jax.device_put(jnp.ones(5, jnp.bfloat16), whole)},
        "optimizer": (jax.device_put(jnp.int32(7), whole), {"mu": stack * 2}),
    }


def abstract(state: dict) -> dict:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same(one: dict, other: dict) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype and np.array_equal(np.asarray(a), np.asarray(b))


def test_what_is_saved_is_read_on_other_devices(folder, address):
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (5, 10, 15):
            checkpoints.save(step, state_on(4, step), {"at": step})
        assert checkpoints.latest_step == 15
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.steps == [10, 15] and checkpoints.meta(10) == {"at": 10}
        wanted = state_on(2, 10)
        found = checkpoints.restore(10, abstract(wanted))
        assert_same(found, wanted)
        assert found["parameters"]["blocks"]["kernel"].sharding.num_devices == 2
        lazy = checkpoints.lazy_parameters(15)
        assert sorted(lazy) == ["bias", "blocks.kernel"]
        np.testing.assert_array_equal(lazy["blocks.kernel"][1].read().result(), 15 * np.arange(32, 64).reshape(8, 4))
    # Nothing is left of what is no longer kept.
    assert {name.split("/")[0] for name in objects.list_objects(address)} == {"10", "15"}


def test_the_array_is_copied_before_save_returns(folder):
    with Checkpoints(folder, keep=1) as checkpoints:
        state = state_on(4)
        checkpoints.save(1, state, {})
        jax.tree.map(lambda array: array.delete(), state)
        checkpoints.wait()
        assert_same(checkpoints.restore(1, abstract(state_on(1))), state_on(1))


def test_unfinished_steps_are_none_and_go(folder, address):
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.save(5, state_on(4), {})
        checkpoints.save(6, state_on(4), {})
    objects.delete_object(f"{address}/6/record.json")
    with Checkpoints(folder, keep=2, read_only=True) as checkpoints:
        assert checkpoints.steps == [5]
    assert any(name.startswith("6/") for name in objects.list_objects(address))
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.latest_step == 5
    assert not any(name.startswith("6/") for name in objects.list_objects(address))


def test_later_steps_are_dropped(folder, address):
    with Checkpoints(folder, keep=9) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state_on(2, step), {})
        checkpoints.drop_after(1)
        assert checkpoints.steps == [1] and checkpoints.latest_step == 1
        checkpoints.save(2, state_on(2, 20.0), {"again": True})
        checkpoints.wait()
        assert_same(checkpoints.restore(2, abstract(state_on(2))), state_on(2, 20.0))
    assert {name.split("/")[0] for name in objects.list_objects(address)} == {"1", "2"}


@pytest.mark.parametrize("which", ["record.json", "kernel", "missing"])
def test_damage_is_noticed_and_quarantined(folder, address, which):
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.save(3, state_on(2), {"at": 3})
        checkpoints.wait()
        names = sorted(objects.list_objects(address))
        name = next(name for name in names if (which if which != "missing" else "kernel") in name and ".z" not in name)
        if which == "missing":
            objects.delete_object(f"{address}/{name}")
        else:
            content = bytearray(objects.read_object_bytes(f"{address}/{name}"))
            content[len(content) // 2] ^= 4
            objects.write_object_bytes(f"{address}/{name}", bytes(content))
        with pytest.raises(DamagedCheckpoint, match=r"checkpoints/3"):
            checkpoints.restore(3, abstract(state_on(2)))
        assert checkpoints.quarantine(3).name == "damaged-3"
        assert checkpoints.steps == []
    kept = [name.replace("damaged-3/", "3/") for name in objects.list_objects(address)]
    assert sorted(kept) == [other for other in names if which != "missing" or other != name]


def test_another_model_and_infinity_are_refused(folder):
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.save(3, state_on(2), {})
        checkpoints.wait()
        other = state_on(2) | {"more": jnp.zeros(3)}
        with pytest.raises(UserError, match="more is missing there"):
            checkpoints.restore(3, abstract(other))
        with pytest.raises(NotFinite):
            checkpoints.save(4, state_on(2, np.inf), {})


def test_a_save_that_fails_is_said_at_the_next_wait(folder, monkeypatch):
    def fails(*arguments):
        raise ValueError("no room")

    with pytest.raises(FailedSave, match=r"gs://|s3://"), Checkpoints(folder, keep=2) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(objects, "write_object_bytes", fails)
            checkpoints.save(3, state_on(2), {})
            checkpoints._steps._writer.join()
        assert checkpoints.steps == []
        checkpoints.wait()


def test_saving_returns_before_it_is_written(folder, monkeypatch):
    started = time.monotonic()

    def slow(address, content, write=objects.write_object_bytes):
        time.sleep(1.0)
        write(address, content)

    with monkeypatch.context() as patch:
        patch.setattr(objects, "write_object_bytes", slow)
        with Checkpoints(folder, keep=2) as checkpoints:
            checkpoints.get_ready(state_on(2))
            started = time.monotonic()
            checkpoints.save(3, state_on(2), {})
            assert checkpoints._steps._writer.is_alive() and time.monotonic() - started < 1.0


def test_chunks_divide_shards():
    assert bucket_steps.chunk_shape((12, 4096, 4096), 4, is_stack=True) == (1, 2048, 2048)
    assert bucket_steps.chunk_shape((7, 3), 4, is_stack=False) == (7, 3)
    assert bucket_steps.chunk_shape((), 4, is_stack=True) == ()
    assert bucket_steps.chunk_shape((2 * 28163, 4096), 4, is_stack=False) == (28163, 128)
    assert bucket_steps.chunk_shape((10_000_019,), 4, is_stack=False) == (10_000_019,)
