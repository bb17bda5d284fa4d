"""Checkpoints: the same numbers back, on any mesh, and only what belongs together."""

import dataclasses
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cm3leon_jax.checkpoints import Checkpoints, _bit_sum_of_part, bit_sums, flat, refuse_another_model, refuse_changes
from cm3leon_jax.config import BatchConfig, Config, MeshConfig, TrainConfig
from cm3leon_jax.errors import UserError
from cm3leon_jax.model.sharding import make_mesh
from cm3leon_jax.training.step import TrainStep


def compiled_on(config, vocabulary, mesh_config):
    return TrainStep(config, vocabulary, make_mesh(mesh_config))


@pytest.fixture
def config(tiny_model, tiny_pictures) -> Config:
    return Config(
        image_tokenizer=tiny_pictures, model=tiny_model, batch=BatchConfig(8, 32), train=TrainConfig(num_tokens=2560.0)
    )


def test_a_state_comes_back_bit_for_bit_on_another_mesh(config, vocabulary, tmp_path):
    state = compiled_on(config, vocabulary, MeshConfig(replica=2, fsdp=2, tensor=2)).init()
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        checkpoints.save(7, state, {"vocabulary": "x"})

    other = compiled_on(config, vocabulary, MeshConfig(fsdp=8))
    with Checkpoints(tmp_path / "checkpoints", keep=2) as again:
        assert again.latest_step == 7
        assert again.meta(7) == {"vocabulary": "x"}
        restored = again.restore(7, other.abstract_state)
        parameters = again.restore_parameters(7, other.abstract_state["parameters"])
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(restored))
    assert jax.tree.map(lambda a: a.sharding, restored) == jax.tree.map(lambda a: a.sharding, other.abstract_state)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state["parameters"]), jax.device_get(parameters))


MESHES = [
    MeshConfig(replica=8, fsdp=1),
    MeshConfig(fsdp=8),
    MeshConfig(fsdp=4, tensor=2),
    MeshConfig(replica=2, fsdp=2, tensor=2),
]


@pytest.mark.slow
def test_any_mesh_reads_what_any_other_wrote(config, vocabulary, tmp_path):
    compiled = [compiled_on(config, vocabulary, mesh) for mesh in MESHES]
    expected = jax.device_get(compiled[0].init())
    for written, step in enumerate(compiled, start=1):
        with Checkpoints(tmp_path / str(written), keep=1) as checkpoints:
            state = jax.tree.map(
                lambda value, abstract: jax.device_put(value, abstract.sharding), expected, step.abstract_state
            )
            checkpoints.save(written, state, {})
            checkpoints.wait()
            for other in compiled:
                found = checkpoints.restore(written, other.abstract_state)
                jax.tree.map(np.testing.assert_array_equal, expected, jax.device_get(found))


def test_a_part_of_a_parameter_is_read_alone(config, vocabulary, tmp_path, monkeypatch):
    monkeypatch.setattr("cm3leon_jax.checkpoints._CHUNK_BYTES", 1 << 10)
    state = compiled_on(config, vocabulary, MeshConfig(replica=2, fsdp=2, tensor=2)).init()
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        found = checkpoints.lazy_parameters(1)
    expected = flat(nnx.to_pure_dict(state["parameters"]))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        pieces = found[name].chunk_layout.read_chunk.shape
        assert 4 * np.prod(pieces) <= 1 << 10
        # Every layer of a stack has pieces of its own.
        assert pieces[0] == 1 or not name.startswith("blocks")
        np.testing.assert_array_equal(found[name][1].read().result(), value[1])


def test_old_steps_go(config, vocabulary, tmp_path):
    state = compiled_on(config, vocabulary, MeshConfig(fsdp=8)).init()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, state, {})
    assert sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()) == [3, 4]


def test_a_save_does_not_ask_whether_to_stop(config, vocabulary, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("jax.experimental.multihost_utils.reached_preemption_sync_point", asked.append)
    state = compiled_on(config, vocabulary, MeshConfig(fsdp=8)).init()
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        checkpoints.save(7, state, {})
    assert not asked


def test_another_model_is_refused(config, vocabulary, tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, compiled_on(config, vocabulary, MeshConfig(fsdp=8)).init(), {})
    wider = dataclasses.replace(config, model=dataclasses.replace(config.model, model_dim=64))
    abstract = compiled_on(wider, vocabulary, MeshConfig(fsdp=8)).abstract_state
    refused = pytest.raises(UserError, match="does not fit the model of this config")
    with Checkpoints(tmp_path, keep=1) as checkpoints, refused:
        checkpoints.restore(1, abstract)
    # Orbax leaves its failed tasks to the collector, which reports them: here, and not in the middle of another test.
    gc.collect()


def test_changes_are_named_unless_they_may_be():
    before = {"model": {"num_layers": 2, "remat": "save_dots"}, "shape": [1, 2]}
    now = {"model": {"num_layers": 2, "remat": "none", "new_field": 3}, "shape": (1, 2)}
    refuse_changes(before, now, ["model.remat"], "the run was")
    refuse_changes(before, now, ["model"], "the run was")
    with pytest.raises(
        UserError, match=r"the run was made with other values: model.remat was 'save_dots' and is 'none'; use"
    ):
        refuse_changes(before, now, ["shape"], "the run was")


def test_a_field_that_is_newer_than_the_record_had_its_default():
    before = dataclasses.asdict(Config())
    del before["model"]["rotary_pictures"]
    same = Config()
    refuse_changes({"config": before}, {"config": dataclasses.asdict(same)}, [], "the run was")
    model = dataclasses.replace(same.model, positions="rotary", picture_places=1024, rotary_pictures=True)
    turned = dataclasses.asdict(dataclasses.replace(same, model=model))
    with pytest.raises(UserError, match=r"config.model.rotary_pictures was False and is True"):
        refuse_changes({"config": before}, {"config": turned}, ["config.model.positions"], "the run was")
    with pytest.raises(UserError, match=r"model.rotary_pictures was False and is True"):
        refuse_another_model({"config": before}, dataclasses.replace(same, model=model), "the checkpoint")


def test_sums_of_bits_are_those_of_any_mesh_and_tell_any_change():
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    rng = np.random.default_rng(0)
    array = rng.standard_normal((4, 8, 8)).astype(np.float32)
    spread = jax.device_put(array, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "fsdp", "tensor")))
    sums = bit_sums({"a": array, "b": array.astype(np.int32)})
    assert sums["a"] == bit_sums({"a": spread})["a"] != sums["b"]
    assert bit_sums({"a": array.astype(jax.numpy.bfloat16)}) != sums
    changed = []
    for change in (
        lambda a: a.__setitem__((1, 2, 3), np.nextafter(a[1, 2, 3], 9)),
        lambda a: a.__setitem__((0, 0, 0), -a[0, 0, 0]),
        lambda a: a.__setitem__(slice(None), a.swapaxes(1, 2).copy()),
        lambda a: a.__setitem__(slice(None), np.roll(a, 1, axis=2)),
        lambda a: a.__setitem__(slice(None), a[::-1].copy()),
    ):
        other = array.copy()
        change(other)
        changed.append(bit_sums({"a": other})["a"])
    assert len({sums["a"], *changed}) == 6
    # What is not finite has bits as well.
    assert bit_sums({"a": np.float32("nan")}) == bit_sums({"a": np.float32("nan")}) != bit_sums({"a": np.float32(0)})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_parts_add_up_to_the_sum_of_the_whole(dtype):
    rng = np.random.default_rng(0)
    for shape in ((7,), (5, 6), (3, 4, 5), (2, 3, 4, 5)):
        array = np.asarray(jnp.asarray(rng.standard_normal(shape), dtype))
        cut = int(rng.integers(1, shape[0]))
        parts = [(array[:cut], (0,)), (array[cut:, ...], (cut,))]
        if len(shape) > 1:
            parts[1:] = [(array[cut:, :2], (cut, 0)), (array[cut:, 2:], (cut, 2))]
        found = sum(_bit_sum_of_part(np.ascontiguousarray(part), start) for part, start in parts)
        assert found % (1 << 32) == bit_sums({"a": array})["a"]
