"""Which requests are searched for, by what, and how many documents fit."""

import numpy as np
import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.generation.generate import open_retriever, retrieve
from cm3leon_jax.generation.requests import Request
from cm3leon_jax.retrieval.retriever import Neighbor, Retriever


class Recording(Retriever):
    """A retriever that keeps what it was asked."""

    def __init__(self) -> None:
        self.__dict__ |= {"texts": [], "images": []}

    def by_text(self, texts, count):
        self.texts += texts
        return [[Neighbor("task", index, 0.5, np.arange(3))] * count for index in range(len(texts))]

    def by_image(self, images, count):
        self.images += list(images)
        return [[Neighbor("task", 100 + index, 0.5, np.arange(3))] * count for index in range(len(images))]


def test_texts_find_what_is_to_be_drawn_and_images_what_is_asked_about(tiny_config, folder):
    requests = [
        Request(1, 0, prompt="a seven"),
        Request(2, 1, "caption", image=folder / "a.png"),
        Request(3, 2, "edit", prompt="wider", image=folder / "a.png"),
        Request(4, 3, "infill", prompt="a nine", image=folder / "b.png"),
        Request(5, 4, "vqa", prompt="Which?", image=folder / "broken.png"),
        Request(6, 5, "vqa", prompt="Which?", image=folder / "c.png"),
    ]
    retriever = Recording()
    side, channels = tiny_config.image_tokenizer.resolution, tiny_config.image_tokenizer.in_channels
    found = retrieve(requests, retriever, 2, tiny_config)
    assert retriever.texts == ["a seven", "a nine"]
    assert [image.shape for image in retriever.images] == [(side, side, channels)] * 2
    numbers = {number: [neighbor.document for neighbor in mine] for number, mine in found.items()}
    assert numbers == {0: [0, 0], 3: [1, 1], 1: [100, 100], 5: [101, 101]}


def test_more_documents_than_fit_are_refused(tiny_config, vocabulary):
    # Nine images of 16 codes, each with a token of text and a break, make 162 tokens.
    with pytest.raises(UserError, match=r"--retrieve=8 does not fit: .*_length 160 has room for at most 7 documents"):
        open_retriever(tiny_config, vocabulary, 8)


def test_without_a_prepared_corpus_there_is_one_clear_line(tiny_config, vocabulary):
    with pytest.raises(UserError, match="no prepared corpus at"):
        open_retriever(tiny_config, vocabulary, 1)
