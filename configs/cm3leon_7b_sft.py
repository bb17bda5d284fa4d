"""CM3Leon 7B tuned on instructions with the paper's numbers (arXiv 2309.02591, section 4 and appendix E.1).

30B tokens, 2M a step, learning rate 5e-5: as cm3leon_760m_sft, whose commands are those of this.

`cm3leon plan` on v5p-128 (4x4x4, 64 chips): half of the memory is used, 1,274 chip-hours expected (20 hours, an
estimate from published runs of other models), 802 at least.
"""

from ml_collections import ConfigDict

from configs import cm3leon_7b, cm3leon_350m, cm3leon_760m_sft

PODS = {"v5p-128": dict(mesh=dict(fsdp=64), remat="none", num_microbatches=4)}


def get_config(pod: str = "") -> ConfigDict:
    return cm3leon_350m.placed(cm3leon_760m_sft.tuned(cm3leon_7b.get_config()), PODS, pod)
