"""Registers the data sets that `convert.py` wrote as seqio tasks, and a mixture of them, "annotations".

Every kind of reader of annotations takes part. The data sets are in the folder that the environment variable
`ANNOTATIONS` names, or in runs/annotations/data.
"""

from __future__ import annotations

from pathlib import Path

import seqio

from cm3leon_jax.data.sources import AnnotationsConfig, add_source_task
from cm3leon_jax.errors import UserError
from examples.annotations.packages import DATA

# The side of the images that boxes and structure maps are for: config.image_tokenizer.resolution.
RESOLUTION = 32
_STRUCTURES = ("edges", "soft_edges", "scribble", "blur")

# The reader and folder of each task, and its rate in the mixture.
TASKS: dict[str, tuple[str, float]] = {
    "annotations_captions": ("coco_captions:coco", 1.0),
    "annotations_objects": ("coco_objects:coco", 2.0),
    "annotations_segmentation": ("coco_segmentation:coco", 0.5),
    "annotations_questions": ("vqa:map_questions", 3.0),
    "annotations_flags": ("vqa:flags", 0.5),
    "annotations_problems": ("vqa:problems", 0.2),
    "annotations_narratives": ("localized_narratives:narratives", 0.3),
    "annotations_grounded": ("grit:grit", 0.3),
    "annotations_grounded_scenes": ("grit:scene_grit", 0.05),
    "annotations_tones": ("instruct_pix2pix:tones", 2.5),
    "annotations_tone_sessions": ("magicbrush:tone_sessions", 0.5),
    "annotations_scene_edits": ("magicbrush:scene_edits", 0.3),
    "annotations_lines": ("ultraedit:lines", 1.0),
    "annotations_restored": ("ultraedit:restored", 0.1),
    "annotations_styles": ("omniedit:styles", 1.0),
    "annotations_emoji_questions": ("llava_onevision:emoji_questions", 1.0),
    "annotations_conversations": ("llava:conversations", 0.1),
    "annotations_capitals": ("llava:capitals", 0.2),
    "annotations_parts": ("cauldron:parts", 0.1),
    "annotations_structures": ("structures:photographs", 0.2),
}


def _add() -> None:
    if not Path(DATA).is_dir():
        raise UserError(
            f"no folder {DATA}: make it with python -m examples.annotations.convert, or set ANNOTATIONS to where it is"
        )
    options = AnnotationsConfig(resolution=RESOLUTION, structures=_STRUCTURES, max_objects=4)
    for name, (source, _) in TASKS.items():
        kind, _, folder = source.partition(":")
        add_source_task(name, f"{kind}:{DATA}/{folder}", annotations=options)
    seqio.MixtureRegistry.add("annotations", [(name, rate) for name, (_, rate) in TASKS.items()])


_add()
