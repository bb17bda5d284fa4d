"""VQAv2 as published: questions and the ten human answers to each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.sets.base import Item, field_of, read_json


@dataclass(frozen=True)
class VqaV2:
    """Two files: {"questions": [{question_id, image_id, question}]}, {"annotations": [{question_id, answers}]}.

    OK-VQA is published in the same form. An item's id is that of the question.
    """

    questions: str
    annotations: str
    images: str
    # The name of an image's file, with {image_id} in it.
    file_name: str = "COCO_val2014_{image_id:012d}.jpg"

    @property
    def files(self) -> list[str]:
        return [self.questions, self.annotations]

    def __call__(self) -> list[Item]:
        answers: dict[int, tuple[str, ...]] = {}
        for number, annotation in enumerate(
            field_of(read_json(self.annotations), "annotations", list, self.annotations)
        ):
            where = f"annotation {number} of {self.annotations}"
            answers[field_of(annotation, "question_id", int, where)] = tuple(
                field_of(answer, "answer", str, where) for answer in field_of(annotation, "answers", list, where)
            )
        items = []
        for number, question in enumerate(field_of(read_json(self.questions), "questions", list, self.questions)):
            where = f"question {number} of {self.questions}"
            name = field_of(question, "question_id", int, where)
            if name not in answers:
                raise UserError(f"{self.annotations} has no answers to the question {name} of {self.questions}")
            path = Path(self.images) / self._file_name(field_of(question, "image_id", int, where))
            request = {"task": "vqa", "prompt": field_of(question, "question", str, where), "image": str(path)}
            items.append(Item(str(name), request, answers[name]))
        return items

    def _file_name(self, image_id: int) -> str:
        try:
            return self.file_name.format(image_id=image_id)
        except (LookupError, ValueError) as error:
            raise UserError(
                f"file_name {self.file_name!r} of an evaluation set is no pattern ({error}): write one such as "
                "'COCO_val2014_{image_id:012d}.jpg'"
            ) from None
