"""The model of time, against numbers made by hand."""

from dataclasses import replace

import pytest

from cm3leon_jax.accelerators import by_device_kind
from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.config import BatchConfig
from cm3leon_jax.models.config import MeshConfig, ModelConfig
from cm3leon_jax.planning import search
from cm3leon_jax.planning.collectives import Collective
from cm3leon_jax.planning.roofline import Work, collective_seconds, roofline, torus_links, work
from cm3leon_jax.planning.topology import parse
from cm3leon_jax.training.config import TrainConfig

CONFIG = Config(
    batch=BatchConfig(batch_size=2048, sequence_length=4096),
    model=ModelConfig(num_layers=32, model_dim=4096, num_heads=32, remat="full"),
    train=TrainConfig(num_tokens=2.4e12),
)
POD = parse("v5p:4x4x4")
CUBE = [(0, x, y, z) for x in range(4) for y in range(4) for z in range(4)]


def gather(group, **changes):
    collective = Collective(
        kind="all-gather",
        arrays=(("bf16", (64, 16384)),),
        operand_bytes=2 * 64 * 16384,
        group_size=len(group),
        axes=("fsdp",),
        runs=10,
        loops=(),
        op_name="",
        is_asynchronous=True,
        is_hidden=True,
        group=tuple(group),
    )
    return replace(collective, **changes)


def test_links_of_a_group_are_the_rings_that_it_fills():
    assert torus_links(CUBE, POD) == 6
    assert torus_links(CUBE[:16], POD) == 4
    assert torus_links(CUBE[:4], POD) == 2
    assert torus_links(CUBE[:2], POD) == 1
    assert torus_links([(0, 0, 0), (0, 0, 1)], parse("v5e:4x4")) == 1


def test_a_gather_over_the_whole_slice_by_hand():
    seconds = collective_seconds(gather(range(64)), POD, CUBE)
    assert seconds == pytest.approx(10 * (64 * 2 * 64 * 16384) * 63 / 64 / 600e9)
    # Over one ring, a third of the links.
    along = collective_seconds(gather(range(4)), POD, CUBE)
    assert along == pytest.approx(10 * (4 * 2 * 64 * 16384) * 3 / 4 / 200e9)


def test_groups_over_hosts_use_the_network():
    pod = parse("h100:2x8")
    coordinates = [(host, gpu) for host in range(2) for gpu in range(8)]
    one_byte_per_run = {"operand_bytes": 1, "runs": 1}
    assert collective_seconds(gather(range(8), **one_byte_per_run), pod, coordinates) == pytest.approx(7 / 450e9)
    assert collective_seconds(gather(range(16), **one_byte_per_run), pod, coordinates) == pytest.approx(15 / 50e9)


def test_hidden_traffic_runs_next_to_matmuls_and_other_traffic_after_them():
    done = Work(459e12, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    collective = gather(range(64))
    seconds = collective_seconds(collective, POD, CUBE)
    assert roofline(done, [collective], POD, CUBE).step == pytest.approx(1.0)
    alone = roofline(done, [replace(collective, is_hidden=False)], POD, CUBE)
    assert alone.step == pytest.approx(1 + seconds)
    assert alone.mfu == pytest.approx(1 / (1 + seconds))
    many = roofline(done, [replace(collective, runs=100_000)], POD, CUBE)
    assert many.bound_by == "links"
    assert many.step == pytest.approx(10_000 * seconds)


def test_the_7b_on_512_v5p_by_hand():
    done = work(CONFIG, 64_640, {"replica": 1, "fsdp": 512, "tensor": 1}, has_kernel=True)
    assert done.model_flops * 512 == pytest.approx(3.648e17, rel=1e-3)
    tokens = 2048 * 4096 / 512
    # All of a layer's products but the last, attention once more, and its scores in its backward pass.
    assert done.recomputed_flops == pytest.approx(tokens * 32 * (2 * 8 * 4096**2 + 1.5 * 2 * 4096 * 4096))
    assert done.optimizer_bytes == pytest.approx(32 * (32 * 12 * 4096**2 + 64_640 * 4096) / 512)


def test_attention_without_a_kernel_computes_an_eighth_of_what_it_masks():
    mesh = {"replica": 1, "fsdp": 512, "tensor": 1}
    model = replace(CONFIG.model, remat="none")
    done = work(replace(CONFIG, model=model), 64_640, mesh, has_kernel=False)
    assert done.masked_flops == pytest.approx(2048 * 4096 / 512 * 32 * 6 * 4096 * 4096 / 8)
    assert done.activation_bytes > work(replace(CONFIG, model=model), 64_640, mesh, has_kernel=True).activation_bytes


def test_searched_meshes_divide_chips_batch_and_model():
    found = list(search.meshes(CONFIG, parse("v5e:16x16*2")))
    assert {"replica": 2, "fsdp": 256, "tensor": 1} in found
    assert {"replica": 8, "fsdp": 16, "tensor": 4} in found
    for mesh in found:
        assert mesh["replica"] * mesh["fsdp"] * mesh["tensor"] == 512
        assert mesh["replica"] % 2 == 0
        assert 2048 % (mesh["replica"] * mesh["fsdp"]) == 0


def test_settings_come_with_the_least_expected_time_first_and_less_memory_for_more_parts():
    found = search.find_settings(CONFIG, 64_640, parse("v6e:16x16"))
    seconds = [setting.expected_seconds for setting in found]
    assert seconds == sorted(seconds)
    assert seconds[0] < seconds[-1]
    mesh = {"replica": 1, "fsdp": 256, "tensor": 1}
    memory = {
        setting.config.train.num_microbatches: setting.memory_bytes
        for setting in found
        if setting.mesh == mesh and setting.config.model.remat == "none"
    }
    assert memory[8] < memory[4] < memory[2] < memory[1]
    assert found[0].config.mesh == MeshConfig(**found[0].mesh)


def test_device_kinds_as_jax_writes_them():
    for kind, name in (("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e"), ("NVIDIA H200", "h200")):
        accelerator = by_device_kind(kind)
        assert accelerator is not None
        assert accelerator.name == name
    assert by_device_kind("cpu") is None
