"""The tokenizer of a Hugging Face folder: written for `transformers.AutoTokenizer`, read into a vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from cm3leon_jax.config import Config
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import read_object, write_json
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.vocabulary import NUM_SPECIAL, SPECIAL_TOKENS, Vocabulary

# Far above every published tokenizer; a larger file would be read into memory before it is refused.
_LONGEST_FILE = 1 << 28
_START, _PAD, _END, _UNKNOWN = SPECIAL_TOKENS


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


def read_vocabulary(folder: Path, rows: int, config: Config) -> Vocabulary:
    """The vocabulary of a folder; its first ids are the rows of the folder's embedding table.

    One that `cm3leon export` wrote is taken as it is. Any other, which must be a byte-level BPE whose first ids are
    OPT's, is followed by the ids of images and special tokens that the config wants; ids without a token become
    `<unused:i>`. Raises a `UserError` if it is missing, damaged or none of these.
    """
    found = _read(folder)
    try:
        return _vocabulary(found, folder, rows, config)
    except UserError:
        raise
    # Nothing but its own reader knows which objects are a tokenizer, and that raises a bare Exception.
    except Exception as error:
        raise UserError(
            f"the tokenizer in {folder} is damaged ({type(error).__name__}: {error}): get it again"
        ) from None


def _vocabulary(found: dict[str, Any], folder: Path, rows: int, config: Config) -> Vocabulary:
    names = {token["content"] for token in found["added_tokens"]}
    if "<image:0>" in names:
        # A text is never truncated and gets no special tokens around it, whatever another program stored.
        found |= {"truncation": None, "padding": None, "post_processor": None}
        vocabulary = Vocabulary(json.dumps(found, ensure_ascii=False, sort_keys=True))
        if vocabulary.size != rows:
            raise UserError(
                f"{folder}: its tokenizer makes a table of {vocabulary.size} rows, its config.json says vocab_size "
                f"{rows}: they do not belong together"
            )
        return vocabulary
    by_id = {index: name for name, index in found["model"]["vocab"].items()}
    by_id |= {token["id"]: token["content"] for token in found["added_tokens"]}
    first = tuple(by_id.get(index) for index in range(NUM_SPECIAL))
    if first != SPECIAL_TOKENS:
        raise UserError(
            f"{folder}: the first ids of its tokenizer are {', '.join(map(str, first))}, and have to be "
            f"{', '.join(SPECIAL_TOKENS)}: this is not OPT's tokenizer"
        )
    if max(by_id) >= rows:
        raise UserError(f"{folder}: its tokenizer has the id {max(by_id)}, its config.json says vocab_size {rows}")
    unwritable = set(pre_tokenizers.ByteLevel.alphabet()) - found["model"]["vocab"].keys()
    if unwritable:
        raise UserError(f"{folder}: its tokenizer is no byte-level BPE: it has no token for {len(unwritable)} bytes")
    masks = config.vocabulary.num_masks
    return Vocabulary.around(found, rows - NUM_SPECIAL, config.image_tokenizer.codebook_size, masks)


def open_tokenizer(folder: Path, **pair: Any) -> tuple[tokenizers.Tokenizer, bool]:
    """The tokenizer of a folder, and whether it is whole.

    It is not where the folder has vocab.json and merges.txt alone, of which the BPE is made with the options `pair`:
    they do not say how texts are split into words. Raises a `UserError` if there is none, or it cannot be read.
    """
    whole, *parts = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if not whole.exists() and not all(part.exists() for part in parts):
        raise UserError(f"no tokenizer in {folder}: neither tokenizer.json nor vocab.json and merges.txt")
    files = [whole] if whole.exists() else parts
    for file in files:
        if not file.is_file() or file.stat().st_size > _LONGEST_FILE:
            raise UserError(f"{file} is damaged: it is no ordinary file, or longer than {_LONGEST_FILE:,} bytes")
    try:
        if whole in files:
            return tokenizers.Tokenizer.from_file(str(whole)), True
        return tokenizers.Tokenizer(models.BPE.from_file(*map(str, files), **pair)), False
    except Exception as error:  # The library raises a bare Exception for a file that it cannot parse.
        raise UserError(f"{' or '.join(map(str, files))} is damaged ({error}): get it again") from None


def _read(folder: Path) -> dict[str, Any]:
    """The tokenizer as the JSON object of the `tokenizers` library."""
    tokenizer, is_whole = open_tokenizer(folder)
    if is_whole:
        # As the file has it: other spellings of the same would be another fingerprint.
        found = read_object(folder / "tokenizer.json", "the folder's tokenizer")
        kind = json.loads(tokenizer.to_str())["model"]["type"]
        if kind != "BPE":
            raise UserError(f"{folder}/tokenizer.json is a {kind} tokenizer: only a byte-level BPE can be imported")
        return {"added_tokens": [], **found}
    settings = folder / "tokenizer_config.json"
    stored = read_object(settings, "the tokenizer's config") if settings.exists() else {}
    spaced = StoredConfig(stored, str(settings)).flag("add_prefix_space", False)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    tokenizer.decoder = decoders.ByteLevel()
    return json.loads(tokenizer.to_str())
