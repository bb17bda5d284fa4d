"""The tokenizer of a Hugging Face folder: written for `transformers.AutoTokenizer`, read into a vocabulary."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from cm3leon_jax.config import Config
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import read_object, write_json
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.vocabulary import SPECIAL_TOKENS, Vocabulary

_TOKENIZER_FILE = "tokenizer.json"
# Far above every published tokenizer; a larger file would be read into memory before it is refused.
_LONGEST_FILE = 1 << 28
_HOW_TO_MAKE_IT = "`transformers` makes tokenizer.json: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
_, _PAD, _END, _UNKNOWN = SPECIAL_TOKENS

# The character that stands for each byte in a BPE of GPT-2's kind: itself where it is printable, else one above 255.
_PRINTABLE = [byte for byte in range(256) if chr(byte) in pre_tokenizers.ByteLevel.alphabet()]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_CHARACTERS = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + n) for n, byte in enumerate(_OTHERS)}
# Bytes that texts have as UTF-8: no others occur.
_BYTES_OF_TEXTS = (*range(0xC0), *range(0xC2, 0xF5))
log = logging.getLogger(__name__)

# Which tokens of a tokenizer get names of ours: from its ids by name, and the folder, to ids by our names.
TokenRoles = Callable[[Mapping[str, int], Path], dict[str, int]]


def write_tokenizer(folder: Path, vocabulary: Vocabulary, sequence_length: int) -> None:
    """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    vocabulary.save(folder)
    # A document starts and ends with </s>, as OPT's do.
    special = {"bos_token": _END, "eos_token": _END, "pad_token": _PAD, "unk_token": _UNKNOWN}
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        {
            **special,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": sequence_length,
            # transformers would take out spaces before punctuation.
            "clean_up_tokenization_spaces": False,
        },
    )


def token_ids(vocabulary: Vocabulary) -> dict[str, int]:
    """The fields of a config.json and generation_config.json: a document starts and ends with `</s>`."""
    return {"bos_token_id": vocabulary.end, "eos_token_id": vocabulary.end, "pad_token_id": vocabulary.pad}


def read_vocabulary(
    folder: Path,
    rows: int,
    config: Config,
    token_roles: TokenRoles | None = None,
    file_name: str = _TOKENIZER_FILE,
) -> Vocabulary:
    """The vocabulary of a folder; its first ids are the rows of the folder's embedding table.

    One that `cm3leon export` wrote is taken as it is. Any other must be a BPE that can write any text, by bytes; it is
    followed by the ids of images and special tokens that the config wants, and ids without a token become `<unused:i>`.
    Documents begin and end with `</s>`: so OPT's is called, and in others the token that the tokenizer puts before a
    text gets that name (Llama's `<s>`), or, where it puts none there, its end of text (`<|endoftext|>`). A family whose
    tokenizer has image codes and special tokens of ours already says by `token_roles` which they are.

    Raises a `UserError` if it is missing, damaged or none of these.
    """
    found = _read(folder, file_name)
    try:
        return _vocabulary(found, folder, rows, config, token_roles)
    except UserError:
        raise
    # Nothing but its own reader knows which objects are a tokenizer, and that raises a bare Exception.
    except Exception as error:
        raise UserError(
            f"the tokenizer in {folder} is damaged ({type(error).__name__}: {error}): get it again"
        ) from None


def _vocabulary(
    found: dict[str, Any], folder: Path, rows: int, config: Config, token_roles: TokenRoles | None
) -> Vocabulary:
    names = {token["content"] for token in found["added_tokens"]}
    # A text is never truncated, whatever another program stored.
    found |= {"truncation": None, "padding": None}
    if "<image:0>" in names:
        # Nor does it get special tokens around it.
        found |= {"post_processor": None}
        vocabulary = Vocabulary(json.dumps(found, ensure_ascii=False, sort_keys=True))
        if vocabulary.size != rows:
            raise UserError(
                f"{folder}: its tokenizer makes a table of {vocabulary.size} rows, its config.json says vocab_size "
                f"{rows}: they do not belong together"
            )
        return vocabulary
    ids = found["model"]["vocab"] | {token["content"]: token["id"] for token in found["added_tokens"]}
    if max(ids.values()) >= rows:
        raise UserError(
            f"{folder}: its tokenizer has the id {max(ids.values())}, its config.json says vocab_size {rows}"
        )
    bytes_without_token = _bytes_without_token(found, folder)
    if bytes_without_token:
        log.info(
            f"its tokenizer has no token for {len(bytes_without_token)} bytes that texts may have: they get new ids"
        )
        found["model"]["vocab"] |= {name: rows + number for number, name in enumerate(bytes_without_token)}
    is_opt = [ids.get(name) for name in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    if token_roles is None and not is_opt and not (folder / _TOKENIZER_FILE).exists():
        raise UserError(
            f"{folder}: its first tokens are not OPT's, {', '.join(SPECIAL_TOKENS)}, and without a tokenizer.json "
            f"nothing says how texts are split into words: {_HOW_TO_MAKE_IT}"
        )
    if token_roles is not None:
        roles = token_roles(ids, folder)
    else:
        roles = {} if is_opt else {_END: _separator(found, ids, folder)}
    if not any(not token["special"] for token in found["added_tokens"]):
        _prepend_to_every_segment(found.get("pre_tokenizer"))
    num_ids = rows + len(bytes_without_token)
    return Vocabulary.around(
        found, num_ids, config.image_tokenizer.codebook_size, config.vocabulary.num_masks, roles=roles
    )


def _bytes_without_token(found: dict[str, Any], folder: Path) -> list[str]:
    """The names of the tokens for bytes that a BPE lacks: characters that stand for them (GPT-2's), or their numbers.

    Raises a `UserError` for a tokenizer that is none.
    """
    names = _CHARACTERS
    if found["model"].get("byte_fallback"):
        names = {byte: f"<0x{byte:02X}>" for byte in _CHARACTERS}
    elif '"ByteLevel"' not in json.dumps(found.get("pre_tokenizer")):
        raise UserError(f"{folder}: its tokenizer is no BPE over bytes: neither of GPT-2's kind nor of Llama 2's")
    return [names[byte] for byte in _BYTES_OF_TEXTS if names[byte] not in found["model"]["vocab"]]


def _separator(found: dict[str, Any], ids: Mapping[str, int], folder: Path) -> int:
    """The id that documents of a tokenizer begin and end with."""
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(found))
    alone, framed = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    if framed[:1] != alone[:1]:
        return framed[0]
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        stored = read_object(folder / name, "a file of the tokenizer") if (folder / name).exists() else {}
        token = stored.get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and token in ids:
            return ids[token]
    named = read_object(folder / "config.json", "the folder's config").get("eos_token_id")
    first = named[0] if isinstance(named, list) and named else named
    if type(first) is int and first in ids.values():
        return first
    raise UserError(
        f"{folder}: neither its tokenizer_config.json (eos_token) nor its config.json (eos_token_id) names the token "
        "that ends a text: add it to the first"
    )


def _prepend_to_every_segment(pre_tokenizer: Any) -> None:
    """Has `transformers` put a space before each text between special tokens, as `Vocabulary.encode_text` does.

    Some of Llama's tokenizers put one before the first alone.
    """
    if isinstance(pre_tokenizer, dict):
        if pre_tokenizer.get("prepend_scheme") == "first":
            pre_tokenizer["prepend_scheme"] = "always"
        for part in pre_tokenizer.get("pretokenizers", ()):
            _prepend_to_every_segment(part)


def open_tokenizer(folder: Path, file_name: str = _TOKENIZER_FILE, **pair: Any) -> tuple[tokenizers.Tokenizer, bool]:
    """The tokenizer of a folder, and whether it is whole.

    It is not where the folder has vocab.json and merges.txt alone, of which the BPE is made with the options `pair`:
    they do not say how texts are split into words. Raises a `UserError` if there is none, or it cannot be read.
    """
    whole, *parts = (folder / name for name in (file_name, "vocab.json", "merges.txt"))
    if not whole.exists() and not all(part.exists() for part in parts):
        raise UserError(
            f"no tokenizer in {folder}: neither {file_name} nor vocab.json and merges.txt; of a tokenizer.model, "
            + _HOW_TO_MAKE_IT
        )
    files = [whole] if whole.exists() else parts
    for file in files:
        check_ordinary(file)
    try:
        if whole in files:
            return tokenizers.Tokenizer.from_file(str(whole)), True
        return tokenizers.Tokenizer(models.BPE.from_file(*map(str, files), **pair)), False
    except Exception as error:  # The library raises a bare Exception for a file that it cannot parse.
        raise UserError(f"{' or '.join(map(str, files))} is damaged ({error}): get it again") from None


def check_ordinary(file: Path) -> None:
    """Raises a `UserError` for a file of a tokenizer that is none, or longer than any."""
    if not file.is_file() or file.stat().st_size > _LONGEST_FILE:
        raise UserError(f"{file} is damaged: it is no ordinary file, or longer than {_LONGEST_FILE:,} bytes")


def _read(folder: Path, file_name: str) -> dict[str, Any]:
    """The tokenizer as the JSON object of the `tokenizers` library."""
    tokenizer, is_whole = open_tokenizer(folder, file_name)
    if is_whole:
        # As the file has it: other spellings of the same would be another fingerprint.
        found = read_object(folder / file_name, "the folder's tokenizer")
        kind = json.loads(tokenizer.to_str())["model"]["type"]
        if kind != "BPE":
            raise UserError(f"{folder}/{file_name} is a {kind} tokenizer: only a byte-level BPE can be imported")
        return {"added_tokens": [], **found}
    settings = folder / "tokenizer_config.json"
    stored = read_object(settings, "the tokenizer's config") if settings.exists() else {}
    spaced = StoredConfig(stored, str(settings)).flag("add_prefix_space", False)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    tokenizer.decoder = decoders.ByteLevel()
    return json.loads(tokenizer.to_str())
