"""Other people's tokenizers as vocabularies: their ids keep their rows, and no text is read as a mark."""

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from cm3leon_jax.errors import UserError
from cm3leon_jax.files import write_json
from cm3leon_jax.huggingface.tokenizer_files import read_vocabulary, write_tokenizer
from cm3leon_jax.vocabulary import SPECIAL_TOKENS, padded_size
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
        (
            lambda found: found.update(pre_tokenizer={"type": "Whitespace"}),
            "no BPE over bytes: neither of GPT-2's kind",
        ),
        (lambda found: found.pop("pre_tokenizer"), "no BPE over bytes: neither of GPT-2's kind"),
        (lambda found: found["added_tokens"][5].update(content="<mask:3>"), "a token <mask:3> already"),
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


def test_bytes_without_a_token_get_new_ids(tmp_path, make_run):
    # As SmolLM2's, which has none for a few bytes that its corpus lacked.
    missing = {"\u0143", *map(chr, range(0xC0, 0xC2)), *map(chr, range(0xF1, 0x100))}
    tokenizer = byte_level()
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - missing)
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocabulary = read_vocabulary(tmp_path, ROWS, make_run().config)
    lacking = ["\u00f1", "\u00f2", "\u00f3", "\u00f4", "\u0143"]
    assert sorted(vocabulary.name(ROWS + index) for index in range(5)) == lacking
    assert (vocabulary.first_image_code, vocabulary.num_text_tokens) == (ROWS + 5, ROWS + 1)
    text = "a \xad\U00040000\U0010ffff seven"
    assert tokenizer.decode(tokenizer.encode(text).ids) != text
    assert vocabulary.decode_text(vocabulary.encode_text(text)) == text
    for plain in TEXTS:
        assert vocabulary.encode_text(plain) == tokenizer.encode(plain).ids


def test_more_ids_than_rows_are_refused(theirs, tmp_path, make_run):
    with pytest.raises(UserError, match=r"its tokenizer has the id \d+, its config.json says vocab_size 290"):
        read_vocabulary(tmp_path, 290, make_run().config)


def byte_level(text_of_digits: bool = False) -> tokenizers.Tokenizer:
    """A BPE over characters that stand for bytes (GPT-2's)."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    digits = [pre_tokenizers.Digits(individual_digits=True)] if text_of_digits else []
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def by_number(pre_tokenizer: pre_tokenizers.PreTokenizer | None) -> tokenizers.Tokenizer:
    """A BPE over characters, with a token per byte for those it has none for."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if pre_tokenizer is None:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    return tokenizer


def trained(tokenizer: tokenizers.Tokenizer, special: list[str]) -> tokenizers.Tokenizer:
    is_byte_level = not tokenizer.model.byte_fallback
    trainer = trainers.BpeTrainer(
        vocab_size=300 if is_byte_level else 320 - 20,
        special_tokens=[*special, *([] if is_byte_level else [f"<0x{byte:02X}>" for byte in range(256)])],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if is_byte_level else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return tokenizer


def put_first(name: str, index: int) -> processors.PostProcessor:
    return processors.TemplateProcessing(f"{name} $A", special_tokens=[(name, index)])


def smollm2(folder):
    tokenizer = trained(byte_level(text_of_digits=True), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    write_json(folder / "tokenizer_config.json", {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"})
    return tokenizer, "<|endoftext|>"


def llama2(folder):
    tokenizer = trained(by_number(None), ["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = put_first("<s>", 1)
    return tokenizer, "<s>"


def mistral(folder):
    tokenizer = trained(
        by_number(pre_tokenizers.Metaspace(prepend_scheme="first", split=False)), ["<unk>", "<s>", "</s>"]
    )
    tokenizer.post_processor = put_first("<s>", 1)
    return tokenizer, "<s>"


def llama3(folder):
    tokenizer = trained(byte_level(), [])
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    first = tokenizer.token_to_id("<|begin_of_text|>")
    template = put_first("<|begin_of_text|>", first)
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer, "<|begin_of_text|>"


def qwen2(folder):
    tokenizer = trained(byte_level(), [])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False)])
    write_json(folder / "config.json", {"eos_token_id": [tokenizer.token_to_id("<|endoftext|>"), 5]})
    return tokenizer, "<|endoftext|>"


@pytest.fixture(params=[smollm2, llama2, mistral, llama3, qwen2], ids=lambda kind: kind.__name__)
def text_tokenizer(request, tmp_path):
    """A text tokenizer, its folder, and the name of the token that its documents are to begin and end with."""
    tokenizer, separator = request.param(tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tokenizer, tmp_path, separator


def test_a_text_tokenizer_grows_and_its_texts_keep_their_ids(text_tokenizer, make_run):
    tokenizer, folder, separator = text_tokenizer
    vocabulary = read_vocabulary(folder, ROWS, make_run().config)
    texts = (*TEXTS, "my  <tool_call> \u00fcn\u00ef \u6570 of 1234\n", "", "<|im_end|></s><s><break><unk>")
    for text in texts:
        ids = vocabulary.encode_text(text)
        # Names of special tokens are text.
        if "<|" not in text:
            assert ids == tokenizer.encode(text, add_special_tokens=False).ids
        assert vocabulary.decode_text(ids) == text
        assert vocabulary.is_text(np.array(ids, np.int64)).all()
    assert vocabulary.end == tokenizer.token_to_id(separator) and vocabulary.name(vocabulary.end) == "</s>"
    # Every other token has its row; of ours it lacks some, which come first.
    renamed = {name: name for name in ("<s>", "</s>", "<pad>", "<unk>")} | {separator: "</s>"}
    for index in range(tokenizer.get_vocab_size()):
        name = tokenizer.id_to_token(index)
        if name not in (separator, "</s>"):
            assert vocabulary.name(index) == renamed.get(name, name)
    lacking = 4 - sum(vocabulary.name(index) in SPECIAL_TOKENS for index in range(ROWS))
    assert [vocabulary.name(index) in SPECIAL_TOKENS for index in range(ROWS, ROWS + lacking)] == [True] * lacking
    assert vocabulary.first_image_code == ROWS + lacking and vocabulary.num_text_tokens == ROWS - 4 + lacking
    assert vocabulary.size == padded_size(vocabulary.num_text_tokens, 32, 8)
    assert len({vocabulary.start, vocabulary.end, vocabulary.pad, vocabulary.unknown}) == 4


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "OPTForCausalLM"])
def test_transformers_encodes_prompts_of_a_grown_tokenizer_as_we_do(text_tokenizer, make_run, tmp_path, architecture):
    transformers = pytest.importorskip("transformers", reason="the extra [test] brings transformers")
    _, folder, _ = text_tokenizer
    vocabulary = read_vocabulary(folder, ROWS, make_run().config)
    write_tokenizer(tmp_path / "out", vocabulary, 32)
    model_type = architecture.removesuffix("ForCausalLM").lower()
    write_json(tmp_path / "out" / "config.json", {"model_type": model_type, "architectures": [architecture]})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "the digit 3, \u00fcn\u00ef"
    assert theirs(text)["input_ids"] == vocabulary.encode_text(text)
    assert theirs(f"</s>{text}<break><image:5><mask:1><eoss>")["input_ids"] == [
        vocabulary.end,
        *vocabulary.encode_text(text),
        vocabulary.break_,
        *vocabulary.encode_image(np.array([5])).tolist(),
        vocabulary.mask(1),
        vocabulary.eoss,
    ]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (vocabulary.end,) * 2 + (vocabulary.pad,)
    again = read_vocabulary(tmp_path / "out", vocabulary.size, make_run().config)
    assert again.fingerprint == vocabulary.fingerprint


def test_a_tokenizer_without_an_end_of_text_is_refused(tmp_path, make_run):
    trained(byte_level(), ["<|endoftext|>"]).save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "config.json", {"eos_token_id": None})
    with pytest.raises(UserError, match=r"names the token that ends a text: add it to the first"):
        read_vocabulary(tmp_path, ROWS, make_run().config)
    write_json(tmp_path / "special_tokens_map.json", {"eos_token": {"content": "<|endoftext|>"}})
    assert read_vocabulary(tmp_path, ROWS, make_run().config).end == 0
