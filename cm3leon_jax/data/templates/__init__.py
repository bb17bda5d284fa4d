"""Templates: how the fields of an example become a document; one file per family, by name in `TEMPLATES`."""

from cm3leon_jax.registry import Registry

_HERE = "cm3leon_jax.data.templates"

TEMPLATES = Registry(
    "the template",
    {
        "text_to_image": f"{_HERE}.captions:TEXT_TO_IMAGE",
        "caption": f"{_HERE}.captions:CAPTION",
        "long_caption": f"{_HERE}.captions:LONG_CAPTION",
        "narrative": f"{_HERE}.captions:NARRATIVE",
        "instructed_caption": f"{_HERE}.captions:INSTRUCTED_CAPTION",
        "caption_after_image": f"{_HERE}.captions:CAPTION_AFTER_IMAGE",
        "question": f"{_HERE}.questions:QUESTION",
        "question_after_image": f"{_HERE}.questions:QUESTION_AFTER_IMAGE",
        "questions": f"{_HERE}.questions:QUESTIONS",
        "questions_after_image": f"{_HERE}.questions:QUESTIONS_AFTER_IMAGE",
        "questions_of_text": f"{_HERE}.questions:QUESTIONS_OF_TEXT",
        "question_of_images": f"{_HERE}.questions:QUESTION_OF_IMAGES",
        "science_question": f"{_HERE}.questions:SCIENCE_QUESTION",
        "science_explanation": f"{_HERE}.questions:SCIENCE_EXPLANATION",
        "edit": f"{_HERE}.edits:EDIT",
        "edits": f"{_HERE}.edits:EDITS",
        "objects": f"{_HERE}.placement:OBJECTS",
        "written_text": f"{_HERE}.placement:WRITTEN_TEXT",
        "edges": f"{_HERE}.structures:EDGES",
        "segmentation": f"{_HERE}.structures:SEGMENTATION",
        "soft_edges": f"{_HERE}.structures:SOFT_EDGES",
        "pose": f"{_HERE}.structures:POSE",
        "depth": f"{_HERE}.structures:DEPTH",
        "normals": f"{_HERE}.structures:NORMALS",
        "scribble": f"{_HERE}.structures:SCRIBBLE",
        "blur": f"{_HERE}.structures:BLUR",
        "lines": f"{_HERE}.structures:LINES",
    },
)
