"""Every different prompt is read once, and what prompts share is read once."""

import numpy as np
import pytest

from cm3leon_jax.generation import prompts
from cm3leon_jax.generation.instruction_prompt import instruction_prompt
from cm3leon_jax.generation.prefill import PrefillPlan, plan_prefill, rounded_up


def num_tokens(plan: PrefillPlan) -> int:
    """Tokens that go through the model, without padding."""
    return sum(int((rows.positions >= 0).sum()) for rows in (plan.prefixes, plan.suffixes) if rows is not None)


def test_sizes_are_few_and_not_far_off():
    sizes = {rounded_up(number, 16) for number in range(1, 4097)}
    assert len(sizes) <= 20
    assert all(number <= rounded_up(number, 16) <= max(16, 1.5 * number) for number in range(1, 4097))


def test_equal_variants_are_read_once(vocabulary):
    v = vocabulary
    asked = [prompts.text_to_image(text, 16, v) for text in ("zero", "seven", "zero", "zero")]
    plan = plan_prefill([prompt.variants for prompt in asked])
    zero, seven, nothing = (len(s.tokens) for s in (asked[0].variants[0], asked[1].variants[0], asked[0].variants[1]))
    assert num_tokens(plan) == zero + seven + nothing
    assert plan.suffix_row.tolist() == [0, 1, 2, 1, 0, 1, 0, 1]
    assert plan.prefixes is None


def test_retrieved_documents_are_read_once_for_all_variants_and_candidates(vocabulary):
    v = vocabulary
    document = [*v.encode_text("zero"), v.break_, *v.encode_image(np.arange(16)).tolist()]
    prompt = prompts.text_to_image("seven", 16, v, [document] * 3)
    conditional, unconditional = (len(variant.tokens) for variant in prompt.variants)
    plan = plan_prefill([prompt.variants] * 5)
    # The last token of the shorter variant is read again, for the state from which its answer goes on.
    assert num_tokens(plan) == conditional + 1
    assert plan.prefix_length.max() == unconditional - 1


@pytest.mark.parametrize("number", [0, 1, 3])
def test_an_edit_shares_its_image(vocabulary, number):
    v = vocabulary
    fields = {"image": np.arange(64) % 32, "instruction": "make it bright"}
    prompt = instruction_prompt("edit", fields, 64, 1, v)
    variants = [len(variant.tokens) for variant in prompt.variants]
    plan = plan_prefill([prompt.variants] * (number + 1))
    # Without the instruction there are a mask and a break after the image.
    assert num_tokens(plan) == variants[0] + 2 + variants[2]
