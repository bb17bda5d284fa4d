"""CM3Leon 760M as published (arXiv 2309.02591, Table 3): 1.9T tokens, batch 8.4M, three neighbors.

    cm3leon train --config=configs/cm3leon_760m.py:v5p-1024 --workdir=DIR --config.corpus.mixture=NAME

Expected, an estimate by `cm3leon plan` from published runs of other models (benchmarks/RESULTS.md): 1.1 days on
v5p-1024, 6.2 on v5e-256, 1.9 on v6e-256, 1.6 on 256 H100, give or take a fifth, on H100 a quarter. No chip has run it.
"""

from ml_collections import ConfigDict

from configs import cm3leon_350m

PODS = {
    "v5p-1024": dict(mesh=dict(fsdp=512), remat="none", num_microbatches=1),
    "v5e-256": dict(mesh=dict(replica=4, fsdp=64), remat="none", num_microbatches=8),
    "v6e-256": dict(mesh=dict(replica=2, fsdp=128), remat="none", num_microbatches=4),
    "h100-256": dict(mesh=dict(fsdp=256), remat="none", num_microbatches=2),
}


def get_config(pod: str = "") -> ConfigDict:
    config = cm3leon_350m.get_config()
    config.model.update(model_dim=1536)
    config.optimizer.update(peak_learning_rate=5e-4)
    config.train.update(num_tokens=1.9e12)
    return cm3leon_350m.placed(config, PODS, pod)
