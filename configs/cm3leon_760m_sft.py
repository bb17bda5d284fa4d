"""CM3Leon 760M tuned on instructions with the paper's numbers (arXiv 2309.02591, section 4 and appendix E.1).

30B tokens, 2M a step, learning rate 5e-5, the CM3 objective on the whole sequence, no data set more than 3 or less than
0.3 times as often as its size says. The mixture is yours (docs/instruction_data.md); the run starts from a pretrained
RUN and keeps its tokenizers, for every command:

    cm3leon prepare --config=configs/cm3leon_760m_sft.py --workdir=DIR --config.corpus.mixture=NAME \\
      --config.vocabulary.path=RUN/vocabulary --config.image_tokenizer.path=RUN/image_tokenizer
    cm3leon train --config=configs/cm3leon_760m_sft.py:v5e-256 --workdir=DIR --config.train.init_from=RUN ..

What the paper does not say: half of the instructions have exactly their targets masked, as a request asks for an
answer, and a tenth loses a condition, as guidance needs.

`cm3leon plan` on v5e-256: 14.8 of 15.8 GiB, one of attention's weights of each layer is all-reduced whole, 566
chip-hours expected (2.2 hours), an estimate from published runs of other models.
"""

from ml_collections import ConfigDict

from configs import cm3leon_350m, cm3leon_760m

PODS = {"v5e-256": dict(mesh=dict(replica=2, fsdp=128), remat="none", num_microbatches=1)}


def get_config(pod: str = "") -> ConfigDict:
    return cm3leon_350m.placed(tuned(cm3leon_760m.get_config()), PODS, pod)


def tuned(config: ConfigDict) -> ConfigDict:
    """A config of pretraining, changed to tune on instructions as the paper does."""
    config.retrieval = dict(enabled=False)
    sampling = dict(max_oversampling=3.0, min_undersampling=0.3)
    config.batch = dict(batch_size=512, sequence_length=4096, packing="best_fit", task_sampling=sampling)
    config.objective = dict(target_mask_prob=0.5, condition_drop_prob=0.1)
    config.optimizer.update(peak_learning_rate=5e-5, warmup_steps=150)
    config.train.update(num_tokens=30e9)
    return config
