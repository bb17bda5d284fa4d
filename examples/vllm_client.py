"""Generates an image with a running `vllm serve`, guided, from a folder that `cm3leon export` wrote.

    PYTHONPATH=FOLDER vllm serve FOLDER --logits-processors vllm_guidance:Guidance \\
      --scheduler-cls vllm_guidance.PairScheduler --max-num-seqs 64
    python -m examples.vllm_client FOLDER "a photo of a cat" --guidance=3 --output=cat.png

Both prompts of a pair go in one request, and the scheduler takes them side by side.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from cm3leon_jax.errors import UserError
from cm3leon_jax.image_tokenizers.base import load_image_tokenizer
from cm3leon_jax.images import encode_png
from cm3leon_jax.vocabulary import Vocabulary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the exported folder that the server has")
    parser.add_argument("prompt")
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("image.png"))
    arguments = parser.parse_args()
    try:
        codes = image_codes(
            arguments.folder,
            arguments.prompt,
            arguments.url,
            guidance=arguments.guidance,
            temperature=arguments.temperature,
            seed=arguments.seed,
        )
    except UserError as error:
        print(f"vllm_client: {error}", file=sys.stderr)
        return 2
    image = load_image_tokenizer(arguments.folder / "image_tokenizer").decode(codes[None])[0]
    arguments.output.write_bytes(encode_png(image))
    print(f"written to {arguments.output}")
    return 0


def image_codes(
    folder: Path, prompt: str, url: str, *, guidance: float = 3.0, temperature: float = 1.0, seed: int = 0
) -> np.ndarray:
    """The codes [image_length] that a server samples for a text.

    Raises:
      UserError: if the server does not answer, or refuses the request.
    """
    vocabulary = Vocabulary.load(folder)
    length = load_image_tokenizer(folder / "image_tokenizer").config.image_length
    given = [vocabulary.end, *vocabulary.encode_text(prompt), vocabulary.break_, *vocabulary.begin_image]
    away = [vocabulary.end, vocabulary.mask(0), vocabulary.break_, *vocabulary.begin_image]
    fields = {
        "model": str(folder),
        "prompt": [given, away],
        "max_tokens": length,
        "min_tokens": length,
        "temperature": temperature,
        "seed": seed,
        "return_token_ids": True,
        "vllm_xargs": {
            "modality": "image",
            "guidance_pair": uuid.uuid4().hex,
            "guidance_away": away,
            "guidance_scale": guidance,
        },
    }
    first, second = (choice["token_ids"] for choice in _post(f"{url}/v1/completions", fields)["choices"])
    if first != second:
        raise UserError(f"{url} sampled other tokens for each prompt of a pair: start it with vllm_guidance:Guidance")
    return vocabulary.decode_image(np.array(first))


def _post(url: str, fields: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(fields).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise UserError(f"{url}: {error.code} {error.read().decode(errors='replace')[:300]}") from None
    except urllib.error.URLError as error:
        raise UserError(f"{url}: {error.reason}: is the server running?") from None


if __name__ == "__main__":
    sys.exit(main())
