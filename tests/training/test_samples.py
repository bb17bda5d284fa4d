"""What is drawn while training, and what is said where nothing is."""

import dataclasses

import pytest

from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.config import EvaluateConfig
from cm3leon_jax.generation.captioned import captioned_images
from cm3leon_jax.generation.samples import SampleImages
from cm3leon_jax.models.sharding import make_mesh


@pytest.fixture
def images(config, tmp_path, vocabulary, corpus, image_tokenizer):
    """Makes `SampleImages` of the config with some prompts, and another held-out split if need be."""

    def made(*prompts, split="validation", has_tokenizer=True):
        if has_tokenizer:
            image_tokenizer.save(tmp_path / "image_tokenizer")
        changed = dataclasses.replace(
            config,
            corpus=CorpusConfig(path=str(corpus.path), held_out_split=split),
            image_tokenizer=dataclasses.replace(config.image_tokenizer, path=str(tmp_path / "image_tokenizer")),
            evaluate=EvaluateConfig(prompts=prompts),
        )
        return SampleImages(changed, tmp_path, vocabulary, corpus, make_mesh(config.mesh))

    return made


def test_without_prompts_the_first_held_out_texts_are_drawn(images, corpus, vocabulary):
    found = images()
    texts = captioned_images(corpus, "validation", 8, 96, vocabulary).texts
    assert list(dict.fromkeys(found._texts)) == list(dict.fromkeys(texts))
    assert "first texts of the split 'validation', since config.evaluate.prompts is empty" in found.note


def test_prompts_go_before_them_and_need_no_word(images):
    found = images("zero, in pencil", "a handwritten seven")
    assert set(found._texts) == {"zero, in pencil", "a handwritten seven"} and not found.note


def test_nothing_to_draw_is_said_and_draws_nothing(images):
    for found, why in (
        (images(has_tokenizer=False), "image tokenizer"),
        (images(split="nothing"), "'nothing'"),
    ):
        assert found.note.startswith("none, since config.evaluate.prompts is empty and ") and why in found.note
        assert found(1, None) is None


def test_a_prompt_that_cannot_be_drawn_is_refused_before_the_first_step(images):
    with pytest.raises(UserError, match="image tokenizer"):
        images("zero", has_tokenizer=False)
