"""Generates greedily with CTranslate2; runs under a Python that has it.

python run_ctranslate2.py CONVERTED REQUEST.json ANSWER.json
"""

import json
import sys
from pathlib import Path


def main() -> None:
    import ctranslate2

    converted, request, answer = sys.argv[1:]
    engine = ctranslate2.Generator(converted, device="cpu")
    asked = json.loads(Path(request).read_text())
    # Tokens are told by their names; none ends an answer.
    names = json.loads(Path(converted, "vocabulary.json").read_text())
    prompt, length = [names[index] for index in asked["prompt"]], asked["max_tokens"]
    (found,) = engine.generate_batch(
        [prompt], include_prompt_in_result=False, max_length=length, min_length=length, end_token=names[-1:]
    )
    Path(answer).write_text(json.dumps(found.sequences_ids[0]))


if __name__ == "__main__":
    main()
