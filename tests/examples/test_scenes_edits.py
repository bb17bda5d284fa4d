"""Edits of scenes: the result differs from the source in what was asked for, and in nothing else."""

import re
from collections import Counter

import numpy as np
import pytest

from cm3leon_jax.errors import UserError
from examples.scenes.edits import EDITS, sample_edit
from examples.scenes.pictures import SPLITS, SceneConfig, render, split_of
from tests.examples.fonts import needs_font

CONFIG = SceneConfig()


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("type", EDITS)
def test_the_result_differs_in_just_what_was_asked_for(type, split):
    for index in range(60):
        edit = sample_edit(CONFIG, split, 3, index, type)
        before, after = set(edit.before.objects), set(edit.after.objects)
        gone, new = before - after, after - before
        assert edit.before.ground == edit.after.ground
        assert (edit.before.sky != edit.after.sky) == (type == "sky")
        assert (len(gone), len(new)) == {"sky": (0, 0), "add": (0, 1), "remove": (1, 0)}.get(type, (1, 1))
        text = edit.instruction(index)
        assert "{" not in text
        for each in gone:
            # Its kind alone says which one is meant.
            assert edit.before.counts[each.kind] == 1 and each.kind in text
        for each in new:
            assert type == "move" or each.kind in text
            if type != "replace":
                corners = tuple(map(int, re.findall(r"\d+", text)))
                assert corners == each.box
        if type == "sky":
            assert edit.after.sky in text
        if type == "replace":
            assert {(each.row, each.column) for each in gone} == {(each.row, each.column) for each in new}
        if type == "move":
            ((old,), (moved,)) = gone, new
            assert old.kind == moved.kind
            assert max(abs(old.row - moved.row), abs(old.column - moved.column)) >= 2


@pytest.mark.parametrize("split", SPLITS)
def test_edits_are_of_their_split(split):
    for index in range(100):
        edit = sample_edit(CONFIG, split, 0, index)
        assert split_of(edit.after) == split
        assert edit == sample_edit(CONFIG, split, 0, index)
        if split == "train":
            assert split_of(edit.before) == "train"
        if split == "validation":
            assert split_of(edit.before) != "new_pairs"


def test_all_types_are_sampled_most_often_what_is_hardest():
    types = Counter(sample_edit(CONFIG, "train", 0, index).type for index in range(500))
    assert set(types) == set(EDITS) and min(types.values()) > 30
    assert types.most_common()[0][0] == "replace" and types.most_common()[-1][0] == "sky"


def test_held_out_wordings_name_the_same():
    for type in EDITS:
        edit = sample_edit(CONFIG, "train", 0, 0, type)
        seen = {edit.instruction(number) for number in range(12)}
        held_out = {edit.instruction(number, held_out=True) for number in range(12)}
        assert len(seen) == len(EDITS[type].seen) and not seen & held_out
        assert all(value in text for text in held_out for value in edit.fields.values())


@needs_font
def test_pixels_change_where_the_edit_is_and_nowhere_else():
    for type in EDITS:
        edit = sample_edit(CONFIG, "train", 5, 1, type)
        allowed = np.zeros((32, 32), bool)
        if type == "sky":
            allowed[:20] = True
        for each in set(edit.before.objects) ^ set(edit.after.objects):
            left, top, right, bottom = each.box
            allowed[top:bottom, left:right] = True
        changed = np.any(render(edit.before) != render(edit.after), axis=-1)
        assert changed.any() and not np.any(changed & ~allowed)


@pytest.mark.parametrize(
    ("config", "split", "type", "message"),
    [
        (CONFIG, "train", "blur", "no edit 'blur': one of sky, add, remove, replace, move"),
        (CONFIG, "test", None, "no split 'test'"),
        (SceneConfig(most_objects=1), "train", "add", "the edit add: scenes of at most 1 objects have none"),
        (SceneConfig(most_objects=1), "train", "remove", "the edit remove"),
    ],
)
def test_edits_that_do_not_exist_are_said_in_one_line(config, split, type, message):
    with pytest.raises(UserError, match=message):
        sample_edit(config, split, 0, 0, type)
