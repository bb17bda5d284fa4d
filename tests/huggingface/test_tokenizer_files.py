"""Other people's tokenizers as vocabularies: their ids keep their rows, and no text is read as a mark."""

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from cm3leon_jax.errors import UserError
from cm3leon_jax.huggingface.tokenizer_files import read_vocabulary, write_tokenizer
from cm3leon_jax.vocabulary import SPECIAL_TOKENS
from tests.huggingface.conftest import TEXTS

ROWS = 320


@pytest.fixture
def theirs(tmp_path):
    """A tokenizer.json with marks of its own, that cuts texts and puts marks around them."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[*SPECIAL_TOKENS, "[START]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    tokenizer.add_tokens([AddedToken("widget", special=False)])
    tokenizer.enable_truncation(5)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tokenizer


def test_ids_keep_their_rows(theirs, tmp_path, make_run):
    vocabulary = read_vocabulary(tmp_path, ROWS, make_run().config)
    assert vocabulary.first_image_code == ROWS and vocabulary.num_image_codes == 32 and vocabulary.num_masks == 8
    rows = theirs.get_vocab_size()
    assert [vocabulary.name(i) for i in range(rows)] == [theirs.id_to_token(i) for i in range(rows)]
    assert [vocabulary.name(i) for i in range(rows, ROWS)] == [f"<unused:{i}>" for i in range(rows, ROWS)]
    theirs.no_truncation()
    for text in ("a handwritten seven of 1234", "my widget, ünï"):
        assert vocabulary.encode_text(text) == theirs.encode(text, add_special_tokens=False).ids
        assert vocabulary.decode_text(vocabulary.encode_text(text)) == text
    # Their own marks keep their rows, and are not read out of texts.
    assert theirs.encode("[START]", add_special_tokens=False).ids == [4]
    spelled = vocabulary.encode_text("[START] <break>")
    assert 4 not in spelled and vocabulary.is_text(np.array(spelled)).all()


def test_what_is_written_is_read_back(tmp_path, make_run):
    run = make_run()
    write_tokenizer(tmp_path / "out", run.vocabulary, 32)
    again = read_vocabulary(tmp_path / "out", run.vocabulary.size, run.config)
    assert again.fingerprint == run.vocabulary.fingerprint
    with pytest.raises(UserError, match=r"makes a table of 384 rows, its config.json says vocab_size 512"):
        read_vocabulary(tmp_path / "out", 512, run.config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found["model"].update(type="WordLevel", unk_token="<unk>"), "only a byte-level BPE"),
        (lambda found: found["added_tokens"][0].update(content="<bos>"), "the first ids of its tokenizer are <bos>"),
        (lambda found: found.pop("model"), "is damaged"),
    ],
)
def test_other_tokenizers_are_refused(theirs, tmp_path, make_run, change, message):
    file = tmp_path / "tokenizer.json"
    found = json.loads(file.read_text())
    change(found)
    file.write_text(json.dumps(found))
    with pytest.raises(UserError, match=message) as refused:
        read_vocabulary(tmp_path, ROWS, make_run().config)
    assert "\n" not in str(refused.value)


def test_more_ids_than_rows_are_refused(theirs, tmp_path, make_run):
    with pytest.raises(UserError, match=r"its tokenizer has the id \d+, its config.json says vocab_size 290"):
        read_vocabulary(tmp_path, 290, make_run().config)
