"""Reading documents of seqio mixtures: order, rates, what is skipped, what is refused."""

import math
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.sources.reading import ShardSlice, SkippedExample, open_mixture, read_documents
from cm3leon_jax.documents import Document, ImageSegment, TextSegment
from cm3leon_jax.errors import UserError
from cm3leon_jax.images import decode_image, encode_png
from examples.digits import images as digits

DIGITS = CorpusConfig(mixture="digits", modules=("examples.digits.tasks",))


def _register(name, examples):
    import seqio
    import tensorflow as tf

    from cm3leon_jax.data.sources import OUTPUT_FEATURES

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
    assert {name: task.rate for name, task in tasks.items()} == {"digits_text_first": 1, "digits_image_first": 1}
    task = tasks["digits_text_first"]
    held_out = list(task.documents("validation"))
    assert len(held_out) == task.num_examples("validation") == 360
    assert list(task.documents("validation", start=350)) == held_out[350:]
    pixels, labels = digits.load("validation")
    for index in range(0, 360, 60):
        caption, image = held_out[index].segments
        assert digits.label_in(caption.text) == labels[index]
        assert (decode_image(image.encoded, 8, 1) == pixels[index]).all()


def test_documents_are_interleaved_by_rate():
    first = list(islice(read_documents(DIGITS, "train"), 40))
    assert sum(isinstance(document.segments[0], TextSegment) for document in first) == 20
    assert len(list(read_documents(DIGITS, "validation"))) == 720


def test_text_that_is_not_utf8_is_malformed():
    good = {"segments": [b"good", b"\x89PNG"], "is_image": [False, True]}
    corpus = _register("half_utf8", [good, {"segments": [b"\xff"], "is_image": [False]}])
    (task,) = open_mixture(corpus)
    first, second = task.documents("train")
    assert first == Document((TextSegment("good"), ImageSegment(b"\x89PNG")))
    assert isinstance(second, SkippedExample) and "not UTF-8" in second.reason
    assert list(read_documents(corpus, "train")) == [first]


def test_segments_and_flags_must_match():
    (task,) = open_mixture(_register("unequal", [{"segments": [b"a", b"b"], "is_image": [False]}]))
    with pytest.raises(UserError, match="example 0 of the task unequal has 2 segments but 1"):
        list(task.documents("train"))


@pytest.mark.parametrize("num_good", [0, 1, 20, 35])
def test_a_source_that_fails_is_named_and_what_it_gave_before_is_read(num_good):
    def examples():
        for number in range(num_good):
            yield {"segments": [b"%d" % number], "is_image": [False]}
        raise ValueError("the disk is gone")

    class Failing:
        def __iter__(self):
            return examples()

    (task,) = open_mixture(_register(f"failing_{num_good}", Failing()))
    found = []
    message = rf"the task failing_{num_good} cannot read example {num_good} of 'train': .*the disk is gone"
    with pytest.raises(UserError, match=message):
        found.extend(task.documents("train"))
    # `extend` keeps what came before the error.
    assert found == [Document((TextSegment(str(number)),)) for number in range(num_good)]


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
        "from cm3leon_jax.data.sources.reading import open_mixture\n"
        "open_mixture(CorpusConfig(mixture='digits'))"
    )
    failed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "pip install 'cm3leon_jax[data]'" in failed.stderr


@pytest.mark.parametrize("num_processes", [1, 2, 3])
@pytest.mark.parametrize("kind", ["sliced", "generic", "one to many"])
def test_shares_of_several_processes_are_the_whole(tmp_path, kind, num_processes):
    corpus = _captioned(tmp_path, many=kind == "one to many") if kind != "generic" else DIGITS
    task = open_mixture(corpus)[0]
    split = "validation" if kind == "generic" else "train"
    whole = list(enumerate(task.documents(split)))
    size, first = 7, 1
    assert len(whole) > 4 * size
    for process in range(num_processes):
        share = ShardSlice(size, first + process, num_processes)
        runs = range(share.first, -(-len(whole) // size), num_processes)
        # With each run comes the first example behind it.
        wanted = {index for run in runs for index in range(run * size, (run + 1) * size + 1)}
        assert list(task.numbered(split, share)) == [pair for pair in whole if pair[0] in wanted]
    assert list(task.numbered(split, ShardSlice(size, 1000, num_processes))) == []


def test_what_others_read_is_not_opened(tmp_path):
    corpus = _captioned(tmp_path, many=False)
    (task,) = open_mixture(corpus)
    before = list(task.documents("train"))
    for file in sorted(tmp_path.glob("*.png")):
        if file.read_bytes() not in {document.segments[1].encoded for document in before[10:21]}:
            file.unlink()
    share = list(task.numbered("train", ShardSlice(10, 1, 2)))
    assert [document for _, document in share[:11]] == before[10:21]
    # What is not there any more by the time it is read is skipped, each under its own number.
    assert share[11:] == [
        (index, SkippedExample("image that was removed meanwhile"))
        for index in range(30, len(before))
        if index < 40 or index % 20 == 0
    ]
    assert task.where("train", 30) == before[30].segments[0].text.removeprefix("image ") + ".png"


def _captioned(folder, many: bool) -> CorpusConfig:
    """A folder of images, each with one caption, or with several in a list."""
    for index in range(40):
        (folder / f"{index:02d}.png").write_bytes(encode_png(np.full((2, 2, 1), index, np.uint8)))
        (folder / f"{index:02d}.txt").write_text(f"image {index:02d}")
    if not many:
        return CorpusConfig(mixture=f"folder:{folder}")
    import tensorflow as tf

    from cm3leon_jax.data.sources import SlicedSource, add_task

    def read(split: str, start: int, stop: int) -> tf.data.Dataset:
        return tf.data.Dataset.range(start, stop).map(
            lambda index: {"image": tf.strings.as_string(index), "caption": tf.fill([index % 3], "a caption")}
        )

    name = f"many_{folder.name}".replace("-", "_")
    add_task(name, SlicedSource(read, {"train": 40}), image_first=False)
    return CorpusConfig(mixture=name)


class _Numbers:
    """What a source of documents gives: captions, one with half a character, one that is skipped, one that fails."""

    def __init__(self, fails_at: int) -> None:
        self.fails_at = fails_at

    def __call__(self, start: int, stop: int):
        for number in range(start, stop):
            if number == self.fails_at:
                raise OSError("the disk is gone")
            if number == 3:
                yield SkippedExample("number three")
            else:
                yield Document((TextSegment("half \ud800" if number == 5 else f"number {number}"),))


def _document_task(name: str, found: _Numbers, preprocessors=()):
    import seqio

    from cm3leon_jax.data.sources import OUTPUT_FEATURES, DocumentSource

    class Source(DocumentSource):
        def documents(self, split, start, stop):
            return found(start, stop)

    seqio.TaskRegistry.add(
        name, source=Source({"train": 12}), preprocessors=list(preprocessors), output_features=OUTPUT_FEATURES
    )
    (task,) = open_mixture(CorpusConfig(mixture=name))
    return task


def test_documents_of_a_source_are_the_same_with_and_without_tensorflow(tmp_path):
    _captioned(tmp_path, many=False)
    (direct,) = open_mixture(CorpusConfig(mixture=f"folder:{tmp_path}"))
    import seqio

    from cm3leon_jax.data.sources import OUTPUT_FEATURES

    source = seqio.get_mixture_or_task(direct.name).source
    seqio.TaskRegistry.add(
        "through_tensorflow", source=source, preprocessors=[lambda dataset: dataset], output_features=OUTPUT_FEATURES
    )
    (detour,) = open_mixture(CorpusConfig(mixture="through_tensorflow"))
    for part in (ShardSlice(1), ShardSlice(4, 1, 2), ShardSlice(7, 2, 3)):
        found = list(direct.numbered("train", part))
        assert found == list(detour.numbered("train", part)) and len(found) > 5


def test_an_example_that_is_skipped_and_half_a_character_are_named_and_the_rest_is_read():
    task = _document_task("numbers_read_alone", _Numbers(fails_at=-1))
    found = dict(task.numbered("train", ShardSlice(10)))
    assert found[3] == SkippedExample("number three")
    assert found[5] == SkippedExample("text is not UTF-8: surrogates not allowed at character 5")
    assert [index for index, each in found.items() if isinstance(each, Document)] == [0, 1, 2, 4, *range(6, 12)]


@pytest.mark.parametrize("fails_at", [0, 7, 11])
def test_a_source_that_fails_is_said_in_one_line_with_the_example(fails_at):
    task = _document_task(f"numbers_until_{fails_at}", _Numbers(fails_at))
    with pytest.raises(UserError, match=rf"cannot read example {fails_at} of 'train': OSError: the disk is gone"):
        list(task.documents("train"))


@settings(deadline=None)
@given(rates=st.lists(st.floats(width=32) | st.integers(-3, 3), min_size=1, max_size=3))
def test_rates_are_taken_or_refused_and_zero_leaves_a_task_out(rates):
    import seqio

    import examples.emoji.tasks  # noqa: F401 - registers it

    open_mixture(DIGITS)
    names = ("digits_text_first", "digits_image_first", "emoji")[: len(rates)]
    wrong = any(not math.isfinite(rate) or rate < 0 for rate in rates)
    seqio.MixtureRegistry.add("of_any_rates", list(zip(names, rates, strict=False)))
    try:
        if wrong or not any(rates):
            with pytest.raises(UserError, match=r"the mixture 'of_any_rates' (has rates that are|samples nothing)"):
                open_mixture(CorpusConfig(mixture="of_any_rates"))
        else:
            tasks = {task.name: task.rate for task in open_mixture(CorpusConfig(mixture="of_any_rates"))}
            assert tasks == {name: rate for name, rate in zip(names, rates, strict=False) if rate}
    finally:
        seqio.MixtureRegistry.remove("of_any_rates")


def test_a_module_that_ends_the_program_is_named(tmp_path, monkeypatch):
    (tmp_path / "leaves_at_once.py").write_text("raise SystemExit\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"config\.corpus\.modules: leaves_at_once cannot be imported: SystemExit"):
        open_mixture(CorpusConfig(mixture="digits", modules=("leaves_at_once",)))
