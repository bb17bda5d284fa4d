"""Answers on a terminal: all texts in full, images by name, nothing that steers the terminal."""

from pathlib import Path

from cm3leon_jax.generation.outputs import listing
from cm3leon_jax.generation.requests import Request


def lines(requests, answers, is_of_a_file=True) -> list[str]:
    return "\n".join(listing(requests, answers, is_of_a_file)).split("\n")


def answer(index, sample, image=None, text=None, **more) -> dict:
    return {"index": index, "sample": sample, "image": image, "text": text, **more}


def test_texts_and_names_stand_below_what_was_asked():
    requests = [
        Request(1, 0, prompt="a seven"),
        Request(4, 2, "vqa", "Which\x1b[2J one?", Path("x/a.png")),
        Request(5, 3, "continue", segments=("a",)),
    ]
    answers = [
        answer(0, 0, "00000.png"),
        answer(1, 1, "00001.png"),
        answer(4, 0, text="first\nsecond \x1b]0;title\x07"),
        answer(5, 1, text=""),
        answer(6, 0, segments=["of", {"image": "00006_1.png"}]),
        answer(7, 1, segments=[]),
    ]
    assert lines(requests, answers) == [
        "line 1, text to image: a seven",
        "    00000.png  00001.png",
        r"line 4, vqa of a.png: Which\x1b[2J one?",
        "    first",
        r"    second \x1b]0;title\x07",
        "    (no text)",
        "line 5, continue",
        "    of",
        "    00006_1.png",
        "    --",
        "    (nothing)",
    ]
    assert lines(requests[:1], answers[:1], is_of_a_file=False) == ["text to image: a seven", "    00000.png"]


def test_many_images_and_many_requests_are_summed_up():
    many = [answer(index, index, f"{index:05d}.png") for index in range(40)]
    assert lines([Request(1, 0, prompt="")], many) == [
        "line 1, text to image: (no text)",
        "    00000.png to 00039.png, 40 images",
    ]
    requests = [Request(n + 1, n, "caption", image=Path("a.png")) for n in range(500)]
    shown = lines(requests, [answer(n, 0, text="x") for n in range(500)])
    assert len(shown) == 201 and "first 100 requests" in shown[-1]


def test_a_request_without_an_answer_is_left_out():
    requests = [Request(1, 0, "caption", image=Path("a.png")), Request(2, 1, "caption", image=Path("b.png"))]
    assert lines(requests, [answer(1, 0, text="x")])[0] == "line 2, caption of b.png"
    assert list(listing(requests, [], True)) == []
