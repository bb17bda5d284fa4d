"""Plans without a compiler, for tests of what is said about them."""

from dataclasses import replace
from typing import Any

from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.config import BatchConfig
from cm3leon_jax.models.config import ModelConfig
from cm3leon_jax.planning import expected, roofline
from cm3leon_jax.planning.accelerator_types import find_pod
from cm3leon_jax.planning.compile import Compiled, Placement
from cm3leon_jax.planning.memory import StepMemory
from cm3leon_jax.planning.plan import PodPlan
from cm3leon_jax.training.config import TrainConfig

CONFIG = Config(
    batch=BatchConfig(batch_size=2048, sequence_length=4096),
    model=ModelConfig(num_layers=32, model_dim=4096, num_heads=32, remat="none"),
    train=TrainConfig(num_tokens=2.4e12),
)
VOCABULARY = 64_640


def make_pod_plan(topology: str, fits: bool = True, config: Config = CONFIG, **placed: Any) -> PodPlan:
    """The plan of a step without collectives, sharded over all devices; `placed` are fields of its `Placement`."""
    pod = find_pod(topology)
    mesh = {"replica": 1, "fsdp": pod.num_devices, "tensor": 1}
    placement = Placement(
        mesh=mesh,
        coordinates=[],
        weights={},
        state_bytes=2**30,
        checkpoint_bytes=pod.num_devices * 2**30,
        num_parameters=7 * 10**9,
        compiler_options={},
    )
    needed = 2**33 if fits else 2**38
    compiled = Compiled(replace(placement, **placed), StepMemory(needed, fits), "", 1.0, 2.0)
    done = roofline.work(config, VOCABULARY, mesh, has_kernel=True)
    return PodPlan(
        config=config,
        pod=pod,
        vocabulary_size=VOCABULARY,
        compiled=compiled,
        collectives=[],
        work=done,
        times=roofline.roofline(done, [], pod, []),
        estimate=expected.estimate(expected.causes(config, done, (0.1, 0.0, 0.0), pod), pod),
    )
