"""Converts an exported folder for CTranslate2, whose ids without a token it wants named.

    cm3leon export --config=CONFIG --workdir=DIR --format=huggingface --materialize-norms --output=FOLDER
    python -m examples.ctranslate2_convert FOLDER CONVERTED --quantization=int8

Needs ctranslate2, transformers and PyTorch, and nothing of cm3leon_jax.
"""

from __future__ import annotations

import argparse

from ctranslate2.converters import TransformersConverter
from transformers import AutoConfig


class Converter(TransformersConverter):
    """Names the ids that pad the embedding table."""

    def load_tokenizer(self, tokenizer_class, model_name_or_path, **kwargs):
        tokenizer = super().load_tokenizer(tokenizer_class, model_name_or_path, **kwargs)
        size = AutoConfig.from_pretrained(model_name_or_path).vocab_size
        tokenizer.add_tokens([f"<unused:{index}>" for index in range(len(tokenizer), size)])
        return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("output")
    parser.add_argument("--quantization", help="such as int8; the folder's numbers where it is not given")
    arguments = parser.parse_args()
    Converter(arguments.folder).convert(arguments.output, quantization=arguments.quantization, force=True)


if __name__ == "__main__":
    main()
