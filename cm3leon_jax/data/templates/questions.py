"""Questions about an image (arXiv 2309.02591, Table 5: VQAv2, VizWiz, OK-VQA, ScienceQA) and conversations."""

from __future__ import annotations

from cm3leon_jax.data.templates.template import Template

QUESTION = Template(
    (
        "Question: {question} Answer: {answer} <break> {image}",
        "Question: {question}\n{answer} <break> {image}",
        "Question: {question} The answer is {answer}. <break> {image}",
    ),
    targets=("answer",),
)
# Left to right, as "order": "left_to_right" asks.
QUESTION_AFTER_IMAGE = Template(("{image} <break> Question: {question} Answer: {answer}",), targets=("answer",))
SCIENCE_QUESTION = Template(
    (
        "Question: {question}\nContext: {context}\nOptions: {options}\nAnswer: {answer} <break> {image}",
        "Context: {context}\nQuestion: {question}\nOptions: {options}\nAnswer: {answer} <break> {image}",
    ),
    targets=("answer",),
    contexts=("context", "options"),
)
SCIENCE_EXPLANATION = Template(
    (
        "Question: {question}\nContext: {context}\nOptions: {options}\nAnswer: Let's think step-by-step: {explanation} "
        "So the answer is {answer}. <break> {image}",
    ),
    targets=("explanation", "answer"),
    contexts=("context", "options"),
)
# Several questions in a row.
QUESTIONS = Template(("(Question: {question} Answer: {answer})* <break> {image}",), targets=("answer",))
QUESTIONS_AFTER_IMAGE = Template(("{image} <break> (Question: {question} Answer: {answer})*",), targets=("answer",))
# Without an image.
QUESTIONS_OF_TEXT = Template(("(Question: {question} Answer: {answer})*",), targets=("answer",), images=())
# Of several images.
QUESTION_OF_IMAGES = Template(
    ("Question: {question} Answer: {answer} <break> ({image})*",), targets=("answer",), images=("image",)
)
