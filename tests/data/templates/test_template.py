"""Wordings in their parts, and templates that make no sense."""

from pathlib import Path

import pytest

from cm3leon_jax.data.templates import TEMPLATES
from cm3leon_jax.data.templates.template import Field, Template


def test_a_wording_in_its_parts():
    template = Template(
        (
            "Do it <break> {image} <break> (Then {what}: <break> {image2})*",
            "{image} <break> ({what} <break> {image2})*",
        ),
        targets=("image2",),
        images=("image", "image2"),
    )
    first, second = template.parsed
    assert first.segments == (
        ("Do it",),
        (Field("image", is_image=True),),
        ("Then", Field("what", is_spaced=True), ":"),
        (Field("image2", is_image=True),),
    )
    assert (first.turn_start, first.turn_stop) == (2, 4) and (second.turn_start, second.turn_stop) == (1, 3)
    assert template.fields == ("image", "what", "image2")
    assert template.once == (Field("image", is_image=True),)
    # With and without a space in front.
    assert [field.is_spaced for field in template.in_turns if field.name == "what"] == [True, False]
    assert template.fields_of(1) is None and template.fields_of(4) is None
    assert template.fields_of(5) == [("image", 0), ("what", 0), ("image2", 0), ("what", 1), ("image2", 1)]


def test_the_text_of_a_wording():
    question, edits = TEMPLATES.load("question"), TEMPLATES.load("edits")
    values = ("which?", "two", "")
    assert question.text(values, 0) == "Question: which? Answer: two"
    assert question.text(values, 1) == "Question: which?\ntwo"
    assert question.text(values, 2) == "Question: which? The answer is two."
    assert edits.text(("", "wider", "", "bolder", ""), 0) == (
        "Edit first image following the instruction\nwider\nbolder"
    )
    with pytest.raises(ValueError, match="4 values for the fields image, instruction, edited"):
        edits.text(("", "wider", "", "bolder"), 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"wordings": ("{a} <break> {image}",), "targets": ()}, "teaches nothing"),
        ({"wordings": (), "targets": ("a",)}, "at least one wording"),
        ({"wordings": ("{a} <break> {image}",), "targets": ("b",)}, r"no wording has the field \{b\}"),
        ({"wordings": ("{a} <break> {image}", "{image}"), "targets": ("a",)}, r"lacks the target \{a\}"),
        ({"wordings": ("{a} {a} <break> {image}",), "targets": ("a",)}, r"has \{a\} twice"),
        ({"wordings": ("see {image} <break> {a}",), "targets": ("a",)}, "an image inside a text"),
        ({"wordings": ("{a} <break> <break> {image}",), "targets": ("a",)}, "nothing between two"),
        ({"wordings": ("{image} <break> ({a})*", "{image} <break> {a}"), "targets": ("a",)}, "both in the turns"),
        ({"wordings": ("{image} <break> ({a})* <break> ({b})*",), "targets": ("a",)}, "several of them"),
        ({"wordings": ("{a} <break> {image}",), "targets": ("a",), "drops": (("c",),)}, r"the field \{c\}"),
    ],
)
def test_a_template_that_makes_no_sense_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Template(**values)


def test_every_template_loads():
    for name in TEMPLATES:
        template = TEMPLATES.load(name)
        assert isinstance(template, Template), name
        assert template.parsed


def test_the_page_shows_every_template():
    page = (Path(__file__).parents[3] / "docs" / "instructions.md").read_text(encoding="utf-8")
    for name in TEMPLATES:
        template = TEMPLATES.load(name)
        more = f" (and {len(template.wordings) - 1} more)" if len(template.wordings) > 1 else ""
        first = template.wordings[0].replace("\n", "\\n")
        assert f"| `{name}` | `{first}`{more} |\n" in page


def test_the_template_of_the_page_makes_sense():
    page = (Path(__file__).parents[3] / "docs" / "instructions.md").read_text(encoding="utf-8")
    code = "\n".join(line.removeprefix("    ") for line in page.splitlines() if line.startswith("    "))
    names: dict = {}
    exec(code, names)
    assert names["WHICH_IS_LEFT"].fields == ("thing", "answer", "image")
