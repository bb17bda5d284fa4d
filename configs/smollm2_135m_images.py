"""SmolLM2-135M (arXiv 2502.02737) learns images: a small text model goes on with captioned ones, and keeps its texts.

The transformer is SmolLM2's: 30 layers of width 576, 9 query heads and 3 of keys and values, RMS norms, SwiGLU, rotary
positions of base 100,000, a tied head over 49,152 rows of text. Rows for image codes and special tokens follow, sampled
like those of the text tokens. They learn at the peak rate, all else at a fifth of it, so that the text model adapts
before it forgets. Batches, images and the objective are those of the 350M config, without neighbors.

With config.json, model.safetensors, tokenizer.json and tokenizer_config.json of HuggingFaceTB/SmolLM2-135M in the
folder SMOL, and the name of your mixture (see `cm3leon_350m.py`), with plain texts in it if it is to keep its English:

    cm3leon train-image-tokenizer --config=configs/smollm2_135m_images.py --workdir=DIR --config.corpus.mixture=NAME
    cm3leon import                --config=configs/smollm2_135m_images.py --workdir=DIR --from=SMOL
    cm3leon prepare               --config=configs/smollm2_135m_images.py --workdir=DIR --config.corpus.mixture=NAME
    cm3leon train                 --config=configs/smollm2_135m_images.py --workdir=DIR --config.corpus.mixture=NAME

To train the new rows alone, much as Anole trained Chameleon (arXiv 2407.06135), and keep all else to the bit:

    --config.optimizer.learning_rate_factors=token_embedding.image=1,token_embedding.special=1,*=0

With `:POD` after the file's name (v5e-16, v6e-16, h100-8) it has the mesh and microbatches of that pod: a copy of the
model on every chip, since it is small. `cm3leon plan` compiles a step of 1.05M tokens there, and models a bound of its
time from published peaks, which no chip has measured:

    16 v5e (--topology=v5e:4x4)     14.7 of 15.8 GiB    435 ms, MFU at most 80%    37 chip-hours for 20B tokens
    16 v6e (--topology=v6e:4x4)     26.7 of 31.2 GiB    133 ms, MFU at most 56%    11 chip-hours
    8 H100 (--topology=h100:1x8)    57.3 of 78.0 GiB    151 ms, MFU at most 92%    6.4 chip-hours
"""

from ml_collections import ConfigDict

from configs import cm3leon_350m

PODS = {
    "v5e-16": dict(mesh=dict(replica=16, fsdp=1), remat="none", num_microbatches=8),
    "v6e-16": dict(mesh=dict(replica=16, fsdp=1), remat="none", num_microbatches=4),
    "h100-8": dict(mesh=dict(replica=8, fsdp=1), remat="none", num_microbatches=4),
}


def get_config(pod: str = "") -> ConfigDict:
    config = cm3leon_350m.get_config()
    # Of the 49,152 rows <|endoftext|> is our </s>; eight bytes have no token and get new ones.
    config.vocabulary.num_text_tokens = 49_152 - 1 + 8
    config.retrieval = dict(enabled=False)
    config.batch = dict(batch_size=512, sequence_length=2048, packing="best_fit")
    config.model = dict(
        num_layers=30,
        model_dim=576,
        num_heads=9,
        num_key_value_heads=3,
        ffn_dim=1536,
        activation="silu",
        gated=True,
        norm="rms",
        norm_scale_and_bias=True,
        positions="rotary",
        rotary_base=100_000.0,
    )
    config.optimizer = dict(
        peak_learning_rate=1e-3,
        warmup_steps=500,
        learning_rate_factors=("token_embedding.image=1", "token_embedding.special=1", "*=0.2"),
    )
    config.train = dict(num_tokens=20e9)
    return cm3leon_350m.placed(config, PODS, pod)
