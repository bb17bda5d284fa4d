"""CM3Leon 7B as published (arXiv 2309.02591, Table 3): 2.4T tokens, batch 8.4M, three neighbours.

cm3leon train --config=configs/cm3leon_7b.py --workdir=DIR --config.corpus.mixture=NAME
"""

from ml_collections import ConfigDict

from configs import cm3leon_350m


def get_config() -> ConfigDict:
    config = cm3leon_350m.get_config()
    config.model.update(num_layers=32, model_dim=4096, num_heads=32)
    config.optimizer.update(peak_learning_rate=1.2e-4)
    config.train.update(num_tokens=2.4e12)
    return config
