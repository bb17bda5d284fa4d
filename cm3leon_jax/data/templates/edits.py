"""Edits by instruction (arXiv 2309.02591, Table 5: InstructPix2Pix), in one turn and in several."""

from __future__ import annotations

from cm3leon_jax.data.templates.template import Template

EDIT_TASK = "Edit first image following the instruction"

EDIT = Template(
    (f"{EDIT_TASK} <break> {{image}} <break> {{instruction}} <break> {{edited}}",),
    targets=("edited",),
    images=("image", "edited"),
    drops=(("instruction",),),
    is_edit=True,
)
# Each turn changes the image of the one before it.
EDITS = Template(
    (f"{EDIT_TASK} <break> {{image}} <break> ({{instruction}} <break> {{edited}})*",),
    targets=("edited",),
    images=("image", "edited"),
    drops=(("instruction",),),
    is_edit=True,
)
