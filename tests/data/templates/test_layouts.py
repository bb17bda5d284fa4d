"""A document made by a layout is what `generate` asks for, with the answer in its place."""

import functools
import json

import numpy as np
import pytest
import seqio
import tensorflow as tf

from cm3leon_jax.data import sources as tasks
from cm3leon_jax.data.batches.objective import apply_span_masks, positions_in_image
from cm3leon_jax.data.templates import TEMPLATES, layouts
from cm3leon_jax.generation.prompts import prompt_of
from cm3leon_jax.generation.requests import read_requests

CODES = {b"first": np.arange(16), b"second": np.arange(16)[::-1]}


def texts(seed: int, number: int = 12) -> list[str]:
    """Texts of any letters, spaces and marks, with neither space in front nor behind."""
    rng = np.random.default_rng(seed)
    letters = list("ab c?.é日{}<>%\n")
    made = ("".join(rng.choice(letters, rng.integers(1, 12))).strip() for _ in range(3 * number))
    return [text for text in made if text][:number]


def made_documents(examples, layout, v, keys=None) -> list[list[int]]:
    """The ids of the document of each example, between two ends."""
    columns = {name: [example[name] for example in examples] for name in examples[0]}
    made = layouts.documents(tf.data.Dataset.from_tensor_slices(columns), layout, keys)
    return [_ids(document, v) for document in made.as_numpy_iterator()]


def _ids(document, v) -> list[int]:
    tokens = [v.end]
    for segment, is_image in zip(document["segments"], document["is_image"], strict=True):
        tokens += v.encode_image(CODES[segment]).tolist() if is_image else v.encode_text(segment.decode())
        tokens.append(v.break_)
    return [*tokens[:-1], v.end]


@pytest.fixture(scope="module")
def asked(tmp_path_factory, vocabulary, tiny_images):
    folder = tmp_path_factory.mktemp("asked")

    def ids(**line) -> list[int]:
        (folder / "p.jsonl").write_text(json.dumps(line))
        ((request,), failures) = read_requests(folder / "p.jsonl")
        assert not failures
        images = {folder / "first.png": CODES[b"first"]}
        return list(prompt_of(request, images, tiny_images.grid, vocabulary, 6, 160).variants[0].tokens)

    return ids


def masked(tokens, answer, v) -> list[int]:
    """The document as training sees it when just the answer, in front of the first break, is masked."""
    tokens = np.array(tokens)
    stop = int(np.flatnonzero(tokens == v.break_)[0])
    spans = [(stop - len(v.encode_text(answer)), stop)]
    return apply_span_masks(tokens, positions_in_image(tokens, v), spans, v)[0].tolist()


def test_questions(asked, vocabulary):
    v, pairs = vocabulary, list(zip(texts(0), texts(1), strict=True))
    examples = [{"question": f" {question}\n", "answer": answer, "image": b"first"} for question, answer in pairs]
    by_infill = made_documents(examples, layouts.QUESTION, v)
    left_to_right = made_documents(examples, layouts.QUESTION.image_first(), v)
    for (question, answer), masks, made in zip(pairs, by_infill, left_to_right, strict=True):
        line, ids = {"task": "vqa", "prompt": question, "image": "first.png"}, v.encode_text(f" {answer}")
        assert masked(masks, f" {answer}", v) == [*asked(**line), *ids, v.eoss]
        assert made == [*asked(**line, order="left_to_right"), *ids, v.end]


def test_captions_with_an_instruction(asked, vocabulary):
    v, pairs = vocabulary, list(zip(texts(2), texts(3), strict=True))
    examples = [{"instruction": instruction, "caption": caption, "image": b"first"} for instruction, caption in pairs]
    by_infill = made_documents(examples, layouts.INSTRUCTED_CAPTION, v)
    left_to_right = made_documents(examples, layouts.INSTRUCTED_CAPTION.image_first(), v)
    for (instruction, caption), masks, made in zip(pairs, by_infill, left_to_right, strict=True):
        line, ids = {"task": "caption", "prompt": instruction, "image": "first.png"}, v.encode_text(f" {caption}")
        assert masked(masks, f" {caption}", v) == [*asked(**line), *ids, v.eoss]
        assert made == [*asked(**line, order="left_to_right"), *ids, v.end]


def test_images_from_texts_and_edits(asked, vocabulary):
    v = vocabulary
    first, second = (v.encode_image(CODES[name]).tolist() for name in (b"first", b"second"))
    captioned = made_documents([{"caption": text, "image": b"first"} for text in texts(4)], layouts.CAPTION, v)
    examples = [{"before": b"first", "instruction": text, "after": b"second"} for text in texts(4)]
    edits = made_documents(examples, layouts.EDIT, v, {"image": "before", "edited": "after"})
    for text, made, edit in zip(texts(4), captioned, edits, strict=True):
        assert made == [*asked(prompt=text), *first, v.end]
        assert edit == [*asked(task="edit", prompt=text, image="first.png"), *second, v.end]


def test_a_seqio_task_takes_a_layout():
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensors(
            {"of": {"question": "how many?"}, "answer": "two", "image": tf.zeros((8, 8, 1), tf.uint8)}
        ),
        ["train"],
    )
    preprocess = functools.partial(layouts.documents, layout=layouts.QUESTION, keys={"question": "of/question"})
    task = seqio.Task("q", source=source, preprocessors=[preprocess], output_features=tasks.OUTPUT_FEATURES)
    (made,) = task.get_dataset(split="train", shuffle=False, sequence_length=None).as_numpy_iterator()
    assert made["segments"][0].decode() == "Question: how many? Answer: two"
    assert made["segments"][1].startswith(b"\x89PNG") and made["is_image"].tolist() == [False, True]


def test_only_a_text_and_an_image_change_places():
    assert layouts.CAPTION.image_first().segments == (layouts.ImageField("image"), "{caption}")
    with pytest.raises(ValueError, match="one text and one image"):
        layouts.EDIT.image_first()


def test_every_template_is_found_by_its_name():
    assert {name: TEMPLATES.load(name) for name in TEMPLATES} == {
        "caption": layouts.CAPTION,
        "instructed_caption": layouts.INSTRUCTED_CAPTION,
        "question": layouts.QUESTION,
        "edit": layouts.EDIT,
    }
