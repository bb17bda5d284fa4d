"""CM3Leon 350M as published (arXiv 2309.02591, Table 3): 1.4T tokens, batch 8.4M, with three retrieved documents.

Register your captioned images as a seqio mixture (see docs/add_a_source.md), then run, with its name:

    cm3leon train-text-tokenizer  --config=configs/cm3leon_350m.py --workdir=DIR --config.corpus.mixture=NAME
    cm3leon train-image-tokenizer --config=configs/cm3leon_350m.py --workdir=DIR --config.corpus.mixture=NAME
    cm3leon import                --config=configs/cm3leon_350m.py --workdir=DIR --from=CLIP_VIT_B_32_FOLDER
    cm3leon prepare               --config=configs/cm3leon_350m.py --workdir=DIR --config.corpus.mixture=NAME
    cm3leon train                 --config=configs/cm3leon_350m.py --workdir=DIR --config.corpus.mixture=NAME

With `:POD` behind the file's name (v5p-1024, v5e-256, v6e-256, h100-256) it has the mesh, rematerialization and
microbatches that `cm3leon plan` recommends there. Expected, an estimate by plan from published runs of other models
(benchmarks/RESULTS.md): 0.45 days on v5p-1024, 2.5 on v5e-256, 0.8 on v6e-256, 0.7 on 256 H100, give or take a fifth,
on H100 a quarter. No chip has run it. Look at `loss_image` after an hour: far below ln 8192 = 9.01, and still falling.

In place of an imported CLIP, `cm3leon train-encoder` trains one on the mixture.

A pair of a caption and an image is about 1,035 tokens, so with three neighbors it is 4,140: just over the paper's
4,096. Rows of 4,224 hold that whole, 98% of their tokens real, where rows of 4,096 would drop a neighbor of each
example (76%) or, packed as a stream, cut every example (`python benchmarks/packing.py`).
"""

from ml_collections import ConfigDict

from cm3leon_jax.errors import UserError

PODS = {
    "v5p-1024": dict(mesh=dict(fsdp=512), remat="none", num_microbatches=1),
    "v5e-256": dict(mesh=dict(replica=4, fsdp=64), remat="none", num_microbatches=4),
    "v6e-256": dict(mesh=dict(replica=4, fsdp=64), remat="none", num_microbatches=2),
    "h100-256": dict(mesh=dict(fsdp=256), remat="none", num_microbatches=2),
}


def get_config(pod: str = "") -> ConfigDict:
    config = ConfigDict()
    config.corpus = {}
    config.vocabulary = dict(num_text_tokens=56_320, num_masks=512)
    config.image_tokenizer = dict(resolution=256, channel_multipliers=(1, 1, 2, 4), codebook_size=8192)
    config.retrieval = dict(enabled=True, num_by_text=2, num_by_image=2, num_retrieved=3)
    config.batch = dict(batch_size=2048, sequence_length=4224, packing="best_fit")
    config.model = dict(num_layers=24, model_dim=1024, num_heads=16)
    config.optimizer = dict(peak_learning_rate=6e-4, warmup_steps=1500)
    config.train = dict(num_tokens=1.4e12)
    return placed(config, PODS, pod)


def placed(config: ConfigDict, pods: dict[str, dict], pod: str) -> ConfigDict:
    """The config with what is recommended for a pod; as it is without one."""
    if pod:
        if pod not in pods:
            raise UserError(f"no settings for the pod {pod!r}: there are {', '.join(pods)}")
        config.mesh = pods[pod]["mesh"]
        config.model.update(remat=pods[pod]["remat"])
        config.train.update(num_microbatches=pods[pod]["num_microbatches"])
    return config
