"""CM3Leon 760M as published (arXiv 2309.02591, Table 3): 1.9T tokens, batch 8.4M, three neighbours.

cm3leon train --config=configs/cm3leon_760m.py --workdir=DIR --config.corpus.mixture=NAME
"""

from ml_collections import ConfigDict

from configs import cm3leon_350m


def get_config() -> ConfigDict:
    config = cm3leon_350m.get_config()
    config.model.update(model_dim=1536)
    config.optimizer.update(peak_learning_rate=5e-4)
    config.train.update(num_tokens=1.9e12)
    return config
