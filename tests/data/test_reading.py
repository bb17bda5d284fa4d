"""Reading documents of seqio mixtures: order, rates, what is skipped, what is refused."""

import subprocess
import sys
from itertools import islice

import pytest

from cm3leon_jax.config import CorpusConfig
from cm3leon_jax.data import digits
from cm3leon_jax.data.reading import Malformed, open_mixture, read_documents
from cm3leon_jax.documents import Document, Picture, Text, open_picture
from cm3leon_jax.errors import UserError

DIGITS = CorpusConfig(mixture="digits")


def _register(name, examples):
    import seqio
    import tensorflow as tf

    from cm3leon_jax.data.tasks import OUTPUT_FEATURES

    signature = {"segments": tf.TensorSpec((None,), tf.string), "is_image": tf.TensorSpec((None,), tf.bool)}
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.Dataset.from_generator(
            lambda: iter(examples), output_signature=signature
        ),
        splits=["train"],
    )
    seqio.TaskRegistry.add(name, source=source, preprocessors=[], output_features=OUTPUT_FEATURES)
    return CorpusConfig(mixture=name)


def test_digits_are_read_in_order_from_any_start():
    tasks = {task.name: task for task in open_mixture(DIGITS)}
    assert {name: task.rate for name, task in tasks.items()} == {"digits_text_first": 1, "digits_picture_first": 1}
    task = tasks["digits_text_first"]
    held_out = list(task.documents("validation"))
    assert len(held_out) == task.num_examples("validation") == 360
    assert list(task.documents("validation", start=350)) == held_out[350:]
    pixels, labels = digits.load("validation")
    for index in range(0, 360, 60):
        caption, picture = held_out[index].segments
        assert digits.label_in(caption.text) == labels[index]
        assert (open_picture(picture.encoded, 8, 1) == pixels[index]).all()


def test_documents_are_interleaved_by_rate():
    first = list(islice(read_documents(DIGITS, "train"), 40))
    assert sum(isinstance(document.segments[0], Text) for document in first) == 20
    assert len(list(read_documents(DIGITS, "validation"))) == 720


def test_text_that_is_not_utf8_is_malformed():
    good = {"segments": [b"good", b"\x89PNG"], "is_image": [False, True]}
    corpus = _register("half_utf8", [good, {"segments": [b"\xff"], "is_image": [False]}])
    (task,) = open_mixture(corpus)
    first, second = task.documents("train")
    assert first == Document((Text("good"), Picture(b"\x89PNG")))
    assert isinstance(second, Malformed) and "not UTF-8" in second.reason
    assert list(read_documents(corpus, "train")) == [first]


def test_segments_and_flags_must_match():
    (task,) = open_mixture(_register("unequal", [{"segments": [b"a", b"b"], "is_image": [False]}]))
    with pytest.raises(UserError, match="example 0 of the task unequal has 2 segments but 1"):
        list(task.documents("train"))


def test_a_failing_source_is_named():
    def examples():
        yield {"segments": [b"a"], "is_image": [False]}
        raise ValueError("the disk is gone")

    class Failing:
        def __iter__(self):
            return examples()

    (task,) = open_mixture(_register("failing", Failing()))
    with pytest.raises(UserError, match=r"the task failing cannot read example \d of 'train': .*the disk is gone"):
        list(task.documents("train"))


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        (CorpusConfig(mixture="digit"), "no Mixture or Task of that name .*digits_text_first"),
        (CorpusConfig(mixture=""), "config.corpus.mixture is empty"),
        (CorpusConfig(mixture="digits", modules=("no_such_module",)), "no module 'no_such_module'"),
    ],
)
def test_what_is_wrong_with_the_config_is_named(corpus, message):
    with pytest.raises(UserError, match=message):
        open_mixture(corpus)


def test_a_missing_split_is_named():
    with pytest.raises(UserError, match="has a split 'test'"):
        list(read_documents(DIGITS, "test"))


def test_without_seqio_the_extra_is_named():
    program = (
        "import sys; sys.modules['seqio'] = None\n"
        "from cm3leon_jax.config import CorpusConfig\n"
        "from cm3leon_jax.data.reading import open_mixture\n"
        "open_mixture(CorpusConfig(mixture='digits'))"
    )
    failed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "pip install 'cm3leon_jax[data]'" in failed.stderr
