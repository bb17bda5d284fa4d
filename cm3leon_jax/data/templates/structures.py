"""Images from structure maps (arXiv 2309.02591, Table 5): edges, segmentation, depth and the like."""

from __future__ import annotations

from cm3leon_jax.data.templates.template import Template

# What the wording calls each kind of structure map.
FEATURES = {
    "edges": "canny edge features",
    "segmentation": "a segmentation map",
    "soft_edges": "hed features",
    "pose": "openpose features",
    "depth": "depth features",
    "normals": "3D norm features",
    "scribble": "children's scribbles",
    "lines": "line features",
    # Not of the paper.
    "blur": "a blurred image",
}


def _structure(features: str) -> Template:
    return Template(
        (f"Make high quality image from {features} <break> {{structure}} <break> {{caption}} <break> {{image}}",),
        targets=("image",),
        images=("structure", "image"),
        drops=(("caption",),),
    )


EDGES = _structure(FEATURES["edges"])
SEGMENTATION = _structure(FEATURES["segmentation"])
SOFT_EDGES = _structure(FEATURES["soft_edges"])
POSE = _structure(FEATURES["pose"])
DEPTH = _structure(FEATURES["depth"])
NORMALS = _structure(FEATURES["normals"])
SCRIBBLE = _structure(FEATURES["scribble"])
LINES = _structure(FEATURES["lines"])
BLUR = _structure(FEATURES["blur"])
