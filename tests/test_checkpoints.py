"""Checkpoints: the same numbers back, on any mesh, and only what belongs together."""

import dataclasses
import gc
import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cm3leon_jax import orbax_steps
from cm3leon_jax.bit_sums import bit_sum_of_part, sums_and_finiteness
from cm3leon_jax.checkpoints import Checkpoints, DamagedCheckpoint, check_same_model, check_unchanged, flat
from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.config import BatchConfig
from cm3leon_jax.errors import FailedSave, NotFinite, RestartError, UserError
from cm3leon_jax.models.config import MeshConfig
from cm3leon_jax.models.sharding import make_mesh
from cm3leon_jax.newest_checkpoint import read_newest
from cm3leon_jax.training.config import TrainConfig
from cm3leon_jax.training.step import TrainStep

SMALL = {"parameters": {"weights": np.arange(12, dtype=np.float32).reshape(3, 4)}, "step": np.int32(3)}


def compiled_on(config, vocabulary, mesh_config):
    return TrainStep(config, vocabulary, make_mesh(mesh_config))


@pytest.fixture
def config(tiny_model, tiny_images) -> Config:
    return Config(
        image_tokenizer=tiny_images, model=tiny_model, batch=BatchConfig(8, 32), train=TrainConfig(num_tokens=2560.0)
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
    monkeypatch.setattr("cm3leon_jax.orbax_steps.CHUNK_BYTES", 1 << 10)
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


def test_old_steps_go(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, SMALL, {})
    assert sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()) == [3, 4]


def test_a_save_does_not_ask_whether_to_stop(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("jax.experimental.multihost_utils.reached_preemption_sync_point", asked.append)
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        checkpoints.save(7, SMALL, {})
    assert not asked


def test_another_model_is_refused(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, SMALL, {})
    abstract = SMALL | {"parameters": {"weights": jax.ShapeDtypeStruct((3, 8), "float32")}}
    message = r"does not fit the model of this config \(parameters.weights is \(3, 4\) there and \(3, 8\) here\)"
    refused = pytest.raises(UserError, match=message)
    with Checkpoints(tmp_path, keep=1) as checkpoints, refused:
        checkpoints.restore(1, abstract)
    # Orbax leaves its failed tasks to the collector, which reports them: here, and not in the middle of another test.
    gc.collect()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_not_finite_is_never_saved(tmp_path, wrong, dtype):
    weights = jax.numpy.asarray(SMALL["parameters"]["weights"], dtype)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(3, SMALL | {"parameters": {"weights": weights}}, {})
        with pytest.raises(NotFinite, match=r"parameters.weights is not finite at step 4: nothing was saved"):
            checkpoints.save(4, SMALL | {"parameters": {"weights": weights.at[2, 1].set(wrong)}}, {})
        checkpoints.wait()
        assert checkpoints.steps == [3]


META = {"vocabulary": "x", "start_block": [0, 3], "seconds": {"total": 1.5}, "left_out": [], "config": {"a": "é"}}
META_DAMAGES = {
    "another place": lambda meta: meta | {"start_block": [0, 8]},
    "a lost field": lambda meta: {name: value for name, value in meta.items() if name != "seconds"},
    "a new field": lambda meta: meta | {"new": 0},
    "a deep change": lambda meta: meta | {"seconds": {"total": 1.25}},
    "a lost sum": lambda meta: meta | {"bit_sums": {"step": meta["bit_sums"]["step"]}},
    "another sum": lambda meta: meta | {"bit_sums": meta["bit_sums"] | {"step": 0}},
    "no sums": lambda meta: {name: value for name, value in meta.items() if name != "bit_sums"},
    "another sum of it": lambda meta: meta | {"meta_sum": "0123456789abcdef"},
    "a list": lambda meta: [meta],
    "nothing": lambda meta: {},
}


@pytest.mark.parametrize("damage", META_DAMAGES)
def test_a_changed_record_is_noticed(tmp_path, damage):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(3, SMALL, META)
    record = tmp_path / "3" / "meta" / "metadata"
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.meta(3) == META
        record.write_text(json.dumps(META_DAMAGES[damage](json.loads(record.read_text()))))
        with pytest.raises(DamagedCheckpoint, match=r"3 has (another record|a record that is none)"):
            checkpoints.meta(3)


def test_a_checkpoint_of_an_earlier_version_is_one_line(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(3, SMALL, META)
    record = tmp_path / "3" / "meta" / "metadata"
    old = {name: value for name, value in json.loads(record.read_text()).items() if name != "format_version"}
    record.write_text(json.dumps(old))
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        with pytest.raises(UserError, match=r"3 was made by an earlier version of cm3leon_jax .*: train again"):
            checkpoints.meta(3)
        with pytest.raises(UserError, match="earlier version"):
            checkpoints.bit_sums(3)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("no such array"), KeyError("x")])
@pytest.mark.parametrize("where", ["save", "wait_until_finished"])
def test_a_save_that_fails_is_one_line_and_leaving_waits_for_nothing(tmp_path, monkeypatch, where, error):
    def failing(*_, **__):
        raise error

    with pytest.raises(FailedSave, match=r"a checkpoint in .* cannot be written \(\w+: .*\): fix that"):  # noqa: SIM117
        with Checkpoints(tmp_path, keep=1) as checkpoints:
            monkeypatch.setattr(checkpoints._steps._manager, where, failing)
            checkpoints.save(1, SMALL, {})
            checkpoints.wait()


def test_a_folder_that_is_gone_is_not_made_anew(tmp_path):
    with pytest.raises(FailedSave, match="checkpoints is gone"), Checkpoints(tmp_path / "checkpoints", 1) as kept:
        (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
        kept.save(1, SMALL, {})
    assert not (tmp_path / "checkpoints").exists()


def training_run(workdir, steps):
    with Checkpoints(workdir / "checkpoints", keep=9) as checkpoints:
        for step in steps:
            checkpoints.save(step, SMALL, META)


@pytest.mark.parametrize("vanished", [1, 3])
def test_a_step_that_is_deleted_while_it_is_read_is_looked_for_again(tmp_path, vanished):
    """`vanished` times the run deletes the newest step under the reader, having saved another."""
    training_run(tmp_path, [1])
    seen = []

    def read(checkpoints, step):
        seen.append(step)
        if step <= vanished:
            training_run(tmp_path, [step + 1])
            shutil.rmtree(tmp_path / "checkpoints" / str(step))
        return checkpoints.meta(step), step

    assert read_newest(tmp_path, 9, read) == (META, vanished + 1)
    assert seen == list(range(1, vanished + 2))


def test_a_run_that_is_always_faster_is_worth_another_try(tmp_path):
    training_run(tmp_path, [1])

    def read(checkpoints, step):
        training_run(tmp_path, [step + 1])
        shutil.rmtree(tmp_path / "checkpoints" / str(step))
        return checkpoints.meta(step)

    with pytest.raises(RestartError, match=r"deleted its step \d+ before it was read"):
        read_newest(tmp_path, 9, read)


def test_a_newest_step_that_is_damaged_is_named_and_no_other_is_read(tmp_path):
    training_run(tmp_path, [1, 2])
    (tmp_path / "checkpoints" / "2" / "meta" / "metadata").write_text("{")
    with pytest.raises(UserError, match=r"the newest checkpoint is damaged: .*/2 cannot be read .* rename that folder"):
        read_newest(tmp_path, 9, lambda checkpoints, step: checkpoints.meta(step))
    with pytest.raises(ZeroDivisionError):
        read_newest(tmp_path, 9, lambda checkpoints, step: 1 / 0)


def test_changes_are_named_unless_they_may_be():
    before = {"model": {"num_layers": 2, "remat": "save_dots"}, "shape": [1, 2]}
    now = {"model": {"num_layers": 2, "remat": "none", "new_field": 3}, "shape": (1, 2)}
    check_unchanged(before, now, ["model.remat"], "the run was")
    check_unchanged(before, now, ["model"], "the run was")
    with pytest.raises(
        UserError, match=r"the run was made with other values: model.remat was 'save_dots' and is 'none'; use"
    ):
        check_unchanged(before, now, ["shape"], "the run was")


def test_a_field_that_an_architecture_lacks_has_its_default():
    default, other = {"architecture": {"side": 8}}, {"architecture": {"side": 8, "encoder": "patch"}}
    for same in (default, other):
        check_unchanged(same, same, [], "the run was")
    with pytest.raises(UserError, match=r"architecture.encoder was 'the default' and is 'patch'"):
        check_unchanged(default, other, [], "the run was")
    with pytest.raises(UserError, match=r"architecture.encoder was 'patch' and is 'the default'"):
        check_unchanged(other, default, [], "the run was")


def test_a_field_that_is_newer_than_the_record_had_its_default():
    before = dataclasses.asdict(Config())
    del before["model"]["rotary_image_positions"]
    same = Config()
    check_unchanged({"config": before}, {"config": dataclasses.asdict(same)}, [], "the run was")
    changes = dict(positions="rotary", image_position_embedding=True, rotary_image_positions=True)
    model = dataclasses.replace(same.model, **changes)
    turned = dataclasses.asdict(dataclasses.replace(same, model=model))
    with pytest.raises(UserError, match=r"config.model.rotary_image_positions was False and is True"):
        check_unchanged({"config": before}, {"config": turned}, ["config.model.positions"], "the run was")
    with pytest.raises(UserError, match=r"model.rotary_image_positions was False and is True"):
        check_same_model({"config": before}, dataclasses.replace(same, model=model), "the checkpoint")


def bit_sums(arrays) -> dict[str, int]:
    return {name: bits for name, (bits, _) in sums_and_finiteness(arrays).items()}


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
        found = sum(bit_sum_of_part(np.ascontiguousarray(part), start) for part, start in parts)
        assert found % (1 << 32) == bit_sums({"a": array})["a"]


def test_of_what_nobody_can_catch_only_late_reads_are_hidden(monkeypatch):
    shown = []
    monkeypatch.setattr(orbax_steps, "_show_unraisable", shown.append)
    errors = [RuntimeError("Event loop is closed"), RuntimeError("another"), ValueError("Event loop is closed")]
    for error in errors:
        orbax_steps._hide_late_reads(SimpleNamespace(exc_value=error))
    assert [unraisable.exc_value for unraisable in shown] == errors[1:]
