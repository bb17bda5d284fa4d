"""Losses of documents by modality and position, and the rows that they are measured on."""

from __future__ import annotations

import numpy as np
import pytest

from cm3leon_jax.documents import Role
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.likelihood import batch_of, by_modality, by_role
from cm3leon_jax.evaluation.metrics import build_metrics
from cm3leon_jax.vocabulary import Vocabulary
from tests.conftest import IMAGE_LENGTH, random_document


@pytest.fixture
def document(vocabulary: Vocabulary) -> np.ndarray:
    return random_document(vocabulary, np.random.default_rng(0))


def test_rows_score_the_document_and_its_end_alone(vocabulary, document):
    neighbors = [random_document(vocabulary, np.random.default_rng(seed)) for seed in (1, 2)]
    length = 3 * (len(document) + 20)
    batch, ((first, last),) = batch_of([(neighbors, document)], 2, length, vocabulary)
    assert batch.targets[0, first:last].tolist() == [*document.tolist(), vocabulary.end]
    assert batch.tokens[0, 0] == vocabulary.end
    # The nearest neighbor is the last, next to the document.
    assert batch.tokens[0, first - len(neighbors[1]) : first].tolist() == neighbors[1].tolist()
    assert batch.tokens[0, first] == vocabulary.break_
    assert batch.weights[1].sum() == 0


def test_the_farthest_neighbors_give_way_where_a_row_is_short(vocabulary, document):
    neighbors = [random_document(vocabulary, np.random.default_rng(seed)) for seed in (1, 2)]
    length = len(neighbors[1]) + len(document) + 2
    batch, ((first, last),) = batch_of([(neighbors, document)], 1, length, vocabulary)
    assert batch.tokens[0, 1 : 1 + len(neighbors[1])].tolist() == neighbors[1].tolist()
    assert last - first == len(document) + 1


def test_losses_go_to_their_modality_and_quarter(vocabulary, document):
    is_image = np.append(vocabulary.is_image(document), False)
    losses = np.ones(len(document) + 1, np.float32)
    losses[is_image] = np.repeat([2.0, 3.0, 4.0, 5.0], IMAGE_LENGTH // 4)
    found = by_modality([losses, losses], [document, document], vocabulary)
    assert found["loss_text"].value == 1
    assert found["loss_image"].value == 3.5
    assert [found[f"loss_image_quarter_{quarter}"].value for quarter in (1, 2, 3, 4)] == [2, 3, 4, 5]
    assert found["loss_image"].n == 2


def test_an_image_at_the_beginning_counts_from_its_first_code(vocabulary, document):
    image = document[vocabulary.is_image(document)]
    found = by_modality([np.append(np.arange(IMAGE_LENGTH), 0.0)], [image], vocabulary)
    assert found["loss_image_quarter_1"].value == np.arange(IMAGE_LENGTH // 4).mean()


def test_a_document_without_images_has_no_image_loss(vocabulary, document):
    text = document[~vocabulary.is_image(document)]
    assert set(by_modality([np.ones(len(text) + 1)], [text], vocabulary)) == {"loss_text"}


def test_contexts_are_those_that_there_are():
    assert build_metrics({"mine": {"type": "likelihood", "contexts": ["none", "top_1"]}})
    with pytest.raises(UserError, match=r"metrics\.mine\.contexts is 'top_2': 'none', 'top_1', 'all' or 'random'"):
        build_metrics({"mine": {"type": "likelihood", "contexts": ["none", "top_2"]}})


def test_losses_by_role():
    roles = [np.array([Role.INSTRUCTION, Role.CONTEXT, Role.TARGET, Role.CHANGED], np.uint8), None]
    found = by_role([np.array([1.0, 2.0, 3.0, 5.0, 9.0]), np.array([7.0, 7.0])], roles)
    assert {name: estimate.value for name, estimate in found.items()} == {
        "loss_context": 2.0,
        "loss_instruction": 1.0,
        "loss_target": 4.0,
    }
    assert by_role([np.ones(3)], [None]) == {}
