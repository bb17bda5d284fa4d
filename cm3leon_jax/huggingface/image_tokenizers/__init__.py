"""Layouts of other people's weights of image tokenizers, by name; one file per layout, each an `ImageTokenizerLayout`.

All are a VQGAN's: what differs is what a tensor is called, how it is stored, and what images it was trained on.
"""

from cm3leon_jax.registry import Registry

LAYOUTS = Registry(
    "the layout of an image tokenizer",
    # In the order in which weights are compared with them: the encoder of Janus' has taming's names, too.
    {
        "janus": "cm3leon_jax.huggingface.image_tokenizers.janus:LAYOUT",
        "taming": "cm3leon_jax.huggingface.image_tokenizers.taming:LAYOUT",
        "llamagen": "cm3leon_jax.huggingface.image_tokenizers.llamagen:LAYOUT",
        "diffusers": "cm3leon_jax.huggingface.image_tokenizers.diffusers:LAYOUT",
    },
)
