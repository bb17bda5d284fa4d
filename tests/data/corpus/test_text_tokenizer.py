"""The command `train-text-tokenizer`: what it learns, and what it does not overwrite."""

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from cm3leon_jax.commands import train_text_tokenizer as text_tokenizer
from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.config import CorpusConfig, VocabularyConfig
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import write_json
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig
from cm3leon_jax.vocabulary import Vocabulary


@pytest.fixture
def config(tmp_path):
    return Config(
        corpus=CorpusConfig(path=str(tmp_path / "corpus"), mixture="digits", modules=("examples.digits.tasks",)),
        vocabulary=VocabularyConfig(str(tmp_path / "vocabulary"), num_text_tokens=320, num_masks=4, num_documents=200),
        image_tokenizer=VQGANConfig(codebook_size=64),
    )


def test_learns_once_and_refuses_to_orphan_a_corpus(config, capsys):
    assert text_tokenizer.run(config, Path(), argparse.Namespace()) == 0
    out = capsys.readouterr().out
    assert "learned 64 merges of 64 wanted, from 200 texts" in out and "bytes per token" in out
    vocabulary = Vocabulary.load(config.vocabulary.path)
    assert (vocabulary.num_text_tokens, vocabulary.num_image_codes, vocabulary.num_masks) == (320, 64, 4)
    assert vocabulary.decode_text(vocabulary.encode_text("a handwritten seven")) == "a handwritten seven"
    assert len(vocabulary.encode_text("a handwritten seven")) < 10

    assert text_tokenizer.run(config, Path(), argparse.Namespace()) == 0
    assert "is there already" in capsys.readouterr().out

    larger = replace(config, vocabulary=replace(config.vocabulary, num_text_tokens=330))
    corpus = {"vocabulary": {"fingerprint": vocabulary.fingerprint}}
    write_json(f"{config.corpus.path}/manifest.json", corpus)
    with pytest.raises(UserError, match="num_text_tokens was 320, is 330 now"):
        text_tokenizer.run(larger, Path(), argparse.Namespace())
    assert Vocabulary.load(config.vocabulary.path).fingerprint == vocabulary.fingerprint

    write_json(f"{config.corpus.path}/manifest.json", {"vocabulary": {"fingerprint": "another"}})
    assert text_tokenizer.run(larger, Path(), argparse.Namespace()) == 0
    assert Vocabulary.load(config.vocabulary.path).num_text_tokens == 330


def test_a_vocabulary_that_was_brought_along_is_kept(config, capsys):
    Vocabulary.train(["some text"], 320, 64, 4, progress=False).save(config.vocabulary.path)
    assert text_tokenizer.run(config, Path(), argparse.Namespace()) == 0
    assert "is there already" in capsys.readouterr().out
