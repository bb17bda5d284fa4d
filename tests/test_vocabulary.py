"""The id space: any text goes there and back, nothing in a text is read as a mark, and transformers reads the file."""

import json

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3leon_jax.errors import UserError
from cm3leon_jax.vocabulary import IdSpace, Vocabulary, padded_size


@pytest.fixture(scope="module")
def shared(vocabulary):
    return vocabulary


@given(text=st.text(max_size=60))
def test_any_text_comes_back(shared, text):
    ids = shared.encode_text(text)
    assert shared.decode_text(ids) == text
    assert shared.is_text(np.array(ids, np.int64)).all()


def test_a_text_that_spells_a_mark_stays_text(vocabulary):
    ids = np.array(vocabulary.encode_text("<break> <mask:0> </s> <image:3>"))
    assert vocabulary.is_text(ids).all()


def test_the_blocks_of_the_id_space_do_not_meet(vocabulary):
    v = vocabulary
    assert [v.name(i) for i in range(4)] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert v.first_image_code == 4 + v.num_text_tokens
    codes = np.arange(v.num_image_codes)
    assert [v.name(i) for i in v.encode_image(codes).tolist()] == [f"<image:{k}>" for k in codes]
    np.testing.assert_array_equal(v.decode_image(v.encode_image(codes)), codes)
    marks = [v.break_, v.eoss, *(v.mask(i) for i in range(v.num_masks))]
    assert marks == list(range(v.first_image_code + v.num_image_codes, marks[-1] + 1))
    assert v.size % 128 == 0
    assert v.size - 128 <= marks[-1] < v.size
    assert v.size == padded_size(v.num_text_tokens, v.num_image_codes, v.num_masks)


def test_a_small_corpus_keeps_the_size_of_the_id_space():
    small = Vocabulary.train(["ab"], num_text_tokens=400, num_image_codes=8, num_masks=2, progress=False)
    assert small.num_text_tokens == 400
    assert small.first_image_code == 404
    assert small.decode_text(small.encode_text("ab")) == "ab"


def test_saved_and_loaded_it_is_the_same(vocabulary, tmp_path):
    vocabulary.save(tmp_path)
    again = Vocabulary.load(tmp_path)
    assert again.fingerprint == vocabulary.fingerprint
    assert again.encode_text("a handwritten seven") == vocabulary.encode_text("a handwritten seven")


def test_transformers_reads_the_same_ids(vocabulary, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the extra [test] brings transformers")
    vocabulary.save(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert theirs("a handwritten seven, ünï")["input_ids"] == vocabulary.encode_text("a handwritten seven, ünï")
    assert theirs("</s>zero<break><image:5><mask:1><eoss>")["input_ids"] == [
        vocabulary.end,
        *vocabulary.encode_text("zero"),
        vocabulary.break_,
        vocabulary.first_image_code + 5,
        vocabulary.mask(1),
        vocabulary.eoss,
    ]


def test_another_vocabulary_is_refused(vocabulary):
    other = Vocabulary.train(["x y z"], 300, 32, 8, progress=False)
    with pytest.raises(UserError, match=r"the corpus was made with another vocabulary"):
        vocabulary.check_fingerprint(other.fingerprint, "the corpus")


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no vocabulary at .*tokenizer.json"):
        Vocabulary.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer.json is damaged"):
        Vocabulary.load(tmp_path)


def in_order(names: list[str]) -> IdSpace:
    return IdSpace.of_names({name: index for index, name in enumerate(names)})


def test_ids_follow_from_names_wherever_a_layout_has_them():
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    images = [f"<image:{code}>" for code in (2, 0, 3)]
    ids = in_order([*special, *images, "a", "<mask:0>", "<mask:1>", "b", "c", "<image:1>", "<eoss>", "<break>"])
    assert ids.text == (range(7, 8), range(10, 12)) and ids.masks == range(8, 10)
    assert (ids.end, ids.break_, ids.eoss, ids.size) == (2, 14, 13, 128)
    everything = np.arange(128)
    assert np.flatnonzero(ids.is_image(everything)).tolist() == [4, 5, 6, 12]
    assert np.flatnonzero(ids.is_text(everything)).tolist() == [7, 10, 11]
    codes = np.array([[0, 1], [2, 3]])
    assert ids.encode_image(codes).tolist() == [[5, 12], [4, 6]]
    np.testing.assert_array_equal(ids.decode_image(ids.encode_image(codes)), codes)
    np.testing.assert_array_equal(jax.jit(ids.is_image)(everything), ids.is_image(everything))


def test_a_layout_may_have_ids_around_the_codes_of_an_image():
    special = ["<s>", "<pad>", "</s>", "<unk>", "<break>", "<eoss>", "<mask:0>"]
    ids = in_order([*special, "<image:end>", "a", "<image:0>", "<image:1>", "<image:begin>"])
    assert (ids.begin_image, ids.end_image, ids.text) == ((11,), (7,), (range(8, 9),))
    assert ids.encode_image(np.array([[0, 1], [1, 1]])).tolist() == [[11, 9, 10, 7], [11, 10, 10, 7]]
    assert ids.image_segment_length(2) == 4
    assert ids.image_of_segment(np.array([11, 9, 10, 7])).tolist() == [0, 1]
    for other in ([9, 10], [11, 9, 10], [11, 9, 8, 7], [11, 7], [8], []):
        assert ids.image_of_segment(np.array(other, int)) is None
    with pytest.raises(UserError, match="only one of <image:begin> and <image:end>"):
        in_order([*special, "<image:0>", "<image:end>"])


def test_roles_name_the_tokens_of_another_tokenizer(vocabulary, tmp_path):
    vocabulary.save(tmp_path)
    found = json.loads((tmp_path / "tokenizer.json").read_text())
    found["added_tokens"] = []
    found["model"]["vocab"] = {name: id for name, id in found["model"]["vocab"].items() if id < 292}
    found["model"]["vocab"] |= {"<B>": 292, "<A>": 293, "<eoss>": 294}
    roles = {"</s>": 0, "<image:1>": 292, "<image:0>": 293, "<image:begin>": 295, "<image:end>": 294}
    around = Vocabulary.around(found, 296, 3, 2, roles)
    assert [around.name(id) for id in (0, 2, *range(292, 302))] == [
        *("</s>", "<s>", "<image:1>", "<image:0>", "<image:end>", "<image:begin>"),
        *("<image:2>", "<break>", "<eoss>", "<mask:0>", "<mask:1>", "<id:301>"),
    ]
    assert around.encode_image(np.array([2, 0])).tolist() == [295, 296, 293, 294]
    with pytest.raises(UserError, match="has a token <eoss> already"):
        Vocabulary.around(found, 296, 3, 2)


def test_our_layout_has_ranges(vocabulary):
    ids, first = vocabulary.ids, vocabulary.first_image_code
    assert (
        ids.text == (range(4, first),)
        and ids.begin_image == ids.end_image == ()
        and ids.image == range(first, first + vocabulary.num_image_codes)
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["<image:0>", "<break>", "<mask:0>"], "has no <eoss>"),
        (["<image:1>", "<break>", "<eoss>", "<mask:0>"], "has no <image:0>"),
        (["<image:0>", "<break>", "<eoss>"], "has no <mask:0>"),
        (["<image:0>", "<break>", "<eoss>", "<mask:0>", "a", "<mask:1>"], "do not follow each other"),
    ],
)
def test_a_layout_without_a_special_token_is_refused(names, message):
    with pytest.raises(UserError, match=message):
        in_order(["<s>", "<pad>", "</s>", "<unk>", *names])
