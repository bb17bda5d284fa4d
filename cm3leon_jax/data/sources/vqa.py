"""Questions about images as published: VQAv2 and OK-VQA, VizWiz, ScienceQA."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from cm3leon_jax.data.sources.annotated import AnnotatedSource, Row
from cm3leon_jax.data.sources.examples import BadRow, Example, ImageReference, Values, value_of
from cm3leon_jax.data.sources.reading import SkippedExample
from cm3leon_jax.data.sources.splits import SPLIT_NAMES, split_in
from cm3leon_jax.data.sources.tables import read_rows

# ScienceQA's word where a question has no context.
_NO_CONTEXT = "N/A"


class Questions(AnnotatedSource):
    """`vqa:PATH`: a folder with the questions of one or more of these sets, which are known by what is in the files.

    - VQAv2, OK-VQA: {"questions": [..]} and {"annotations": [..]}; images in train2014/ or images/train2014/
    - VizWiz: [{image, question, answers}]; images in train/ or images/
    - ScienceQA: problems.json; images in images/SPLIT/ID/ or SPLIT/ID/; or parquet files with the same names

    The answer is the one that most people gave. Questions without an image have the template `questions_of_text`.
    """

    form = "questions of VQAv2, OK-VQA, VizWiz or ScienceQA"

    def examples(self) -> Iterator[Example | SkippedExample]:
        if tables := self.files(".parquet", depth=3):
            yield from self._tables(tables)
            return
        contents = {file: self.read_json(file) for file in self.files(".json", depth=3)}
        answers: dict[str, Any] = {}
        answered: set[str | None] = set()
        is_known = False
        for file, content in contents.items():
            if isinstance(content, dict) and isinstance(content.get("annotations"), list):
                found = [each for each in content["annotations"] if _has(each, "answers", "question_id")]
                answers |= {str(each["question_id"]): each for each in found}
                answered |= {split_in(file)} if found else set()
        for file, content in contents.items():
            split = split_in(file)
            if isinstance(content, dict) and isinstance(content.get("questions"), list):
                is_known = True
                # The answers to the questions of a test are not published.
                if split in answered or self.path.is_file():
                    subset = str(content.get("data_subtype", ""))
                    yield from self.each(_rows(file, content["questions"]), self._by_number(subset, answers))
            elif isinstance(content, list) and content and _has(content[0], "image", "question"):
                is_known = True
                if any(_has(each, "answers") for each in content):
                    yield from self.each(_rows(file, content), self._by_name)
            elif isinstance(content, dict) and _has(next(iter(content.values()), None), "question", "choices"):
                is_known = True
                rows = ((f"{file}, problem {name}", None, (name, problem)) for name, problem in content.items())
                yield from self.each(rows, self._by_id)
        if not is_known:
            raise self.other_form()

    def _tables(self, files: list[str]) -> Iterator[Example | SkippedExample]:
        columns = ("question", "choices", "answer", "hint", "image", "solution")
        for file in files:
            found = read_rows(self.folder / file, columns, "ScienceQA in parquet files")
            rows = ((f"{file}:{number}", split_in(file), (file, number, row)) for number, row in enumerate(found))
            yield from self.each(rows, self._row)

    def _row(self, where: str, split: str | None, found: tuple[str, int, Any]) -> Iterator[Example]:
        file, number, row = found
        image = None if row["image"] is None else ImageReference(file, "image", number)
        return _problem(where, split, f"{file} {number}", row, image)

    def _by_number(self, subset: str, answers: dict[Any, Any]) -> Any:
        """What makes examples of the questions of VQAv2 and OK-VQA, of images such as those of "train2014"."""

        def asked(where: str, split: str | None, row: Any) -> Iterator[Example]:
            number, question = value_of(row, "image_id", int), value_of(row, "question", str)
            annotation = answers.get(str(row.get("question_id")))
            if annotation is None:
                raise BadRow("question without an answer")
            names = (f"COCO_{subset}_{number:012d}.jpg", f"{number:012d}.jpg")
            found = (self.image(name, subset, f"images/{subset}", "images", "") for name in names)
            image = next((each for each in found if self._is_file(each.file)), ImageReference(f"{subset}/{names[0]}"))
            answer = annotation.get("multiple_choice_answer") or _most_common(annotation.get("answers"))
            values: Values = {"question": question, "answer": answer, "image": image}
            yield Example(where, "question", values, str(number), split)

        return asked

    def _by_name(self, where: str, split: str | None, row: Any) -> Iterator[Example]:
        """A question of VizWiz."""
        name, question = value_of(row, "image", str), value_of(row, "question", str)
        folder = next((part for part in name.split("_") if part in SPLIT_NAMES), "")
        image = self.image(name, folder, f"images/{folder}", "images", "")
        values: Values = {"question": question, "answer": _most_common(row.get("answers")), "image": image}
        yield Example(where, "question", values, name, split)

    def _by_id(self, where: str, _: str | None, found: tuple[str, Any]) -> Iterator[Example]:
        """A problem of ScienceQA's problems.json."""
        name, problem = found
        split = str(problem.get("split") or "") if isinstance(problem, dict) else ""
        image = None
        if value_of(problem, "question", str) and problem.get("image"):
            file = f"{name}/{value_of(problem, 'image', str)}"
            image = self.image(file, f"images/{split}", split, "images", "")
        return _problem(where, SPLIT_NAMES.get(split), name, problem, image)


def _problem(where: str, split: str | None, name: str, problem: Any, image: ImageReference | None) -> Iterator[Example]:
    """A problem of ScienceQA, and its explanation where there is one."""
    question, choices = value_of(problem, "question", str), value_of(problem, "choices", list)
    number = value_of(problem, "answer", int)
    if not 0 <= number < len(choices) or not all(isinstance(each, str) for each in choices):
        raise BadRow("answer that is none of the choices")
    options = " ".join(f"({chr(ord('A') + index)}) {choice}" for index, choice in enumerate(choices))
    context, answer = str(problem.get("hint") or "").strip(), choices[number]
    if image is None:
        text = "\n".join(filter(None, (question, context and f"Context: {context}", f"Options: {options}")))
        yield Example(where, "questions_of_text", {"question": [text], "answer": [answer]}, name, split)
        return
    values: Values = {
        **{"question": question, "context": context or _NO_CONTEXT, "options": options},
        **{"answer": answer, "image": image},
    }
    yield Example(where, "science_question", values, name, split)
    if explanation := str(problem.get("solution") or "").strip():
        yield Example(where, "science_explanation", {**values, "explanation": explanation}, name, split)


def _rows(file: str, entries: list[Any]) -> Iterator[Row]:
    return ((f"{file}:{number}", split_in(file), entry) for number, entry in enumerate(entries))


def _has(entry: Any, *names: str) -> bool:
    return isinstance(entry, dict) and all(name in entry for name in names)


def _most_common(answers: Any) -> str:
    """What most people answered; of equally many, the first."""
    found = answers if isinstance(answers, list) else []
    texts = [str(each["answer"]).strip() for each in found if _has(each, "answer")]
    counts = Counter(text for text in texts if text)
    if not counts:
        raise BadRow("question without an answer")
    return counts.most_common(1)[0][0]
