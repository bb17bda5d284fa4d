"""Every task end to end, the answers that are kept, records that fail, and what is left in the folder."""

import argparse
import dataclasses
import json

import jax
import numpy as np
import pytest

from cm3leon_jax.commands import generate
from cm3leon_jax.errors import UserError
from cm3leon_jax.generation.generate import decode_completion
from cm3leon_jax.generation.outputs import _fields
from cm3leon_jax.generation.prompts import text_to_image
from cm3leon_jax.generation.rank import SCORERS, Candidate, text_log_likelihoods
from cm3leon_jax.generation.requests import Request, read_requests
from cm3leon_jax.generation.sampler import Completion, Sampler
from cm3leon_jax.images import decode_image
from cm3leon_jax.retrieval.retriever import Neighbor


def written(folder, name="generations.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def prompts_file(folder, *lines):
    file = folder / "prompts.jsonl"
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return file


@pytest.fixture
def run(trained, tiny_config, folder, monkeypatch):
    """The command, with the tiny model in place of a checkpoint; writes to the folder's `out`."""
    monkeypatch.setattr(generate, "load_model", lambda config, workdir: trained)

    def command(*lines, prompt=None, samples=1, output="out", retrieve=0, **sampling) -> int:
        config = dataclasses.replace(tiny_config, sampling=dataclasses.replace(tiny_config.sampling, **sampling))
        file = prompts_file(folder, *lines) if prompt is None else None
        out = folder / output
        arguments = argparse.Namespace(prompts=file, prompt=prompt, samples=samples, retrieve=retrieve, output=out)
        return generate.run(config, folder, arguments)

    return command


class Recording(Sampler):
    """A sampler that keeps what it was called with."""

    def __init__(self, sampler: Sampler) -> None:
        self.__dict__ |= sampler.__dict__
        self.calls = []

    def _complete_batch(self, prompts, sampling, indices, contrastive):
        self.calls.append((sampling.batch_size, list(indices), list(contrastive)))
        return super()._complete_batch(prompts, sampling, indices, contrastive)


ALL_TASKS = [
    {"prompt": "a handwritten seven"},
    {"task": "caption", "image": "a.png"},
    {"task": "vqa", "prompt": "Which digit?", "image": "b.png", "order": "left_to_right"},
    {"task": "infill", "prompt": "zero", "image": "c.png", "region": [0, 0, 0.5, 0.5]},
    {"task": "infill_text", "prompt": "a <mask> of <mask>.", "image": "a.png"},
    {"task": "edit", "prompt": "make it wide", "image": "b.png"},
    {"task": "continue", "segments": ["a photo", {"image": "c.png"}]},
    {"task": "caption", "image": "b.png", "retrieved": [{"prompt": "zero", "image": "a.png"}]},
]


def test_every_task_is_answered(run, folder, capsys):
    assert run(*ALL_TASKS, samples=2) == 0
    out = folder / "out"
    answers = written(out)
    assert [(a["index"], a["sample"], a["task"]) for a in answers] == [
        (2 * number + sample, sample, line.get("task", "text_to_image"))
        for number, line in enumerate(ALL_TASKS)
        for sample in range(2)
    ]
    assert [a["prompt"] for a in answers[::2]] == [line.get("prompt", "") for line in ALL_TASKS]
    named = {"generations.jsonl"}
    for answer in answers:
        assert np.isfinite(answer["score"])
        assert (answer["image"] is not None) == (answer["task"] in ("text_to_image", "infill", "edit"))
        assert (answer["text"] is not None) == (answer["task"] in ("caption", "vqa", "infill_text"))
        if answer["image"]:
            assert answer["image"] == f"{answer['index']:05d}.png"
            named.add(answer["image"])
        if answer["task"] == "infill_text":
            first, second = answer["texts"]
            assert answer["text"] == f"a {first} of {second}."
        if answer["task"] == "continue":
            named |= {segment["image"] for segment in answer["segments"] if isinstance(segment, dict)}
    assert {path.name for path in out.iterdir()} == named
    for name in named - {"generations.jsonl"}:
        assert decode_image((out / name).read_bytes(), 8, 1).shape == (8, 8, 1)
    said = capsys.readouterr().out
    num_images = len(named) - 1
    assert f"16 samples of the checkpoint of step 3: {num_images} images and generations.jsonl in {out}" in said
    assert all(f"\n    {a['text']}\n" in said for a in answers if a["text"] and a["text"].isprintable())


def test_an_infill_keeps_what_lies_outside_of_its_region(trained, folder):
    requests, _ = read_requests(prompts_file(folder, ALL_TASKS[3]))
    codes = np.arange(16)
    v = trained.vocabulary
    tokens = [v.first_image_code + 30] * 2 + [v.eoss, v.mask(1)] + [v.first_image_code + 31] * 2
    image = decode_completion(requests[0], Completion(tokens, -1.0, 1), {folder / "c.png": codes}, trained).image
    np.testing.assert_array_equal(image, [30, 30, 2, 3, 31, 31, *range(6, 16)])


def test_a_continuation_names_its_images(trained):
    v = trained.vocabulary
    codes = np.arange(16)
    image = v.encode_image(codes).tolist()
    tokens = [*v.encode_text("zero"), v.break_, *image, v.break_, *v.encode_text(" one"), v.break_, *image]
    request = Request(1, 0, "continue", segments=("a",))
    candidate = decode_completion(request, Completion(tokens, -1.0, 1), {}, trained)
    fields, images = _fields(candidate, "00007")
    assert fields == {"text": None, "segments": ["zero", {"image": "00007_1.png"}, " one", {"image": "00007_3.png"}]}
    assert list(images) == ["00007_1.png", "00007_3.png"]
    np.testing.assert_array_equal(images["00007_3.png"], codes)


def test_texts_that_an_answer_leaves_out_are_empty(trained, folder):
    requests, _ = read_requests(prompts_file(folder, ALL_TASKS[4]))
    completion = Completion(trained.vocabulary.encode_text("zero"), -1.0, 1)
    candidate: Candidate = decode_completion(requests[0], completion, {}, trained)
    assert (candidate.text, candidate.texts) == ("a zero of .", ("zero", ""))


@pytest.mark.parametrize("scorer", ["likelihood", "caption"])
def test_the_best_candidates_are_kept(run, trained, tiny_config, folder, scorer):
    texts = ["zero", "a handwritten seven"]
    lines = [{"prompt": text} for text in texts]
    assert run(*lines, samples=2, candidates=5, scorer=scorer) == 0
    answers = written(folder / "out")
    for number, text in enumerate(texts):
        prompt = text_to_image(text, 16, trained.vocabulary)
        drawn = trained.sampler([prompt] * 5, tiny_config.sampling, range(5 * number, 5 * number + 5))
        codes = trained.vocabulary.decode_image(np.array([answer.tokens for answer in drawn]))
        scores = np.array([answer.mean_logprob for answer in drawn])
        if scorer == "caption":
            scores = text_log_likelihoods([text] * 5, codes, trained)
        kept = np.argsort(-scores)[:2]
        mine = answers[2 * number : 2 * number + 2]
        assert [answer["score"] for answer in mine] == pytest.approx(scores[kept].tolist(), abs=1e-4)
        for answer, pixels in zip(mine, trained.image_tokenizer.decode(codes[kept]), strict=True):
            np.testing.assert_array_equal(decode_image((folder / "out" / answer["image"]).read_bytes(), 8, 1), pixels)


@pytest.mark.slow
def test_every_other_candidate_of_a_prompt_is_contrastive(run, trained, folder, monkeypatch):
    recording = Recording(trained.sampler)
    model = dataclasses.replace(trained, sampler=recording)
    monkeypatch.setattr(generate, "load_model", lambda config, workdir: model)
    lines = [{"prompt": text} for text in ("zero", "one", "two")]
    assert run(*lines, candidates=3, method="mixed") == 0
    # The candidates of a prompt stand side by side, and a last batch is filled up to the size of the others.
    assert [call[0] for call in recording.calls] == [8, 8]
    indices, contrastive = ([value for call in recording.calls for value in call[part]] for part in (1, 2))
    assert indices == list(range(9))
    assert contrastive == [False, True, False] * 3

    recording.calls.clear()
    assert run(*ALL_TASKS[:3], method="contrastive") == 0
    # One task at a time, in batches no larger than it needs.
    assert recording.calls == [(1, [0], [True]), (1, [1], [True]), (1, [2], [True])]


@pytest.mark.parametrize(("method", "number"), [("top_p", 1), ("mixed", 2)])
def test_without_chance_there_is_one_answer_a_method(run, folder, capsys, method, number):
    assert run({"prompt": "zero"}, {"prompt": "one"}, samples=3, temperature=0.0, method=method) == 0
    assert [(a["index"], a["sample"]) for a in written(folder / "out")] == [
        (index, index % number) for index in range(2 * number)
    ]
    assert f"temperature is 0, so a prompt has no more samples than {number}" in capsys.readouterr().out


def test_the_records_that_fail_do_not_stop_the_others(run, folder, capsys):
    good = [{"prompt": "zero"}, {"task": "caption", "image": "a.png"}]
    long = {"prompt": "many words " * 200}
    lines = [good[0], "nonsense", {"task": "caption", "image": "gone.png"}, "", long, good[1], {"promt": "x"}]
    assert run(*lines, samples=2) == 2
    failed = written(folder / "out", "failed.jsonl")
    assert [failure["line"] for failure in failed] == [2, 3, 5, 7]
    for failure, message in zip(failed, ("not JSON", "no image", "do not fit", "no such field promt"), strict=True):
        assert message in failure["error"]
    errors = capsys.readouterr().err.splitlines()
    for failure, line in zip(failed, errors[:4], strict=True):
        assert line == f"{folder / 'prompts.jsonl'}, line {failure['line']}: {failure['error']}"
    summary = f"4 of 6 records have no result; {folder / 'out' / 'failed.jsonl'} lists them"
    assert errors[4:] == [f"cm3leon generate: {summary}"]

    # Answers keep their names, and their chance, whatever stands beside them.
    answers = written(folder / "out")
    assert [answer["index"] for answer in answers] == [0, 1, 8, 9]
    fine = [good[0], *[{"prompt": "x"}] * 3, good[1]]
    assert run(*fine, samples=2, output="fine") == 0
    again = written(folder / "fine")
    assert [again[index]["text"] for index in (8, 9)] == [answer["text"] for answer in answers[2:]]
    assert (folder / "fine" / "00001.png").read_bytes() == (folder / "out" / "00001.png").read_bytes()


def test_where_all_records_fail_nothing_else_is_written(run, folder, capsys):
    assert run("nonsense", {"task": "edit", "prompt": "x", "image": "gone.png"}) == 2
    assert [path.name for path in (folder / "out").iterdir()] == ["failed.jsonl"]
    assert "2 of 2 records have no result" in capsys.readouterr().err


def test_a_folder_that_is_not_of_a_run_is_refused_before_anything_is_computed(run, folder, monkeypatch):
    def restored(config, workdir):
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(generate, "load_model", restored)
    out = folder / "out"
    out.mkdir()
    (out / "00000.png").write_text("mine")
    # The folder of the prompts and their images; the workdir is the same here.
    for output in ("out", "."):
        with pytest.raises(UserError, match="is not empty"):
            run({"prompt": "zero"}, output=output)
    with pytest.raises(UserError, match=r"a.png cannot be made or used \(a file is there\): name another"):
        run({"prompt": "zero"}, output="a.png")
    assert (out / "00000.png").read_text() == "mine" and len(list(out.iterdir())) == 1


def test_an_image_that_the_run_would_remove_is_refused(run, folder):
    assert run({"prompt": "zero"}) == 0
    edit = {"task": "edit", "prompt": "wider", "image": "out/00000.png"}
    with pytest.raises(UserError, match="would give way to the images of this run: give another folder"):
        run(edit)
    assert (folder / "out" / "00000.png").exists()
    assert run(edit, output="edited") == 0


def test_one_prompt_on_the_command_line(run, folder):
    assert run(prompt="zero", samples=2) == 0
    assert [answer["prompt"] for answer in written(folder / "out")] == ["zero", "zero"]
    with pytest.raises(UserError, match=r"--prompt: a prompt of .* do not fit the model's 160 positions"):
        run(prompt="many words " * 200)
    with pytest.raises(UserError, match="--samples=0: at least 1"):
        run(prompt="zero", samples=0)


def test_a_text_that_only_the_scorer_finds_too_long(run, trained, folder):
    # As a caption, a text has three marks more than as a prompt.
    text = "!" * (160 - 16 - 2)
    assert run({"prompt": text}) == 0
    assert run({"prompt": text}, scorer="caption") == 2
    assert "do not fit" in written(folder / "out", "failed.jsonl")[0]["error"]


def test_documents_that_were_found_stand_in_front_and_are_named(run, folder, vocabulary, trained, monkeypatch):
    codes = np.arange(16, dtype=np.int32)
    tokens = np.array([*vocabulary.encode_text("zero"), vocabulary.break_, *vocabulary.encode_image(codes)])
    neighbor = Neighbor("digits", 7, 0.5, tokens)
    seen = []

    def found(requests, retriever, count, config):
        seen.append(([request.number for request in requests], count))
        return {0: [neighbor]}

    monkeypatch.setattr(generate, "open_retriever", lambda config, vocabulary, count: None)
    monkeypatch.setattr(generate, "retrieve", found)
    asked = []
    monkeypatch.setattr(Sampler, "check_fits_sequence", lambda self, prompts: asked.extend(prompts))
    assert run({"prompt": "a seven"}, {"prompt": "a nine"}, retrieve=1) == 0
    assert seen == [([0, 1], 1)]
    with_document, without = written(folder / "out")
    assert with_document["retrieved"] == [{"task": "digits", "document": 7, "text": "zero", "score": 0.5}]
    assert "retrieved" not in without
    assert asked[0] == text_to_image("a seven", 16, vocabulary, [tokens.tolist()])
    assert asked[1] == text_to_image("a nine", 16, vocabulary)


def test_a_negative_number_of_documents_is_refused(run):
    with pytest.raises(UserError, match="--retrieve=-1: at least 0"):
        run(prompt="a seven", retrieve=-1)


@pytest.mark.parametrize("empty", ["", "  ", "\n"])
def test_arguments_that_are_empty(run, folder, empty):
    with pytest.raises(
        UserError, match=r"--prompt is empty, .*: give it a text; to generate without one, give --prompts"
    ):
        run(prompt=empty)
    with pytest.raises(UserError, match="--prompt is not UTF-8 text"):
        run(prompt="caf\udce9")
    # Without a text, but meant so.
    assert run({"prompt": ""}) == 0
    assert [a["prompt"] for a in written(folder / "out")] == [""]


@pytest.mark.parametrize(("samples", "candidates"), [(10**9, 1), (1, 10**9), (10**18, 1)])
def test_more_answers_than_fit_are_refused_before_any_is_asked_for(run, monkeypatch, samples, candidates):
    monkeypatch.setattr(generate, "load_model", lambda config, workdir: pytest.fail("the model is loaded"))
    with pytest.raises(UserError, match=r"which are kept in memory .* fit, so give at most") as caught:
        run({"prompt": "a"}, {"prompt": "b"}, samples=samples, candidates=candidates)
    most = int(str(caught.value).split("give at most ")[1].split(";")[0].replace(",", ""))
    assert 10**5 < most < 10**7


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_from_numbers_that_are_not_finite_fail(run, trained, folder, monkeypatch, window, temperature):
    sampler = Recording(trained.sampler)
    sampler.load(jax.tree.map(lambda array: array * float("inf"), trained.parameters))
    broken = dataclasses.replace(trained, sampler=sampler)
    monkeypatch.setattr(generate, "load_model", lambda config, workdir: broken)
    sampling = {"temperature": temperature, "speculative_window": window}
    assert run({"prompt": "zero"}, {"task": "caption", "image": "a.png"}, **sampling) == 2
    failed = written(folder / "out", "failed.jsonl")
    assert [failure["line"] for failure in failed] == [1, 2]
    assert all("the scores of its samples are not finite" in failure["error"] for failure in failed)
    assert [path.name for path in (folder / "out").iterdir()] == ["failed.jsonl"]
    with pytest.raises(UserError, match="--prompt: the scores of its samples are not finite"):
        run(prompt="zero", output="one", **sampling)
    assert not (folder / "one").exists()


@pytest.mark.parametrize("scorer", ["likelihood", "caption"])
def test_candidates_without_a_finite_score_are_not_kept(run, folder, monkeypatch, scorer):
    def scores(candidates, model):
        return [float("nan") if place % 2 == 0 else -float(place) for place in range(len(candidates))]

    monkeypatch.setitem(SCORERS, scorer, scores)
    assert run({"prompt": "zero"}, samples=3, candidates=4, scorer=scorer) == 0
    assert [(a["sample"], a["score"]) for a in written(folder / "out")] == [(0, -1.0), (1, -3.0)]


@pytest.mark.parametrize("window", [17, 1_000_000])
def test_no_more_codes_are_guessed_than_an_image_has(run, folder, window):
    assert run({"prompt": "zero"}, speculative_window=16) == 0
    expected = (folder / "out" / "00000.png").read_bytes()
    assert run({"prompt": "zero"}, speculative_window=window) == 0
    assert (folder / "out" / "00000.png").read_bytes() == expected
