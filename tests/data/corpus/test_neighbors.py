import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.data.corpus.neighbors import NONE, DatastoreDocuments, NeighborLists, datastore_tasks, sample_neighbors
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.errors import UserError
from cm3leon_jax.retrieval.config import RetrievalConfig
from tests.conftest import random_document, write_corpus, write_neighbors

CONFIG = RetrievalConfig(enabled=True)
SIZES = {"first": {"train": 7, "validation": 3}, "second": {"train": 5}}


@pytest.fixture
def corpus(tmp_path, vocabulary) -> PreparedCorpus:
    rng = np.random.default_rng(0)
    documents = {
        task: {split: [random_document(vocabulary, rng) for _ in range(n)] for split, n in splits.items()}
        for task, splits in SIZES.items()
    }
    return PreparedCorpus.open(write_corpus(tmp_path, vocabulary, documents), vocabulary)


def lists_of(corpus: PreparedCorpus, memory: list[str]) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    top = sum(SIZES[task]["train"] for task in memory)
    return {
        task: {split: rng.integers(0, top, (n, CONFIG.num_kept)) for split, n in splits.items()}
        for task, splits in SIZES.items()
    }


def test_the_memory_is_the_training_documents_end_to_end(corpus):
    memory = DatastoreDocuments(corpus, ("first", "second"), "train")
    assert len(memory) == 12
    assert (memory.first_index("first"), memory.first_index("second"), memory.first_index("third")) == (0, 7, None)
    for place in range(12):
        task, index = memory.origin(place)
        np.testing.assert_array_equal(memory.document(place), corpus.task_split(task, "train").document(index))
        assert memory.lengths[place] == len(memory.document(place))


def test_lists_come_back_shard_after_shard(corpus):
    kept = lists_of(corpus, ["first", "second"])
    write_neighbors(corpus, CONFIG, ["first", "second"], kept)
    lists = NeighborLists.open(corpus, CONFIG, "train")
    for task, splits in kept.items():
        for split, positions in splits.items():
            found, scores = lists.of_split(task, split)
            np.testing.assert_array_equal(found, positions)
            assert scores.shape == positions.shape


def test_a_memory_of_named_tasks_and_one_that_does_not_exist(corpus):
    named = dataclasses.replace(CONFIG, datastore_tasks=("second",))
    assert datastore_tasks(named, corpus, "train") == ("second",)
    assert datastore_tasks(CONFIG, corpus, "train") == ("first", "second")
    with pytest.raises(UserError, match=r"datastore_tasks names 'third': the corpus has first, second"):
        datastore_tasks(dataclasses.replace(CONFIG, datastore_tasks=("third",)), corpus, "train")
    with pytest.raises(UserError, match="the datastore is empty"):
        datastore_tasks(named, corpus, "validation")


def test_lists_that_are_missing_or_of_something_else_are_refused(corpus, tmp_path, vocabulary):
    with pytest.raises(UserError, match=r"no neighbors at .*run `cm3leon prepare`"):
        NeighborLists.open(corpus, CONFIG, "train")
    write_neighbors(corpus, CONFIG, ["first"], lists_of(corpus, ["first"]))
    with pytest.raises(UserError, match=r"config.retrieval.max_similarity = 0.9, now it is 0.8"):
        NeighborLists.open(corpus, dataclasses.replace(CONFIG, max_similarity=0.8), "train")
    # What training draws is no matter of the lists.
    NeighborLists.open(corpus, dataclasses.replace(CONFIG, num_retrieved=1, sampling="uniform"), "train")
    grown = dict(corpus.manifest["tasks"]["first"]["splits"]["train"], num_documents=8)
    manifest = {**corpus.manifest, "tasks": {"first": {"rate": 1.0, "splits": {"train": grown}}}}
    with pytest.raises(UserError, match="found for another corpus"):
        NeighborLists.open(PreparedCorpus(corpus.path, manifest), CONFIG, "train")


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 1000),
    num_retrieved=st.integers(0, 4),
    sampling=st.sampled_from(["fixed", "uniform"]),
    n=st.just(200),
)
def test_what_is_drawn_was_kept_and_stands_in_front(seed, num_retrieved, sampling, n):
    config = RetrievalConfig(enabled=True, num_retrieved=num_retrieved, sampling=sampling)
    rng = np.random.default_rng(seed)
    kept = np.stack([rng.permutation(50)[:4] for _ in range(n)])
    kept[rng.random(kept.shape) < 0.3] = NONE
    drawn = sample_neighbors(kept, config, seed, np.arange(n))
    assert drawn.shape == (n, num_retrieved)
    for mine, found in zip(kept.tolist(), drawn.tolist(), strict=True):
        real = [place for place in found if place != NONE]
        assert found[: len(real)] == real and len(set(real)) == len(real) and set(real) <= set(mine)
        there = sum(place != NONE for place in mine)
        assert len(real) == min(num_retrieved, there) if sampling == "fixed" else len(real) <= min(num_retrieved, there)


def test_the_draw_is_even_and_depends_on_the_key_alone():
    kept = np.tile(np.arange(4), (8000, 1))
    config = RetrievalConfig(enabled=True, num_retrieved=3)
    drawn = sample_neighbors(kept, config, 5, np.arange(8000))
    for place in range(4):
        assert (drawn == place).any(axis=1).mean() == pytest.approx(0.75, abs=0.02)
        assert (drawn[:, 0] == place).mean() == pytest.approx(0.25, abs=0.02)
    np.testing.assert_array_equal(drawn[100:200], sample_neighbors(kept[100:200], config, 5, np.arange(100, 200)))
    uniform = sample_neighbors(
        kept, dataclasses.replace(config, num_retrieved=2, sampling="uniform"), 5, np.arange(8000)
    )
    counts = (uniform != NONE).sum(axis=1)
    for count in range(3):
        assert (counts == count).mean() == pytest.approx(1 / 3, abs=0.02)
