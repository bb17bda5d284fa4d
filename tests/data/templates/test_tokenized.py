"""A document of a template is its wording, token for token, and its length is known from its fields alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.data.templates import TEMPLATES
from cm3leon_jax.data.templates.template import Template
from cm3leon_jax.data.templates.tokenized import TokenizedTemplate, load_template
from cm3leon_jax.documents import Role
from cm3leon_jax.errors import UserError

WORDS = ("which", "a red car", "seven!", "(3, 4) -> (5, 6)", "ünï", "日本", "don't", '"quoted"')


def random_values(template, vocabulary, rng, num_turns: int) -> list[np.ndarray]:
    """Ids of random stored fields; a text is the same with and without the space."""
    numbers = {}
    values = []
    stored = [(field, 0) for field in template.template.once]
    stored += [(field, turn) for turn in range(num_turns) for field in template.template.in_turns]
    for field, turn in stored:
        if field.is_image:
            values.append(vocabulary.encode_image(rng.integers(0, 32, 16)).astype(np.int32))
            continue
        text = WORDS[numbers.setdefault((field.name, turn), rng.integers(len(WORDS)))]
        values.append(np.array(vocabulary.encode_text(" " * field.is_spaced + text), np.int32))
    return values


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(TEMPLATES)), seed=st.integers(0, 99), num_turns=st.integers(1, 3))
def test_a_document_is_as_long_as_planned_and_reads_as_its_wording(vocabulary, name, seed, num_turns):
    v, rng = vocabulary, np.random.default_rng(seed)
    template = load_template(name, v)
    num_turns = num_turns if template.template.in_turns else 0
    values = random_values(template, v, rng, num_turns)
    num_once = len(template.template.once)
    once = np.array([[len(value) for value in values[:num_once]]], np.int64)
    of_turns = np.array([len(value) for value in values[num_once:]], np.int64)
    in_turns = of_turns.reshape(num_turns, len(template.template.in_turns)).sum(0)
    (lengths,) = template.lengths(once, in_turns[None], np.array([num_turns]))
    (inner,) = template.num_inner_targets(np.array([num_turns]))
    for wording in range(template.num_wordings):
        made = template.assemble(values, wording)
        assert len(made.tokens) == len(made.roles) == lengths[wording]
        assert len(made.inner_targets) == inner[wording]
        for number, (start, stop) in made.fields.items():
            np.testing.assert_array_equal(made.tokens[start:stop], values[number])
        for start, stop in made.inner_targets:
            assert (made.roles[start:stop] >= Role.TARGET).all()
    assert template.length([len(value) for value in values]) == lengths[0]


def test_a_question_is_tokenized_as_a_whole_text_would_be(vocabulary):
    v = vocabulary
    template = load_template("question", v)
    question, answer, image = "which digit is it?", "a seven", np.arange(16)
    values = [
        np.array(v.encode_text(f" {question}"), np.int32),
        np.array(v.encode_text(f" {answer}"), np.int32),
        v.encode_image(image),
        np.array(v.encode_text(answer), np.int32),
    ]
    texts = (
        f"Question: {question} Answer: {answer}",
        f"Question: {question}\n{answer}",
        f"Question: {question} The answer is {answer}.",
    )
    for wording, text in enumerate(texts):
        made = template.assemble(values, wording)
        assert made.tokens.tolist() == [*v.encode_text(text), v.break_, *v.encode_image(image)]
        target = made.tokens[made.roles == Role.TARGET].tolist()
        ends_with_break = [v.break_] if wording < 2 else []
        assert (
            v.decode_text(target).strip() == answer and target[len(target) - len(ends_with_break) :] == ends_with_break
        )
        assert made.end_role == Role.CONTEXT


def test_conditions_are_dropped_for_masks(vocabulary):
    v, rng = vocabulary, np.random.default_rng(0)
    template = load_template("edit", v)
    image, instruction, edited = random_values(template, v, rng, 0)
    edited = image.copy()
    edited[3] = v.encode_image(np.array([(v.decode_image(image)[3] + 1) % 32]))[0]
    assert template.drops == (("instruction",), ("image", "instruction"))
    values = [image, instruction, edited]
    whole = template.assemble(values)
    task = v.encode_text("Edit first image following the instruction")
    assert whole.tokens.tolist() == [*task, v.break_, *image, v.break_, *instruction, v.break_, *edited]
    assert whole.end_role == Role.TARGET and not whole.inner_targets
    roles = [Role.INSTRUCTION] * len(task) + [Role.CONTEXT] * 18
    roles += [Role.INSTRUCTION] * len(instruction) + [Role.CONTEXT] + [Role.TARGET] * 16
    roles[-13] = Role.CHANGED
    assert whole.roles.tolist() == roles
    without = template.assemble(values, 0, template.drops[0])
    assert without.tokens.tolist() == [*task, v.break_, *image, v.break_, v.mask(0), v.break_, *edited]
    nothing = template.assemble(values, 0, template.drops[1])
    assert nothing.tokens.tolist() == [v.mask(0), v.break_, *edited]
    assert nothing.roles.tolist() == [Role.CONTEXT] * 2 + [Role.TARGET] * 16


def test_each_turn_of_an_edit_is_compared_with_the_one_before(vocabulary):
    v = vocabulary
    template = load_template("edits", v)
    text = np.array(v.encode_text("wider"), np.int32)
    images = [v.encode_image(np.where(np.arange(16) < number, 1, 0)) for number in (0, 2, 5)]
    made = template.assemble([images[0], text, images[1], text, images[2]])
    assert (made.roles == Role.CHANGED).sum() == 2 + 3


def test_a_template_that_the_vocabulary_cannot_mask(vocabulary):
    fields = [f"f{number}" for number in range(9)]
    template = Template((" ".join(f"{{{field}}}" for field in fields) + " <break> {image}",), targets=tuple(fields))
    with pytest.raises(UserError, match="more targets before other segments than the vocabulary has masks"):
        TokenizedTemplate("many", template, vocabulary)
