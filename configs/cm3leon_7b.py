"""CM3Leon 7B as published (arXiv 2309.02591, Table 3): 2.4T tokens, batch 8.4M, three neighbors.

    cm3leon train --config=configs/cm3leon_7b.py:v5p-1024 --workdir=DIR --config.corpus.mixture=NAME

Expected, an estimate by `cm3leon plan` from published runs of other models (benchmarks/RESULTS.md): 8.3 days on
v5p-1024 (7.0 to 9.9), 48 on v5e-256 (40 to 57), 14 on v6e-256 (12 to 17), 12.5 on 256 H100 (9.9 to 15.8). No chip has
run it.
"""

from ml_collections import ConfigDict

from configs import cm3leon_350m

PODS = {
    "v5p-1024": dict(mesh=dict(fsdp=512), remat="none", num_microbatches=2),
    "v5e-256": dict(mesh=dict(replica=2, fsdp=128), remat="full", num_microbatches=2),
    "v6e-256": dict(mesh=dict(replica=2, fsdp=128), remat="none", num_microbatches=8),
    "h100-256": dict(mesh=dict(replica=4, fsdp=8, tensor=8), remat="none", num_microbatches=8),
}


def get_config(pod: str = "") -> ConfigDict:
    config = cm3leon_350m.get_config()
    config.model.update(num_layers=32, model_dim=4096, num_heads=32)
    config.optimizer.update(peak_learning_rate=1.2e-4)
    config.train.update(num_tokens=2.4e12)
    return cm3leon_350m.placed(config, PODS, pod)
