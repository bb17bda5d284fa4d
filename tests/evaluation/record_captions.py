"""Records what the COCO caption evaluation makes of captions: ptb_captions.jsonl and caption_scores.jsonl, next to it.

pip install pycocoevalcap==1.2 numpy   # into an environment of its own; it needs Java
python -m tests.evaluation.record_captions
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.evaluation.ptb_sentences import captions

FOLDER = Path(__file__).parent
_NUM_SCORED = 500
_SUBJECTS = ("a man", "a woman", "two dogs", "the old train", "a small child", "three zebras", "a brown horse")
_VERBS = ("riding", "standing next to", "looking at", "sitting on", "walking past", "holding")
_OBJECTS = ("a bench", "a red bus", "the surfboard", "a large umbrella", "a plate of pizza", "a wooden table")
_PLACES = ("in a park", "on the beach", "in the snow", "at night", "by the side of the road", "in a small kitchen")


def tokenized() -> list[dict[str, str]]:
    """Captions of every kind of punctuation, and their tokens without punctuation."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    found = list(captions(seed=0))
    # The program reads all captions as the lines of one file, and for a line that ends in an abbreviation looks at the
    # next: a plain word there, so that a caption's tokens depend on it alone.
    lines = {i: [{"caption": text}, {"caption": "word"}] for i, (_, text) in enumerate(found)}
    tokens = PTBTokenizer().tokenize(lines)
    return [{"kind": kind, "text": text, "tokens": tokens[i][0]} for i, (kind, text) in enumerate(found)]


def _scene(choose: random.Random) -> list[str]:
    return [choose.choice(part) for part in (_SUBJECTS, _VERBS, _OBJECTS, _PLACES)]


def _changed(scene: list[str], choose: random.Random) -> str:
    """The scene in other words: parts of another scene, words missing, repeated or swapped."""
    other = _scene(choose)
    words = " ".join(other[i] if choose.random() < 0.25 else scene[i] for i in range(4)).split()
    words = [word for word in words if choose.random() > 0.1]
    if words and choose.random() < 0.2:
        words.insert(choose.randrange(len(words)), choose.choice(words))
    if len(words) > 2 and choose.random() < 0.2:
        i = choose.randrange(len(words) - 1)
        words[i], words[i + 1] = words[i + 1], words[i]
    return " ".join(words) or "a"


def scored() -> list[dict[str, Any]]:
    """Predictions with one to seven references and their scores; the last line is that of the whole."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    choose = random.Random(1)
    references, predictions = {}, {}
    for i in range(_NUM_SCORED):
        scene = _scene(choose)
        references[i] = [_changed(scene, choose) for _ in range(choose.randrange(1, 8))]
        predictions[i] = [_changed(scene, choose)]
        # Right word by word, empty, of one word, far too long.
        special = {0: references[i][0], 1: "", 2: "dog", 3: f"{predictions[i][0]} " * 4}
        predictions[i] = [special[i % 50].strip()] if i % 50 in special else predictions[i]
    cider, ciders = Cider().compute_score(references, predictions)
    rouge, rouges = Rouge().compute_score(references, predictions)
    bleu, bleus = Bleu().compute_score(references, predictions, verbose=0)
    items = [
        {
            "prediction": predictions[i][0],
            "references": references[i],
            "cider": float(ciders[i]),
            "rouge": float(rouges[i]),
            "bleu": [of_length[i] for of_length in bleus],
        }
        for i in range(_NUM_SCORED)
    ]
    return [*items, {"cider": float(cider), "rouge": float(rouge), "bleu": bleu}]


if __name__ == "__main__":
    for name, lines in (("ptb_captions", tokenized()), ("caption_scores", scored())):
        text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
        (FOLDER / f"{name}.jsonl").write_text(text + "\n", encoding="utf-8")
