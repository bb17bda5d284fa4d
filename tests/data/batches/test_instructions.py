"""Instructions in batches: their wordings, dropped conditions, masked targets and what each token counts."""

import dataclasses
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cm3leon_jax.data.batches.config import BatchConfig, LossWeightsConfig, ObjectiveConfig
from cm3leon_jax.data.batches.source import BatchSource
from cm3leon_jax.data.corpus.instructions import to_be_stored
from cm3leon_jax.data.corpus.prepared import PreparedCorpus
from cm3leon_jax.data.templates.tokenized import load_template
from cm3leon_jax.errors import UserError
from cm3leon_jax.models.config import MeshConfig
from cm3leon_jax.models.sharding import make_mesh
from cm3leon_jax.training.loss import head_loss
from tests.conftest import random_document, write_corpus

BATCH = BatchConfig(batch_size=8, sequence_length=96, seed=3)
TARGETS_ONLY = LossWeightsConfig(context=0.0, instruction=0.0)
QUESTIONS = ("how many are there?", "which digit is it?")
ANSWERS = ("seven", "it is the digit nine")


def question(v, rng) -> list[np.ndarray]:
    asked, answer = QUESTIONS[rng.integers(2)], ANSWERS[rng.integers(2)]
    image = v.encode_image(rng.integers(0, 32, 16)).astype(np.int32)
    return [ids(v, f" {asked}"), ids(v, f" {answer}"), image, ids(v, answer)]


def edit(v, rng) -> list[np.ndarray]:
    image = rng.integers(0, 32, 16)
    edited = np.where(np.arange(16) < 4, (image + 1) % 32, image)
    return [v.encode_image(image).astype(np.int32), ids(v, "wider"), v.encode_image(edited).astype(np.int32)]


def turns(v, rng) -> list[np.ndarray]:
    image = v.encode_image(rng.integers(0, 32, 16)).astype(np.int32)
    asked = [ids(v, text) for number in range(rng.integers(1, 4)) for text in (f" {QUESTIONS[number % 2]}", " seven")]
    return [image, *asked]


def ids(v, text: str) -> np.ndarray:
    return np.array(v.encode_text(text), np.int32)


@pytest.fixture(scope="module")
def instructed(tmp_path_factory, vocabulary):
    v, rng = vocabulary, np.random.default_rng(7)
    made = {"question": question, "edit": edit, "questions": turns}
    values = {name: [make(v, rng) for _ in range(20)] for name, make in made.items()}
    stored = {name: [to_be_stored(load_template(name, v), each) for each in found] for name, found in values.items()}
    documents = {
        "asked": {"train": [*stored["question"], *stored["questions"]]},
        "edited": {"train": stored["edit"]},
        "plain": {"train": [random_document(v, rng) for _ in range(20)]},
    }
    path = write_corpus(tmp_path_factory.mktemp("corpus"), v, documents)
    return PreparedCorpus.open(path, v), {
        "asked": [*values["question"], *values["questions"]],
        "edited": values["edit"],
    }


def sequences(batch, v) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens and the weights of those after the first, of each document of a batch."""
    found = []
    for row in range(len(batch.tokens)):
        starts = np.unique(batch.document_start[row][batch.tokens[row] != v.pad])
        for start in starts:
            inside = (batch.document_start[row] == start) & (batch.tokens[row] != v.pad)
            tokens = np.append(batch.tokens[row][inside], batch.targets[row][inside][-1])
            found.append((tokens, batch.weights[row][inside]))
    return found


def test_the_corpus_holds_the_first_wording_and_every_field(instructed, vocabulary):
    corpus, values = instructed
    v = vocabulary
    for task, of_task in values.items():
        split = corpus.task_split(task, "train")
        for index, expected in enumerate(of_task):
            assert split.instructions is not None
            name = split.instructions.names[split.instructions.templates[index]]
            for found, value in zip(split.fields(index), expected, strict=True):
                np.testing.assert_array_equal(found, value)
            first = load_template(name, v).assemble(expected).tokens
            np.testing.assert_array_equal(split.document(index), first)
            assert split.lengths[index] == len(first)
    assert corpus.task_split("plain", "train").instructions is None


def test_an_instruction_comes_in_every_wording_and_without_its_conditions(instructed, vocabulary):
    corpus, values = instructed
    v = vocabulary
    objective = ObjectiveConfig(span_count="none", condition_drop_prob=0.5, target_mask_prob=0.5)
    source = BatchSource(corpus, v, objective, BATCH)
    seen = {tuple(tokens.tolist()) for step in range(60) for tokens, _ in sequences(source[step], v)}
    template, edits = load_template("question", v), load_template("edit", v)

    def share_seen(template, of_task, **how) -> float:
        made = [template.assemble(value, **how).tokens.tolist() for value in of_task]
        return np.mean([(v.end, *tokens, v.end) in seen for tokens in made])

    # About seven epochs.
    assert all(share_seen(template, values["asked"][:20], wording=wording) > 0.5 for wording in range(3))
    assert all(share_seen(edits, values["edited"], dropped=dropped) > 0.7 for dropped in ((), *edits.drops))
    # An answer alone, masked as `generate` asks for it.
    asked = 0
    for given, answer, image, _ in values["asked"][:20]:
        before = [v.end, *ids(v, "Question:"), *given, *ids(v, " Answer:"), v.mask(0), v.break_, *image]
        asked += (*before, v.end, v.mask(0), *answer, v.eoss) in seen
    assert asked > 10


def test_a_step_is_the_same_from_any_start_and_on_any_process(instructed, vocabulary):
    corpus, _ = instructed
    objective = ObjectiveConfig(condition_drop_prob=0.3, target_mask_prob=0.6, weights=TARGETS_ONLY)
    everything = BatchSource(corpus, vocabulary, objective, BATCH)
    halves = [BatchSource(corpus, vocabulary, objective, BATCH, rows=range(first, first + 4)) for first in (0, 4)]
    for step in (31, 5, 12):
        whole = jax.tree.leaves(everything[step])
        fresh = jax.tree.leaves(BatchSource(corpus, vocabulary, objective, BATCH)[step])
        parts = [jax.tree.leaves(half[step]) for half in halves]
        for first, second, upper, lower in zip(whole, fresh, *parts, strict=True):
            np.testing.assert_array_equal(first, second)
            np.testing.assert_array_equal(first, np.concatenate([upper, lower]))


def test_only_targets_count(instructed, vocabulary):
    v = vocabulary
    weights_by_role = dataclasses.replace(TARGETS_ONLY, changed=5.0)
    objective = ObjectiveConfig(span_count="none", target_mask_prob=0.5, weights=weights_by_role)
    batch_source = BatchSource(instructed[0], v, objective, BATCH)
    counted = 0
    for step in range(12):
        for tokens, weights in sequences(batch_source[step], v):
            text = v.decode_text(tokens.tolist())
            if text.startswith("Edit"):
                counted += 1
                assert sorted(set(weights.tolist())) in ([0.0, 1.0, 5.0], [1.0, 5.0])
                assert (weights == 5.0).sum() == 4
            elif text.startswith("Question"):
                target = v.decode_text(tokens[1:][weights > 0].tolist())
                assert "Question" not in target and target.strip()
                assert weights.max() == 1
                counted += 1
            elif text:
                assert (weights == 1).all()
    assert counted > 50


def test_what_does_not_count_has_no_gradient(instructed, vocabulary):
    v = vocabulary
    objective = ObjectiveConfig(target_mask_prob=0.5, weights=TARGETS_ONLY)
    batch = BatchSource(instructed[0], v, objective, BATCH)[0]
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(*batch.tokens.shape, 8)), jnp.float32)
    table = jnp.asarray(rng.normal(size=(v.size, 8)), jnp.float32)

    def gradients(targets):
        def loss(hidden, table):
            return head_loss(hidden, table, jnp.asarray(targets), jnp.asarray(batch.weights), 0.0, 1)[0]

        return jax.grad(loss, argnums=(0, 1))(hidden, table)

    other = np.where(batch.weights > 0, batch.targets, (batch.targets + 1) % v.size)
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])):
        for found, expected in zip(gradients(batch.targets), gradients(other), strict=True):
            np.testing.assert_array_equal(found, expected)
        assert not np.asarray(gradients(batch.targets)[0])[batch.weights == 0].any()


def test_weights_by_modality_and_of_the_whole_sequence(instructed, vocabulary):
    v = vocabulary
    plain = BatchSource(instructed[0], v, ObjectiveConfig(), BATCH)[2]
    twice = BatchSource(instructed[0], v, ObjectiveConfig(weights=LossWeightsConfig(image=2.0, text=0.5)), BATCH)[2]
    np.testing.assert_array_equal(plain.targets, twice.targets)
    used = plain.weights > 0
    np.testing.assert_array_equal(twice.weights[used], np.where(v.is_image(plain.targets), 2.0, 0.5)[used])
    assert (plain.weights[used] == 1).all()


def test_rows_hold_whole_documents(instructed, vocabulary):
    """Each document stands between two ends, whatever its wording, and rows overlap nowhere."""
    v = vocabulary
    objective = ObjectiveConfig(condition_drop_prob=0.2, target_mask_prob=0.5)
    source = BatchSource(instructed[0], v, objective, BATCH)
    for step in range(10):
        for tokens, _ in sequences(source[step], v):
            assert tokens[0] == v.end
            assert not any(a == v.pad or b == v.pad for a, b in pairwise(tokens.tolist()))
            masks = tokens[(tokens >= v.first_mask) & (tokens < v.first_mask + v.num_masks)]
            assert np.count_nonzero(tokens == v.eoss) in (0, len(masks) // 2)


def test_instructions_are_never_cut(instructed, vocabulary):
    v = vocabulary
    with pytest.raises(UserError, match="which cuts documents anywhere, but the corpus has instructions"):
        BatchSource(instructed[0], v, ObjectiveConfig(), dataclasses.replace(BATCH, packing="concat_then_split"))
    # Rows that no edit fits: 16 + 16 codes and a text.
    short = BatchSource(instructed[0], v, ObjectiveConfig(), dataclasses.replace(BATCH, sequence_length=48))
    for step in range(8):
        for tokens, _ in sequences(short[step], v):
            assert not v.decode_text(tokens.tolist()).startswith("Edit")
