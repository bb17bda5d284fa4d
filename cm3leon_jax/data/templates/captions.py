"""Captions and images from captions (arXiv 2309.02591, Table 5).

The rows of COCO and Flickr30k, Image Paragraph, and Localized Narratives.
"""

from __future__ import annotations

from cm3leon_jax.data.templates.template import Template

TEXT_TO_IMAGE = Template(("{caption} <break> {image}",), targets=("image",))
CAPTION = Template(
    ("{caption} <break> {image}", "Describe the given picture. {caption} <break> {image}"), targets=("caption",)
)
LONG_CAPTION = Template(
    (
        "Describe the given picture in very detail. {caption} <break> {image}",
        "Describe all the objects in the given image in very detail. {caption} <break> {image}",
        "Generate a long caption for the given image. {caption} <break> {image}",
    ),
    targets=("caption",),
)
NARRATIVE = Template(
    (
        "Describe the given picture in very detail. {caption} <break> {image}",
        "Generate a long narration of what is happening in the given image. {caption} <break> {image}",
        "Generate a long caption for the given image. {caption} <break> {image}",
    ),
    targets=("caption",),
)
# An instruction that the example brings along.
INSTRUCTED_CAPTION = Template(("{instruction} {caption} <break> {image}",), targets=("caption",))
CAPTION_AFTER_IMAGE = Template(("{image} <break> {instruction} {caption}",), targets=("caption",))
