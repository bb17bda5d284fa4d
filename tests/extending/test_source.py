"""The source of docs/add_a_source.md, registered from outside of the package, goes through every command."""

import re
from pathlib import Path

import numpy as np
import pytest

from cm3leon_jax.cli import main
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.progress import read_step_log
from cm3leon_jax.vocabulary import Vocabulary
from tests.test_whole_path import CONFIG

PAGE = Path(__file__).parents[2] / "docs" / "add_a_source.md"


@pytest.mark.slow
def test_a_source_from_outside_the_package_is_prepared_and_trained_on(tmp_path):
    module, corpus_line = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    corpus = re.search(r"dict\((.*)\)", corpus_line)
    assert corpus is not None
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "numbers_source.py").write_text(module)
    (folder / "tiny.py").write_text(CONFIG.replace('mixture="folder:{folder}"', corpus[1]))
    for command in ("train-text-tokenizer", "train-image-tokenizer", "prepare", "train"):
        assert main([command, f"--config={folder / 'tiny.py'}", f"--workdir={tmp_path / 'run'}"]) == 0, command

    vocabulary = Vocabulary.load(tmp_path / "run" / "vocabulary")
    prepared = PreparedCorpus.open(tmp_path / "run" / "corpus", vocabulary)
    assert prepared.manifest["mixture"] == "numbers:60"
    documents = prepared.task_split("numbers_60", "train")
    assert documents.num_documents == 60
    assert [vocabulary.decode_text(documents.document(i).tolist()) for i in range(60)] == [
        f"number {i}" for i in range(60)
    ]
    assert all(np.count_nonzero(vocabulary.is_image(documents.document(i))) == 16 for i in range(60))
    assert len(read_step_log(tmp_path / "run" / "metrics.jsonl")) == 12
