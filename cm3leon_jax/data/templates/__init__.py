"""Templates: how the fields of an example become a document; one file per family, by name in `TEMPLATES`."""

from cm3leon_jax.registry import Registry

TEMPLATES = Registry(
    "the template",
    {
        "caption": "cm3leon_jax.data.templates.layouts:CAPTION",
        "instructed_caption": "cm3leon_jax.data.templates.layouts:INSTRUCTED_CAPTION",
        "question": "cm3leon_jax.data.templates.layouts:QUESTION",
        "edit": "cm3leon_jax.data.templates.layouts:EDIT",
    },
)
