"""Conversations about images: JSON of LLaVA and ShareGPT4V, parquet files of LLaVA-OneVision and the_cauldron."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cm3leon_jax.data.sources.annotated import AnnotatedSource
from cm3leon_jax.data.sources.examples import BadRow, Example, ImageReference, Values, value_of
from cm3leon_jax.data.sources.reading import SkippedExample
from cm3leon_jax.data.sources.splits import split_in
from cm3leon_jax.data.sources.tables import read_rows

IMAGE_TOKEN = "<image>"
_ASKING, _ANSWERING = ("human", "user"), ("gpt", "assistant")
# Where the images of LLaVA's file of COCO's images are.
_IMAGE_FOLDERS = ("", "images", "train2017", "coco/train2017", "images/train2017")


def turns_of(conversation: list[Any]) -> tuple[list[str], list[str], int]:
    """The questions and answers of a conversation [{from, value}], and how many images its text names."""
    if not conversation or len(conversation) % 2:
        raise BadRow("conversation that does not alternate")
    questions, answers, num_images = list[str](), list[str](), 0
    for number, turn in enumerate(conversation):
        speaker, text = value_of(turn, "from", str), value_of(turn, "value", str)
        if speaker not in (_ANSWERING if number % 2 else _ASKING):
            raise BadRow("conversation that does not alternate")
        if number % 2:
            if IMAGE_TOKEN in text:
                raise BadRow(f"{IMAGE_TOKEN} in an answer")
            answers.append(text)
        else:
            num_images += text.count(IMAGE_TOKEN)
            # The template says where the image is.
            questions.append("\n".join(part.strip() for part in text.split(IMAGE_TOKEN) if part.strip()))
    return questions, answers, num_images


def conversation(
    where: str,
    questions: Sequence[str],
    answers: Sequence[str],
    images: Sequence[ImageReference],
    group: str,
    split: str | None,
) -> Example:
    """The instruction of a conversation about one image, none, or several that all come before the only question."""
    turns: dict[str, Any] = {"question": list(questions), "answer": list(answers)}
    if not images:
        return Example(where, "questions_of_text", turns, group, split)
    if len(images) == 1:
        return Example(where, "questions", {**turns, "image": images[0]}, group, split)
    if len(questions) > 1:
        raise BadRow("several questions about several images")
    values: Values = {"question": questions[0], "answer": answers[0], "image": list(images)}
    return Example(where, "question_of_images", values, group, split)


class LlavaConversations(AnnotatedSource):
    """`llava:PATH`: a JSON list of {id, image, conversations: [{from, value}]}, or the folder of such.

    Entries without `image` are text alone.
    """

    form = "JSON of LLaVA-Instruct or ShareGPT4V"

    def examples(self) -> Iterator[Example | SkippedExample]:
        files = self.files(".json", depth=1)
        if not files:
            raise self.other_form("there is no .json file")
        for file in files:
            content = self.read_json(file)
            if not isinstance(content, list):
                raise self.other_form(f"{file} is no list of conversations; give the path of the file that is one")
            rows = ((f"{file}:{number}", split_in(file), entry) for number, entry in enumerate(content))
            yield from self.each(rows, self._example)

    def _example(self, where: str, split: str | None, row: Any) -> Iterator[Example]:
        questions, answers, num_images = turns_of(value_of(row, "conversations", list))
        found = row.get("image") or []
        names = [found] if isinstance(found, str) else found
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise BadRow("no image of the published form")
        if num_images > len(names):
            raise BadRow(f"{IMAGE_TOKEN} without an image")
        images = [self.image(name, *_IMAGE_FOLDERS) for name in names]
        group = images[0].file if images else str(row.get("id", where))
        yield conversation(where, questions, answers, images, group, split)


class LlavaOneVision(AnnotatedSource):
    """`llava_onevision:PATH`: parquet files with id, image, conversations."""

    form = "parquet files of LLaVA-OneVision"

    def examples(self) -> Iterator[Example | SkippedExample]:
        if not (files := self.files(".parquet", depth=3)):
            raise self.other_form("there is no .parquet file")
        for file in files:
            found = read_rows(self.folder / file, ("id", "image", "conversations"), self.form)
            rows = ((f"{file}:{number}", split_in(file), (file, number, row)) for number, row in enumerate(found))
            yield from self.each(rows, self._example)

    def _example(self, where: str, split: str | None, found: tuple[str, int, dict[str, Any]]) -> Iterator[Example]:
        file, number, row = found
        questions, answers, num_images = turns_of(value_of(row, "conversations", list))
        images = [] if row["image"] is None else [ImageReference(file, "image", number)]
        if num_images > len(images):
            raise BadRow(f"{IMAGE_TOKEN} without an image")
        yield conversation(where, questions, answers, images, str(row["id"]), split)


class Cauldron(AnnotatedSource):
    """`cauldron:PATH`: parquet files with images (a list) and texts, a list of {user, assistant, source}."""

    form = "parquet files of the_cauldron"

    def examples(self) -> Iterator[Example | SkippedExample]:
        if not (files := self.files(".parquet", depth=3)):
            raise self.other_form("there is no .parquet file")
        for file in files:
            found = read_rows(self.folder / file, ("images", "texts"), self.form)
            rows = ((f"{file}:{number}", split_in(file), (file, number, row)) for number, row in enumerate(found))
            yield from self.each(rows, self._example)

    def _example(self, where: str, split: str | None, found: tuple[str, int, dict[str, Any]]) -> Iterator[Example]:
        file, number, row = found
        texts = value_of(row, "texts", list)
        if not texts:
            raise BadRow("no turns")
        questions, answers = ([value_of(each, name, str) for each in texts] for name in ("user", "assistant"))
        cells = row["images"] or []
        if any(cell is None for cell in cells):
            raise BadRow("missing image")
        images = [ImageReference(file, "images", number, which) for which in range(len(cells))]
        yield conversation(where, questions, answers, images, where, split)
