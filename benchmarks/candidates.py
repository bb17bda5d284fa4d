"""What choosing among candidates is worth, on the demo: drawings that are read as the digit asked for.

    python benchmarks/candidates.py --workdir=runs/demo

200 prompts, eight candidates each; the first of them is kept, or the one that a scorer likes best.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

from cm3leon_jax import config_file
from cm3leon_jax.generation import prompts
from cm3leon_jax.generation.load import load_model
from cm3leon_jax.generation.rank import SCORERS, Candidate
from cm3leon_jax.generation.requests import Request

sys.path.insert(0, str(Path(__file__).parents[1]))

from examples.digits.classifier import DigitClassifier

CANDIDATES = 8
# The demo has no CLIP.
NAMES = ("likelihood", "caption")


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/demo")
    arguments = parser.parse_args()
    config = config_file.load("examples/digits/demo.py", arguments.workdir, {})
    model = load_model(config, Path(arguments.workdir))
    classifier, length = DigitClassifier(), config.image_tokenizer.image_length
    texts = [text for text in config.evaluate.prompts for _ in range(config.evaluate.samples_per_prompt)]
    print(f"{'method':12} {'guidance':>8} {'first':>7} " + " ".join(f"{name:>11}" for name in NAMES))
    for method, guidance in (("top_p", 1.0), ("top_p", 3.0), ("contrastive", 3.0), ("mixed", 3.0)):
        sampling = dataclasses.replace(config.sampling, method=method, guidance=guidance, temperature=1.0)
        asked = [prompts.text_to_image(text, length, model.vocabulary) for text in texts for _ in range(CANDIDATES)]
        answers = model.sampler(asked, sampling)
        codes = np.array([model.vocabulary.decode_image(np.array(answer.tokens)) for answer in answers])
        candidates = [
            Candidate(Request(line=1, number=index // CANDIDATES, prompt=texts[index // CANDIDATES]), answer, image)
            for index, (answer, image) in enumerate(zip(answers, codes, strict=True))
        ]
        kept = {"first": np.zeros(len(texts), int)}
        for name in NAMES:
            kept[name] = np.reshape(SCORERS[name](candidates, model), (len(texts), CANDIDATES)).argmax(axis=1)
        shares = []
        for choice in kept.values():
            chosen = codes.reshape(len(texts), CANDIDATES, length)[np.arange(len(texts)), choice]
            scores = classifier.score_images("sampled", texts, model.image_tokenizer.decode(chosen))
            shares.append(scores["sampled_accuracy"])
        print(f"{method:12} {guidance:8} {shares[0]:7.1%} " + " ".join(f"{share:11.1%}" for share in shares[1:]))


if __name__ == "__main__":
    main()
