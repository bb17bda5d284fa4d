"""The plan of one config on one pod: its compiled step, a lower bound on the time, and the time to expect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cm3leon_jax.config import Config
from cm3leon_jax.planning import collectives, expected, roofline
from cm3leon_jax.planning.compile import Compiled, compile_step
from cm3leon_jax.planning.topology import Topology
from cm3leon_jax.vocabulary import padded_size


@dataclass(frozen=True)
class PodPlan:
    """Facts by the compiler, and times by the model, of one config on one pod."""

    config: Config
    pod: Topology
    vocabulary_size: int
    compiled: Compiled
    collectives: list[collectives.Collective]
    work: roofline.Work
    times: roofline.Roofline
    estimate: expected.StepEstimate

    @property
    def expected_mfu(self) -> float:
        """Fraction of the chip's peak that the model's own FLOPs are expected to reach."""
        return self.work.model_flops / (self.pod.accelerator.bfloat16_flops * self.estimate.seconds)

    @property
    def expected_days(self) -> tuple[float, float, float]:
        """Days of all steps of the run: the fewest, the expected and the most."""
        estimate = self.estimate
        least, days, most = (
            self.config.num_steps * seconds / 86400 for seconds in (estimate.least, estimate.seconds, estimate.most)
        )
        return least, days, most


def size_of_vocabulary(config: Config) -> int:
    """Computes the rows of the embedding table, without a vocabulary."""
    text, masks = config.vocabulary.num_text_tokens, config.vocabulary.num_masks
    return padded_size(text, config.image_tokenizer.codebook_size, masks)


def make_plan(config: Config, vocabulary_size: int, pod: Topology, say: Callable[[str], None]) -> PodPlan:
    """Compiles one config and computes its times; `say` is called periodically with what is being done."""
    compiled = compile_step(config, pod, say)
    placement = compiled.placement
    found = collectives.merged(collectives.find(compiled.program, placement.mesh)) if compiled.program else []
    has_kernel = roofline.attention_kernel(config, pod) != "xla"
    done = roofline.work(config, vocabulary_size, placement.mesh, has_kernel)
    times = roofline.roofline(done, found, pod, placement.coordinates)
    traffic = roofline.traffic_seconds(found, pod, placement.coordinates)
    estimate = expected.estimate(expected.causes(config, done, traffic, pod), pod)
    return PodPlan(config, pod, vocabulary_size, compiled, found, done, times, estimate)
