"""A small SentencePiece model and a small SigLIP of ours with random numbers everywhere."""

from __future__ import annotations

import functools
import io

import numpy as np
import sentencepiece

from cm3leon_jax.encoders.clip.inputs import ImageNormalization
from cm3leon_jax.encoders.clip.model import Tower
from cm3leon_jax.encoders.siglip.encoder import SiglipEncoder, parameter_shapes
from cm3leon_jax.encoders.siglip.model import SiglipArchitecture
from cm3leon_jax.encoders.siglip.tokenizer import SENTENCEPIECE_FILE, SiglipTokenizer, TextFormat

SENTENCES = [
    "a red square and a green circle",
    "the photo of a dog, left of it",
    "it's the photographer's cat no 123",
    "we'll see a handwritten seven",
]
END, UNKNOWN, NUM_PIECES = 1, 2, 64


@functools.cache
def sentencepiece_model() -> bytes:
    """As T5's, whose model SigLIP's is: no start, an end, words that begin with a space."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 50),
        model_writer=out,
        vocab_size=NUM_PIECES,
        pad_id=-1,
        bos_id=-1,
        eos_id=END,
        unk_id=UNKNOWN,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    return out.getvalue()


def random_encoder() -> SiglipEncoder:
    """Texts of at most 11 tokens with their end, images of 16 patches."""
    tower = Tower(2, 32, 4, 64, activation="gelu_pytorch_tanh", layer_norm_epsilon=1e-6)
    architecture = SiglipArchitecture(NUM_PIECES, 11, 16, 4, text=tower, image=tower)
    rng = np.random.default_rng(0)
    weights = {
        name: (0.2 * rng.standard_normal(shape) + name.endswith("norm.scale")).astype(np.float32)
        for name, shape in parameter_shapes(architecture).items()
    }
    text_format = TextFormat(SENTENCEPIECE_FILE, (), (END,), END)
    tokenizer = SiglipTokenizer(sentencepiece_model(), text_format, architecture.max_text_tokens)
    return SiglipEncoder(architecture, weights, tokenizer, ImageNormalization((0.5,) * 3, (0.5,) * 3))
