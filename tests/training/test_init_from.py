"""A run that starts from another: same tokens keep their rows, whatever the vocabularies, lengths and meshes."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from cm3leon_jax.checkpoints import Checkpoints
from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.config import BatchConfig
from cm3leon_jax.data.corpus.config import CorpusConfig, VocabularyConfig
from cm3leon_jax.errors import UserError
from cm3leon_jax.files import write_json
from cm3leon_jax.models.config import MeshConfig, ModelConfig
from cm3leon_jax.training.config import TrainConfig
from cm3leon_jax.training.init_from import same_tokens
from cm3leon_jax.training.resume import restore_or_init
from cm3leon_jax.training.transformer import TransformerTraining
from cm3leon_jax.vocabulary import Vocabulary
from tests.conftest import random_document, write_corpus

pytestmark = pytest.mark.slow

OTHER_CAPTIONS = ("a drawing of the number 9", "three green squares", "zero, in pencil")


@pytest.fixture(scope="module")
def other_vocabulary() -> Vocabulary:
    """More words, fewer codes, more masks."""
    return Vocabulary.train(OTHER_CAPTIONS * 4, num_text_tokens=300, num_image_codes=24, num_masks=9, progress=False)


def setup_in(folder, vocabulary, corpus_path, model, tiny_images, mesh=None, length=48, **train):
    vocabulary.save(folder / "vocabulary")
    config = Config(
        corpus=CorpusConfig(path=str(corpus_path)),
        vocabulary=VocabularyConfig(path=str(folder / "vocabulary")),
        image_tokenizer=tiny_images,
        batch=BatchConfig(batch_size=8, sequence_length=length),
        mesh=mesh or MeshConfig(),
        model=model,
        train=TrainConfig(num_tokens=8.0 * 48 * 10, sample_every=0, **train),
    )
    return TransformerTraining.open(config, folder)


MODEL = ModelConfig(
    num_layers=2, model_dim=32, num_heads=4, tied_embeddings=False, compute_dtype="float32", remat="none"
)


@pytest.fixture(scope="module")
def other_run(tmp_path_factory, vocabulary, corpus, tiny_images):
    """The folder of a run at step 6, on a mesh of its own, and its parameters."""
    folder = tmp_path_factory.mktemp("other")
    setup = setup_in(folder, vocabulary, corpus.path, MODEL, tiny_images, MeshConfig(replica=2, fsdp=2, tensor=2))
    state = setup.compiled.init()
    # As if trained: no number is that of a run from scratch.
    state["parameters"] = jax.tree.map(lambda leaf: leaf + 1.0, state["parameters"])
    with Checkpoints(folder / "checkpoints", keep=3) as checkpoints:
        start = restore_or_init(setup.run(), checkpoints)
        for step in (3, 6):
            checkpoints.save(step, state, setup.identity | start.meta((0, 0), start.seconds))
    return folder, jax.device_get(state["parameters"])


def started(setup):
    with Checkpoints(setup.workdir / "checkpoints", keep=3) as checkpoints:
        return restore_or_init(setup.run(), checkpoints)


def test_the_same_vocabulary_takes_all_over_on_any_mesh(tmp_path, other_run, vocabulary, corpus, tiny_images, capsys):
    folder, parameters = other_run
    setup = setup_in(
        tmp_path, vocabulary, corpus.path, MODEL, tiny_images, MeshConfig(fsdp=8), init_from=str(folder), seed=5
    )
    start = started(setup)
    assert start.description == f"from the parameters of {folder} at step 6" and start.step == 0
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(start.state["parameters"]), parameters)
    # The optimizer is that of a new run.
    fresh = setup.compiled.init()
    jax.tree.map(np.testing.assert_array_equal, *(jax.device_get(s["optimizer"]) for s in (start.state, fresh)))
    assert start.skipped == () and int(start.state["step"]) == 0
    assert jax.tree.map(lambda a: a.sharding, start.state) == jax.tree.map(lambda a: a.sharding, fresh)
    # Its own checkpoint goes before the other run from now on.
    again = started(dataclasses.replace(setup, config=dataclasses.replace(setup.config)))
    assert again.description == "continued from the checkpoint of step 0"
    assert again.origin == f"the parameters of {folder} at step 6"
    assert not capsys.readouterr().out


def test_another_vocabulary_and_a_longer_sequence_begin_with_what_both_have(
    tmp_path, other_run, other_vocabulary, vocabulary, tiny_images, capsys
):
    folder, parameters = other_run
    rng = np.random.default_rng(0)
    documents = [random_document(other_vocabulary, rng) for _ in range(12)]
    path = write_corpus(tmp_path / "corpus", other_vocabulary, {"new": {"train": documents, "validation": documents}})
    setup = setup_in(
        tmp_path / "run", other_vocabulary, path, MODEL, tiny_images, MeshConfig(fsdp=4, tensor=2), 64,
        init_from=str(folder),
    )  # fmt: skip
    fresh = jax.device_get(setup.compiled.init()["parameters"])
    found = jax.device_get(started(setup).state["parameters"])
    ids = {vocabulary.name(index): index for index in range(vocabulary.size)}
    num_taken = 0
    for index in range(other_vocabulary.size):
        name = other_vocabulary.name(index)
        same = ids.get(name) if not name.startswith(("<id:", "<unused:")) else None
        for each in ("token_embedding", "output_embedding"):
            table, new, theirs = (tree[each].get_value() for tree in (found, fresh, parameters))
            expected = new[index] if same is None else theirs[same]
            np.testing.assert_array_equal(table[index], expected, err_msg=name)
        num_taken += same is not None
    assert num_taken > 256 + 24
    positions = found["position_embedding"].get_value()
    np.testing.assert_array_equal(positions[:48], parameters["position_embedding"].get_value())
    np.testing.assert_array_equal(positions[48:], fresh["position_embedding"].get_value()[48:])
    query = [tree["blocks"]["attention"]["query"].get_value() for tree in (found, parameters)]
    np.testing.assert_array_equal(*query)
    said = capsys.readouterr().out
    assert f"vocabulary: {num_taken:,} of " in said and "positions: 48 of 64 are taken over, 16 are new" in said


def test_rows_go_by_what_tokens_are(vocabulary, other_vocabulary):
    rows = same_tokens(other_vocabulary, vocabulary)
    assert rows[other_vocabulary.encode_text("9")[0]] == vocabulary.encode_text("9")[0]
    assert rows[other_vocabulary.first_image_code + 23] == vocabulary.first_image_code + 23
    assert rows[other_vocabulary.break_] == vocabulary.break_
    assert rows[other_vocabulary.mask(7)] == vocabulary.mask(7)
    assert rows[other_vocabulary.mask(8)] == -1
    assert list(rows[:4]) == [0, 1, 2, 3]
    np.testing.assert_array_equal(same_tokens(vocabulary, vocabulary), np.arange(vocabulary.size))
    # No row goes to two tokens.
    assert len(set(rows[rows >= 0])) == (rows >= 0).sum()


OTHER_MODELS = [{"model_dim": 64}, {"num_layers": 3}, {"ffn_dim": 96}, {"gated": True}, {"positions": "rotary"}]


@pytest.mark.parametrize(
    "fields", [*OTHER_MODELS, {name: value for part in OTHER_MODELS for name, value in part.items()}]
)
def test_another_shape_is_refused_by_the_name_of_each_field(
    tmp_path, other_run, vocabulary, corpus, tiny_images, fields
):
    model = dataclasses.replace(MODEL, **fields)
    setup = setup_in(tmp_path, vocabulary, corpus.path, model, tiny_images, init_from=str(other_run[0]))
    with pytest.raises(UserError) as refused:
        started(setup)
    differing = {name for name in dataclasses.asdict(MODEL) if f"config.model.{name} is" in str(refused.value)}
    # The width of the other layers and heads follows from the model's where it is not said.
    assert differing == fields.keys() | ({"ffn_dim", "embedding_dim", "head_size"} if "model_dim" in fields else set())


def test_what_is_no_run_or_lacks_its_vocabulary_is_refused(
    tmp_path, other_run, other_vocabulary, vocabulary, corpus, tiny_images
):
    def refused(match, init_from, vocabulary=vocabulary, path=corpus.path):
        setup = setup_in(tmp_path / "run", vocabulary, path, MODEL, tiny_images, init_from=str(init_from))
        with pytest.raises(UserError, match=match):
            started(setup)

    refused("no checkpoints there", tmp_path / "nowhere")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True, exist_ok=True)
    refused("where this run is to be", tmp_path / "run")
    rng = np.random.default_rng(0)
    documents = [random_document(other_vocabulary, rng) for _ in range(12)]
    path = write_corpus(tmp_path / "corpus", other_vocabulary, {"new": {"train": documents, "validation": documents}})
    folder = other_run[0]
    (folder / "vocabulary").rename(folder / "elsewhere")
    try:
        refused(f"neither at {folder}/vocabulary nor", folder, other_vocabulary, path)
    finally:
        (folder / "elsewhere").rename(folder / "vocabulary")


def test_of_a_damaged_run_the_step_before_is_used(tmp_path, other_run, vocabulary, corpus, tiny_images):
    folder = shutil.copytree(other_run[0], tmp_path / "damaged")
    record = folder / "checkpoints" / "6" / "meta" / "metadata"
    write_json(record, json.loads(record.read_text()) | {"batch_hint": [0, 9]})
    setup = setup_in(tmp_path / "run", vocabulary, corpus.path, MODEL, tiny_images, init_from=str(folder))
    assert started(setup).description == f"from the parameters of {folder} at step 3"
    # It is another's folder: nothing in it gets another name.
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["3", "6"]


def test_an_import_is_passed_over_and_stays(tmp_path, other_run, vocabulary, corpus, tiny_images):
    setup = setup_in(tmp_path, vocabulary, corpus.path, MODEL, tiny_images, init_from=str(other_run[0]))
    imported = {"parameters": setup.compiled.init()["parameters"]}
    with Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints:
        checkpoints.save(0, imported, setup.identity | {"imported": True})
    assert started(setup).description == f"from the parameters of {other_run[0]} at step 6"
    without = dataclasses.replace(setup.config.train, init_from="")
    setup = dataclasses.replace(setup, config=dataclasses.replace(setup.config, train=without))
    assert started(setup).description == "from imported parameters"
