"""How tokens are sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cm3leon_jax.config_part import Part
from cm3leon_jax.ranges import Fraction, NonNegativeInt, OneOf, PositiveInt, Range, Seed


@dataclass(frozen=True)
class SamplingConfig(Part):
    """The distribution that tokens are sampled from, the number of samples, and the speed."""

    # 0 always takes the likeliest token.
    temperature: Annotated[float, Range(at_least=1e-3, other=0)] = 1.0
    top_p: Fraction = 1.0
    # Samples among this many likeliest tokens; 0: among all.
    top_k: NonNegativeInt = 0
    # Weight of classifier-free guidance; 1 means none (arXiv 2309.02591, equation 1).
    guidance: Annotated[float, Range(at_least=0, at_most=1000)] = 3.0
    # Weights of an edit's guidance, towards the instruction and towards the source image (the same, section 4.1).
    edit_guidance: Annotated[float, Range(at_least=0, at_most=1000)] = 7.5
    edit_image_guidance: Annotated[float, Range(at_least=0, at_most=1000)] = 1.5
    # "top_p": guidance, temperature, top_k and top_p; "contrastive": CD-K (the same, equation 3) wherever a prompt has
    # a text to leave out; "mixed": every other candidate of a request by either.
    method: Annotated[str, OneOf("top_p", "contrastive", "mixed")] = "top_p"
    # CD-K samples among tokens of at least alpha times the k-th largest probability.
    contrastive_k: PositiveInt = 10
    contrastive_alpha: Annotated[float, Range(above=0, at_most=1)] = 0.5
    amateur_temperature: Annotated[float, Range(at_least=1e-3)] = 1.0
    # Completions sampled per request, of which those with the highest scores are kept.
    candidates: PositiveInt = 1
    # "likelihood": the mean log-likelihood of a completion's tokens, given its prompt; "caption": that of the prompt's
    # text, given the image generated for it; "clip": the similarity of the two by the encoder at encoder.path, as in
    # the paper. Both are for text-to-image alone; for other tasks the score is "likelihood".
    scorer: Annotated[str, OneOf("likelihood", "caption", "clip")] = "likelihood"
    # Most text tokens of a completion.
    max_text_tokens: PositiveInt = 128
    # Prompts decoded side by side.
    batch_size: PositiveInt = 64
    # Type of the cached keys and values: "" (that of the activations), "float32", "bfloat16" or "int8".
    cache_dtype: Annotated[str, OneOf("", "float32", "bfloat16", "int8")] = ""
    # Draft tokens of an image verified in one pass (speculative Jacobi decoding, arXiv 2410.01699); 0 samples token by
    # token.
    speculative_window: Annotated[int, Range(at_least=2, other=0)] = 0
    seed: Seed = 0
