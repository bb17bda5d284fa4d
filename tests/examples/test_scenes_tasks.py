"""The tasks of scenes give examples that their templates take, the same ones every time."""

import numpy as np
import pytest

from cm3leon_jax.data.corpus.document_tokenizer import DecodedDocument, DocumentTokenizer
from cm3leon_jax.data.templates import TEMPLATES
from cm3leon_jax.documents import Document, ImageSegment, TextSegment
from cm3leon_jax.errors import UserError
from cm3leon_jax.images import decode_image
from examples.scenes import judge
from examples.scenes.edits import EDITS
from examples.scenes.metric import Scenes
from examples.scenes.pictures import SceneConfig
from examples.scenes.questions import QUESTIONS
from tests.examples.fonts import needs_font

pytestmark = needs_font


def examples(split: str, index: int, wording: int | None = None) -> dict:
    from examples.scenes import tasks

    makers = tasks.PRETRAINING | tasks.INSTRUCTIONS
    return {name: maker(split, 7, index, wording) for name, (maker, _, _) in makers.items()}


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_example_is_a_document(split, vocabulary, image_tokenizer):
    tokens = DocumentTokenizer(vocabulary, image_tokenizer, 4)
    for index in range(6):
        made = examples(split, index)
        assert made == examples(split, index)
        for template, values in made.values():
            segments = tuple(TextSegment(v) if isinstance(v, str) else ImageSegment(v) for v in values)
            assert isinstance(tokens.decode(Document(segments, template)), DecodedDocument)
            assert not template or template in TEMPLATES


def test_an_edit_and_a_list_of_boxes_are_what_their_images_show():
    made = examples("train", 3)
    _, (_, boxes, image) = made["scenes_from_objects"]
    (scene,) = judge.read(SceneConfig(), decode_image(image, 32, 3)[None])
    assert sum(boxes.count(f"{kind} at location") for kind in scene.counts) == len(scene.objects)
    _, (before, _, after) = made["scenes_edits"]
    pixels = np.stack([decode_image(each, 32, 3) for each in (before, after)])
    assert len(set(judge.read(SceneConfig(), pixels))) == 2


def test_with_one_wording_nothing_is_said_in_another():
    text = {
        "scenes_edits": {wordings.seen[0].split("{")[0] for wordings in EDITS.values()},
        "scenes_questions": {wordings.seen[0].split("{")[0] for wordings in QUESTIONS.values()},
    }
    for index in range(20):
        one = examples("train", index, wording=0)
        for name, beginnings in text.items():
            _, values = one[name]
            assert any(values[1].startswith(each) for each in beginnings)
        # What is said is the same in other ways.
        assert [values[-1] for _, values in one.values()] == [
            values[-1] for _, values in examples("train", index).values()
        ]


def test_the_metric_names_what_it_does_not_know():
    with pytest.raises(UserError, match="the metric scenes has no task 'edit': one of objects, short"):
        Scenes(tasks=("edit",))
    with pytest.raises(UserError, match="scenes have no split 'test'"):
        Scenes(split="test")
