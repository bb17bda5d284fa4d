"""A small CLIP of ours with random numbers everywhere, and transformers' CLIP of any shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm3leon_jax.encoders.clip.encoder import ClipEncoder, parameter_shapes
from cm3leon_jax.encoders.clip.inputs import ImageNormalization, SpecialTokenIds
from cm3leon_jax.encoders.clip.model import ClipArchitecture, Tower
from cm3leon_jax.vocabulary import Vocabulary

TINY_TEXT = dict(
    vocab_size=96, hidden_size=32, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=11, eos_token_id=90, bos_token_id=89, pad_token_id=0,
)  # fmt: skip
TINY_IMAGE = dict(
    hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=3, image_size=16, patch_size=4
)


def theirs(text: dict[str, Any], image: dict[str, Any], projection_dim: int) -> Any:
    """transformers' CLIPModel with random numbers in every tensor."""
    torch = pytest.importorskip("torch", reason="parity with transformers needs torch: pip install -e '.[test]'")
    transformers = pytest.importorskip("transformers", reason="the extra [test] brings transformers")
    config = transformers.CLIPConfig(text_config=text, vision_config=image, projection_dim=projection_dim)
    model = transformers.CLIPModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(center + 0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def random_encoder(vocabulary: Vocabulary, folder: Path) -> ClipEncoder:
    """Texts of at most 10 tokens with their marks, images of 16 patches; `folder` is for the vocabulary."""
    architecture = ClipArchitecture(
        embedding_dim=24,
        vocabulary_size=vocabulary.first_image_code,
        max_text_tokens=10,
        resolution=16,
        patch_size=4,
        text=Tower(2, 32, 4, 64),
        image=Tower(2, 32, 4, 64, activation="gelu"),
    )
    rng = np.random.default_rng(0)
    weights = {
        name: (0.2 * rng.standard_normal(shape) + name.endswith("scale")).astype(np.float32)
        for name, shape in parameter_shapes(architecture).items()
    }
    vocabulary.save(folder)
    special_tokens = SpecialTokenIds(vocabulary.start, vocabulary.end, vocabulary.pad)
    return ClipEncoder(
        architecture, weights, (folder / "tokenizer.json").read_text(), special_tokens, ImageNormalization()
    )


@pytest.fixture(scope="session")
def clip_encoder(vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> ClipEncoder:
    return random_encoder(vocabulary, tmp_path_factory.mktemp("vocabulary"))
