"""Chameleon 7B (arXiv 2405.09818) tuned on captioned images: all of it, or the image codes' rows of the head alone.

Chameleon reads and writes texts and images; what was published of it does not generate images. With the weights (a
folder of transformers, or Meta's `models/7b`), Chameleon's vqgan.ckpt where the folder has no decoder, and the name of
your mixture of captioned images (docs/export.md, docs/data.md):

    cm3leon import  --config=configs/chameleon_7b_sft.py --workdir=DIR --from=FOLDER --image-tokenizer=vqgan.ckpt
    cm3leon prepare --config=configs/chameleon_7b_sft.py --workdir=DIR --config.corpus.mixture=NAME
    cm3leon train   --config=configs/chameleon_7b_sft.py:h100-8 --workdir=DIR --config.corpus.mixture=NAME

As it is, everything is trained, with the CM3 objective, Chameleon's batch, learning rate and z-loss of tuning, on 1B
tokens. With `:head`, or `:head-h100-8` and so on, it is Anole's recipe (arXiv 2407.06135): the rows of the LM head for
image codes alone, 34M parameters, at 1e-3, on 18M tokens left to right, about three times its 5,859 images. All else
keeps every bit, texts included. Anole begins with new rows; this goes on from the folder's.

With `:POD` after the file's name (h100-8, v5e-16, v6e-16) it has the mesh, rematerialization and microbatches of that
pod. `cm3leon plan` compiles a step there: memory of a chip; the time to expect, an estimate from published runs of
other models that no chip has measured; and what the run takes:

    v5litepod-16    13.9 of 15.8 GiB   16.0 s   136 chip-hours    :head   4.5 GiB   1.66 s   2.0 chip-hours
    v6e-16          17.1 of 31.2 GiB    4.1 s    35 chip-hours    :head   4.4 GiB   0.48 s   0.6 chip-hours
    h100-8          42.3 of 78.0 GiB    7.1 s    30 chip-hours    :head   6.8 GiB   0.80 s   0.5 chip-hours
"""

from ml_collections import ConfigDict

from configs import cm3leon_350m

PODS = {
    "h100-8": dict(mesh=dict(fsdp=8), remat="save_dots", num_microbatches=8),
    "v5e-16": dict(mesh=dict(fsdp=16), remat="full", num_microbatches=4),
    "v6e-16": dict(mesh=dict(fsdp=16), remat="full", num_microbatches=2),
}
HEAD = "head"


def get_config(variant: str = "") -> ConfigDict:
    config = cm3leon_350m.get_config()
    # Of the 65,536 ids these are neither image codes nor special tokens.
    config.vocabulary = dict(num_text_tokens=57_337, num_masks=512)
    config.image_tokenizer = dict(resolution=512, channel_multipliers=(1, 1, 2, 2, 4), codebook_size=8192)
    config.retrieval = dict(enabled=False)
    config.batch = dict(batch_size=128, sequence_length=4096, packing="best_fit")
    config.model = dict(
        num_layers=32,
        model_dim=4096,
        num_heads=32,
        ffn_dim=11_008,
        activation="silu",
        gated=True,
        norm="rms",
        norm_scale_and_bias=True,
        query_key_norm="layer",
        query_key_norm_per_head=True,
        positions="rotary",
        tied_embeddings=False,
    )
    config.optimizer = dict(peak_learning_rate=1e-5, warmup_steps=100)
    config.train = dict(num_tokens=1e9, z_loss=1e-5)
    if variant.startswith(HEAD):
        return head_alone(cm3leon_350m.placed(config, PODS, variant.removeprefix(HEAD).removeprefix("-")))
    return cm3leon_350m.placed(config, PODS, variant)


def head_alone(config: ConfigDict) -> ConfigDict:
    """Anole's recipe, in which nothing is kept for gradients of the layers: one row for each of 16 chips."""
    config.batch.update(batch_size=16)
    config.model.update(remat="none")
    config.objective = dict(span_count="none")
    config.optimizer = dict(
        peak_learning_rate=1e-3, warmup_steps=10, learning_rate_factors=("output_embedding.image=1", "*=0")
    )
    config.train.update(num_tokens=18e6, num_microbatches=1)
    return config
