"""Families of Hugging Face folders by the `model_type` of their config.json; one file per family.

Each is an object with `import_folder(config, workdir, folder, stored)`. Most are a `DecoderFamily`, which can be
exported, too, if it has a `write_config`.
"""

from cm3leon_jax.registry import Registry

# In the order in which `cm3leon export` prefers them.
FAMILIES = Registry(
    "model_type",
    {
        "opt": "cm3leon_jax.huggingface.families.opt:FAMILY",
        "llama": "cm3leon_jax.huggingface.families.llama:FAMILY",
        "mistral": "cm3leon_jax.huggingface.families.mistral:FAMILY",
        "qwen2": "cm3leon_jax.huggingface.families.qwen2:FAMILY",
        "qwen3": "cm3leon_jax.huggingface.families.qwen3:FAMILY",
        "chameleon": "cm3leon_jax.huggingface.families.chameleon:FAMILY",
        "clip": "cm3leon_jax.huggingface.families.clip:FAMILY",
        "siglip": "cm3leon_jax.huggingface.families.siglip:FAMILY",
    },
)
