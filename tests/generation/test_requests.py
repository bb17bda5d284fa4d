"""Prompts files: every task's lines, every mistake by line, and what the model is then given."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.generation import prompts
from cm3leon_jax.generation import requests as requests_module
from cm3leon_jax.generation.prompt import IMAGE_CODE
from cm3leon_jax.generation.prompts import prompt_of, region_mask
from cm3leon_jax.generation.requests import (
    MIDDLE_HALF,
    TASKS,
    Failure,
    Request,
    read_images,
    read_requests,
)


def test_a_region_in_shares_of_the_sides():
    grid = region_mask((0.0, 0.25, 1.0, 0.75), 4).reshape(4, 4)
    np.testing.assert_array_equal(grid.any(axis=1), [False, True, True, False])
    corner = region_mask((0.5, 0.0, 1.0, 0.5), 4).reshape(4, 4)
    np.testing.assert_array_equal(np.argwhere(corner), [[0, 2], [0, 3], [1, 2], [1, 3]])


def read(folder, *lines) -> tuple[list[Request], list[Failure]]:
    file = folder / "prompts.jsonl"
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return read_requests(file)


def test_lines_of_every_task(folder):
    front = [{"prompt": "a two", "image": "b.png"}]
    requests, failures = read(
        folder,
        {"prompt": "a seven\u2028on two lines"},
        "",
        {"task": "caption", "image": "a.png", "order": "left_to_right"},
        {"task": "vqa", "prompt": "which?", "image": "a.png"},
        {"task": "infill", "prompt": "x", "image": "a.png", "region": [0, 0, 1, 0.5], "retrieved": front},
        {"task": "infill_text", "prompt": "a <mask>", "image": "a.png"},
        {"task": "edit", "prompt": "make it wide", "image": "a.png"},
        {"task": "continue", "segments": ["a photo", {"image": "c.png"}], "retrieved": []},
        {"task": "instruction", "template": "edges", "fields": {"structure": {"image": "a.png"}, "caption": "x"}},
        {"prompt": "x", "objects": [{"name": "a cat", "box": [0, 0, 4, 8]}]},
    )
    a, b, c = (folder / f"{name}.png" for name in "abc")
    assert not failures
    assert requests == [
        Request(1, 0, "text_to_image", "a seven\u2028on two lines"),
        Request(3, 1, "caption", image=a, order="left_to_right"),
        Request(4, 2, "vqa", "which?", a),
        Request(5, 3, "infill", "x", a, (0.0, 0.0, 1.0, 0.5), retrieved=(("a two", b),)),
        Request(6, 4, "infill_text", "a <mask>", a),
        Request(7, 5, "edit", "make it wide", a),
        Request(8, 6, "continue", segments=("a photo", c)),
        Request(9, 7, "instruction", template="edges", fields=(("structure", a), ("caption", "x"))),
        Request(10, 8, prompt="x", objects=(("a cat", (0, 0, 4, 8)),)),
    ]
    assert {request.task for request in requests} == TASKS.keys()
    assert requests[3].images == [a, b]


def test_the_lines_that_the_docs_show_are_requests_of_every_task(folder):
    page = (Path(__file__).parents[2] / "docs" / "generate.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\|[^|]*\| `(\{.*\})` \|", page, flags=re.MULTILINE)
    requests, failures = read(folder, *shown)
    assert not failures
    assert [request.task for request in requests] == list(TASKS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "not JSON (Expecting value at column 1): write one object per line"),
        ("1" * 5000, "not JSON that can be read"),
        ("[1]", "not an object: write one such as"),
        ('{"promt": "x"}', "no such field promt: the task text_to_image has prompt, objects, retrieved, task"),
        (
            '{"prompt": "x", "task": "paint"}',
            "task 'paint' is none of text_to_image, caption, vqa, infill, infill_text",
        ),
        ('{"prompt": "x", "task": []}', "task [] is none of"),
        ("{}", "the task text_to_image needs prompt, a text"),
        ('{"prompt": "x", "image": "a.png"}', "no such field image: the task text_to_image has"),
        ('{"prompt": "\\ud800"}', r"prompt is '\ud800': give a text"),
        ('{"task": "caption"}', "the task caption needs image, the name of a file"),
        ('{"task": "caption", "prompt": 3, "image": "a.png"}', "prompt is 3: give a text"),
        ('{"task": "caption", "image": ["a.png"]}', "image is ['a.png']: give the name of a file"),
        ('{"task": "caption", "image": "a.png", "order": "up"}', 'order is \'up\': give "infill" or "left_to_right"'),
        ('{"task": "caption", "image": "a.png", "region": [0, 0, 1, 1]}', "no such field region: the task caption has"),
        ('{"task": "vqa", "image": "a.png"}', "the task vqa needs prompt, a text"),
        ('{"task": "infill", "prompt": "x", "image": "a.png", "region": [0, 2, 1, 1]}', "region is [0, 2, 1, 1]: give"),
        ('{"task": "infill", "prompt": "x", "image": "a.png", "region": 5}', "region is 5: give [left, top, right,"),
        ('{"task": "edit", "prompt": "x"}', "the task edit needs image"),
        ('{"task": "continue"}', "the task continue needs segments, a list of texts and"),
        ('{"task": "continue", "segments": "x"}', "segments is 'x': give a list of texts and"),
        ('{"task": "continue", "segments": [3]}', "segments is [3]: give a list"),
        ('{"task": "continue", "segments": [{"image": 3}]}', "segments is [{'image': 3}]: give a list"),
        ('{"prompt": "x", "retrieved": {}}', "retrieved is {}: give a list of"),
        ('{"prompt": "x", "retrieved": [{"prompt": "x"}]}', "retrieved is [{'prompt': 'x'}]: give a list of"),
        ('{"prompt": "x", "retrieved": [{"prompt": "x", "image": 1}]}', "retrieved is [{'prompt': 'x', 'image': 1}]:"),
    ],
)
def test_a_mistake_is_named_by_line_and_stops_no_other(line, message, folder):
    requests, failures = read(folder, {"prompt": "one"}, line, {"prompt": "two"})
    assert [(request.line, request.number, request.prompt) for request in requests] == [(1, 0, "one"), (3, 2, "two")]
    (failure,) = failures
    assert failure.line == 2
    assert failure.error.startswith(message)
    assert "\n" not in failure.error


def test_missing_and_empty_prompts_files(tmp_path):
    with pytest.raises(UserError, match="no prompts file"):
        read_requests(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        read_requests(tmp_path / "empty.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_requests(tmp_path)


def test_images_are_read_once_and_the_bad_ones_say_why(folder, image_tokenizer):
    paths = [folder / name for name in ("a.png", "gone.png", "b.png", "broken.png", ".", "nul\0.png", "a.png")]
    found = read_images(paths, image_tokenizer)
    assert list(map(str, found)).count(str(folder / "a.png")) == 1
    assert found[folder / "gone.png"] == f"no image {folder / 'gone.png'}"
    for name in ("broken.png", ".", "nul\0.png"):
        assert f"the image {folder / name} cannot be read" in found[folder / name]
    (again,) = read_images([folder / "a.png"], image_tokenizer).values()
    np.testing.assert_array_equal(found[folder / "a.png"], again)
    assert not np.array_equal(found[folder / "a.png"], found[folder / "b.png"])
    assert read_images([], image_tokenizer) == {}


@pytest.fixture
def ask(folder, image_tokenizer, vocabulary):
    """The prompt of a line, and the codes of the images a and b."""
    images = read_images([folder / f"{name}.png" for name in ("a", "b", "gone")], image_tokenizer)

    def prompt(sequence_length: int = 160, **line) -> prompts.Prompt:
        (request,), _ = read(folder, line)
        return prompt_of(request, images, image_tokenizer.config.grid, vocabulary, 6, sequence_length)

    return prompt, images[folder / "a.png"], images[folder / "b.png"]


def test_what_the_model_is_given(ask, vocabulary):
    prompt, a, _ = ask
    v = vocabulary
    mask = region_mask(MIDDLE_HALF, 4)
    assert prompt(prompt="a seven") == prompts.text_to_image("a seven", 16, v)
    assert prompt(task="infill", prompt="x", image="a.png") == prompts.infill("x", a, mask, v)
    image = [v.break_, *v.encode_image(a), v.break_]
    task = [v.end, *v.encode_text("Edit first image following the instruction")]
    edit = prompt(task="edit", prompt="wider", image="a.png")
    assert [list(variant.tokens) for variant in edit.variants] == [
        [*task, *image, *v.encode_text("wider"), v.break_],
        [*task, *image, v.mask(0), v.break_],
        [v.end, v.mask(0), v.break_],
    ]
    assert edit.plan == (IMAGE_CODE,) * 16
    assert prompt(task="caption", image="a.png") == prompts.text_infill("<mask>", a, 6, v)
    # The space before a word is part of it, so it is masked with it.
    says = "Describe the given image."
    assert prompt(task="caption", prompt=says, image="a.png") == prompts.text_infill(f"{says}<mask>", a, 6, v)
    assert prompt(task="vqa", prompt="which one?", image="a.png") == prompts.text_infill(
        "Question: which one? Answer:<mask>", a, 6, v
    )
    assert prompt(task="infill_text", prompt="a <mask> of <mask>.", image="a.png") == prompts.text_infill(
        "a<mask> of<mask>.", a, 6, v
    )
    backwards = {"image": "a.png", "order": "left_to_right"}
    assert prompt(task="caption", **backwards) == prompts.text_after_image(a, 6, v)
    after = [v.end, *v.encode_image(a), v.break_]
    assert list(prompt(task="caption", prompt=says, **backwards).variants[0].tokens) == after + v.encode_text(says)
    question = prompt(task="vqa", prompt="which one?", **backwards)
    assert list(question.variants[0].tokens) == after + v.encode_text("Question: which one? Answer:")
    assert question.stop == v.end
    boxes = [{"name": "cat", "box": [0, 4, 8, 8]}, {"name": "hat", "box": [2, 0, 4, 4]}]
    placed = v.encode_text(
        "Generate high quality image of two things with segmentations "
        "cat at location (0, 4) -> (8, 8), hat at location (2, 0) -> (4, 4)"
    )
    grounded = prompt(prompt="two things", objects=boxes).variants
    assert [list(variant.tokens) for variant in grounded] == [
        [v.end, *placed, v.break_],
        [v.end, v.mask(0), v.break_],
    ]


def test_any_template_can_be_asked_for(ask, vocabulary):
    prompt, a, b = ask
    v = vocabulary
    fields = {"structure": {"image": "a.png"}, "caption": "a seven"}
    drawn = prompt(task="instruction", template="edges", fields=fields)
    wording = [v.end, *v.encode_text("Make high quality image from canny edge features"), v.break_, *v.encode_image(a)]
    assert [list(variant.tokens) for variant in drawn.variants] == [
        [*wording, v.break_, *v.encode_text("a seven"), v.break_],
        [*wording, v.break_, v.mask(0), v.break_],
        [v.end, v.mask(0), v.break_],
    ]
    asked = {"question": "how many?", "image": {"image": "b.png"}}
    answered = prompt(task="instruction", template="question", fields=asked, wording=2)
    tail = [v.break_, *v.encode_image(b), v.end, v.mask(0)]
    text = [*v.encode_text("Question: how many? The answer is"), v.mask(0), *v.encode_text(".")]
    assert list(answered.variants[0].tokens) == [v.end, *text, *tail]
    assert answered.stop == v.eoss
    turns = {"image": {"image": "a.png"}, "instruction": ["wider", "bolder"], "edited": [{"image": "b.png"}]}
    (full, without, nothing) = prompt(task="instruction", template="edits", fields=turns).variants
    start = [
        v.end,
        *v.encode_text("Edit first image following the instruction"),
        v.break_,
        *v.encode_image(a),
        v.break_,
    ]
    second = [v.break_, *v.encode_image(b), v.break_]
    assert list(full.tokens) == [*start, *v.encode_text("wider"), *second, *v.encode_text("bolder"), v.break_]
    assert list(without.tokens) == [*start, v.mask(0), *second, v.mask(1), v.break_]
    assert list(nothing.tokens) == [v.end, v.mask(0), v.break_]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"template": "edge", "fields": {}}, "did you mean 'edges'"),
        ({"template": "edges", "fields": {"caption": "x"}}, "needs the field structure"),
        (
            {"template": "edges", "fields": {"structure": "x", "caption": "x"}},
            "structure of the template 'edges' is an",
        ),
        ({"template": "question", "fields": {"image": {"image": "a.png"}, "qestion": "x"}}, "no such field qestion"),
        ({"template": "question", "fields": {"image": {"image": "a.png"}, "question": ["x"]}}, "takes one value"),
        ({"template": "edits", "fields": {"image": {"image": "a.png"}, "instruction": "x"}}, "takes a list of values"),
        (
            {"template": "edits", "fields": {"image": {"image": "a.png"}, "instruction": ["x", "y"]}},
            "do not fit each other",
        ),
        (
            {"template": "question", "fields": {"image": {"image": "a.png"}, "question": "x"}, "wording": 3},
            "has 3, counted from 0",
        ),
    ],
)
def test_what_an_instruction_lacks_is_said(ask, line, message):
    prompt, *_ = ask
    with pytest.raises(UserError, match=re.escape(message)):
        prompt(task="instruction", **line)


def test_a_document_goes_on(ask, vocabulary):
    prompt, _, b = ask
    v = vocabulary
    assert prompt(task="continue", segments=["x", {"image": "b.png"}]) == prompts.continuation(["x", b], 6, 16, 160, v)


@pytest.mark.parametrize("task", TASKS)
def test_retrieved_documents_stand_in_front_of_every_task(ask, task, vocabulary):
    prompt, a, b = ask
    line = {"prompt": "a <mask>" if task == "infill_text" else "a seven", "image": "a.png", "segments": ["a photo"]}
    line |= {"template": "question", "fields": {"question": "what?", "image": {"image": "a.png"}}}
    line = {name: line[name] for name in TASKS[task][0]}
    texts = ["a two", "a handwritten three"]
    front = []
    for text, codes in zip(texts, (a, b), strict=True):
        front += [*vocabulary.encode_text(text), vocabulary.break_, *vocabulary.encode_image(codes), vocabulary.break_]
    retrieved = [{"prompt": text, "image": f"{name}.png"} for text, name in zip(texts, "ab", strict=True)]
    alone, behind = prompt(task=task, **line), prompt(task=task, retrieved=retrieved, **line)
    assert list(behind.variants[0].tokens) == [vocabulary.end, *front, *alone.variants[0].tokens[1:]]
    assert behind.plan == alone.plan


def test_a_continuation_ends_with_the_positions(ask, vocabulary):
    prompt, *_ = ask
    length = len(prompt(task="continue", segments=["a photo"]).variants[0].tokens)
    cut = prompt(task="continue", segments=["a photo"], sequence_length=length + 5)
    assert cut.plan == cut.plan[:1] * 5
    assert len(cut.plan_image_positions) == 5
    # A new document.
    assert prompt(task="continue", segments=[]).variants[0].tokens == (vocabulary.end,)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"task": "caption", "image": "gone.png"}, "no image .*gone.png"),
        ({"prompt": "x", "retrieved": [{"prompt": "x", "image": "gone.png"}]}, "no image .*gone.png"),
        ({"task": "continue", "segments": [{"image": "gone.png"}]}, "no image .*gone.png"),
        ({"task": "infill", "prompt": "x", "image": "a.png", "region": [1, 0, 0, 1]}, "region covers no code"),
        ({"task": "infill_text", "prompt": "x", "image": "a.png"}, "has 0 <mask>: write 1 to 8"),
        ({"task": "vqa", "prompt": "a <mask>?", "image": "a.png"}, "task vqa holds <mask>: the task infill_text"),
    ],
)
def test_a_request_that_makes_no_sense(ask, line, message):
    prompt, *_ = ask
    with pytest.raises(UserError, match=message):
        prompt(**line)


ODD_NAMES = (r"\ud800.png", r"x\u0000/00000.png", "", r"\udce9.png")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_that_no_file_can_have_fails_alone(name, folder):
    lines = (
        f'{{"task": "caption", "image": "{name}"}}',
        f'{{"prompt": "a", "retrieved": [{{"prompt": "a", "image": "{name}"}}]}}',
        f'{{"task": "continue", "segments": ["a", {{"image": "{name}"}}]}}',
    )
    requests, failures = read(folder, {"prompt": "one"}, *lines)
    assert len(requests) == 1 and [failure.line for failure in failures] == [2, 3, 4]
    assert all(failure.error.isprintable() for failure in failures)


@pytest.mark.parametrize("name", ["loop/00000.png", "n" * 300, "folder", "pipe", "gone.png", "broken.png"])
def test_an_image_that_cannot_be_opened_is_described(name, folder, image_tokenizer):
    (folder / "loop").symlink_to("loop")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    found = read_images([folder / name, folder / "a.png"], image_tokenizer)
    assert isinstance(found[folder / name], str) and isinstance(found[folder / "a.png"], np.ndarray)


def raw(folder, content: bytes):
    (folder / "prompts.jsonl").write_bytes(content)
    return read_requests(folder / "prompts.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "caf\xe9"}', "not UTF-8 (byte 16 of the line)"),
        (b"\x00", "not JSON"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b'{"prompt": "' + b"x" * (1 << 21) + b'"}', "longer than 1 MiB"),
        (b"[" * 100_000, "not JSON that can be read"),
        (b"NaN", "not an object"),
        (b'{"prompt": "a", "\\ud800": 1}', r"no such field \ud800"),
        (b'{"prompt": "a", "' + b"x" * 100_000 + b'": 1}', "no such field x"),
    ],
)
def test_bytes_of_any_kind_fail_their_record_alone(line, message, folder):
    for end in (b"\n", b"\r\n"):
        requests, failures = raw(folder, b'{"prompt": "one"}' + end + line + end + b'{"prompt": "two"}')
        assert [(request.line, request.prompt) for request in requests] == [(1, "one"), (3, "two")]
        assert [failure.line for failure in failures] == [2]
        assert failures[0].error.startswith(message) and len(failures[0].error) < 1500


def test_byte_order_marks(folder):
    requests, failures = raw(folder, b'\xef\xbb\xbf{"prompt": "one"}\n')
    assert [request.prompt for request in requests] == ["one"] and not failures
    for encoding in ("utf-16-le", "utf-16-be"):
        with pytest.raises(UserError, match="is UTF-16 text: save it as UTF-8"):
            raw(folder, '\ufeff{"prompt": "one"}\n'.encode(encoding))


def test_files_without_an_end_are_refused(monkeypatch, folder):
    monkeypatch.setattr(requests_module, "_LARGEST_FILE", 1 << 22)
    for endless in ("/dev/zero", folder / "blank"):
        (folder / "blank").write_bytes(b"\n" * ((1 << 22) + 1))
        with pytest.raises(UserError, match="holds more than 4 MiB"):
            read_requests(Path(endless))
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        read_requests(folder)
