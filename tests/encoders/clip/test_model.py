"""The two towers against transformers' CLIP with the same random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cm3leon_jax.encoders.clip.config import ClipConfig
from cm3leon_jax.encoders.clip.model import Clip, ClipArchitecture, abstract_clip, eos_positions, normalize_rows
from cm3leon_jax.huggingface.families.clip import read_architecture, read_parameters
from cm3leon_jax.huggingface.reading_weights import StoredTensor
from cm3leon_jax.models.config import MeshConfig
from cm3leon_jax.models.sharding import make_mesh, shardings
from cm3leon_jax.named_parameters import bind
from tests.encoders.conftest import TINY_IMAGE, TINY_TEXT, theirs

torch = pytest.importorskip("torch", reason="parity with transformers needs torch: pip install -e '.[test]'")


def ours(model: Any) -> Clip:
    stored = {
        name: StoredTensor(name, Path("there"), tuple(tensor.shape), lambda index, tensor=tensor: tensor[index].numpy())
        for name, tensor in model.state_dict().items()
    }
    architecture = read_architecture(model.config.to_dict(), Path("there"))
    return bind(abstract_clip(architecture), read_parameters(architecture, stored, Path("there")))


def texts(model: Any, count: int, rng: np.random.Generator) -> np.ndarray:
    """Rows that end at different places, with padding that would change them if it were read."""
    config = model.config.text_config
    ids = rng.integers(3, min(config.bos_token_id, config.vocab_size - 8), (count, config.max_position_embeddings))
    ids[:, 0] = config.bos_token_id
    for row in range(count):
        ids[row, rng.integers(2, ids.shape[1])] = max(config.eos_token_id, config.bos_token_id + 1)
    return ids.astype(np.int32)


def assert_equal(model: Any, count: int, atol: float = 1e-4) -> None:
    rng, clip = np.random.default_rng(0), ours(model)
    tokens = texts(model, count, rng)
    side = model.config.vision_config.image_size
    pixels = rng.standard_normal((count, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        found = model(input_ids=torch.tensor(tokens), pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)))
        text = model.get_text_features(torch.tensor(tokens)).pooler_output.numpy()
        image = model.get_image_features(torch.tensor(pixels.transpose(0, 3, 1, 2))).pooler_output.numpy()
    eos = model.config.text_config.eos_token_id
    our_text = jax.jit(lambda clip, ids: clip.text(ids, eos_positions(ids, None if eos == 2 else eos)))(clip, tokens)
    our_image = jax.jit(lambda clip, pixels: clip.image(pixels))(clip, pixels)
    np.testing.assert_allclose(our_text, text, atol=atol)
    np.testing.assert_allclose(our_image, image, atol=atol)
    np.testing.assert_allclose(normalize_rows(our_text), found.text_embeds.numpy(), atol=atol)
    np.testing.assert_allclose(normalize_rows(our_image), found.image_embeds.numpy(), atol=atol)
    np.testing.assert_allclose(clip.logit_scale[...], model.logit_scale.detach(), atol=1e-6)
    # Not all alike, or equality would say little.
    assert np.std(text, axis=0).max() > 0.01 and np.std(image, axis=0).max() > 0.01


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ({}, {}),
        (dict(hidden_act="gelu", layer_norm_eps=1e-3), dict(hidden_act="gelu", layer_norm_eps=1e-3)),
        # The first published configs name the wrong end token.
        (dict(eos_token_id=2), {}),
    ],
    ids=["quick_gelu", "gelu", "read at the highest id"],
)
def test_embeddings_are_those_of_transformers(text, image):
    assert_equal(theirs(TINY_TEXT | text, TINY_IMAGE | image, projection_dim=24), count=5)


@pytest.mark.slow
def test_embeddings_of_vit_b_32_are_those_of_transformers():
    model = theirs({}, {}, projection_dim=512)
    assert_equal(model, count=2)
    architecture = ClipArchitecture.of(ClipConfig(), vocabulary_size=49408)
    assert read_architecture(model.config.to_dict(), Path("there")) == architecture


def test_a_patch_that_is_left_out_is_one_of_mean_color(clip_encoder):
    clip = bind(abstract_clip(clip_encoder.architecture), clip_encoder.weights)
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((2, 16, 16, 3)).astype(np.float32)
    kept = np.ones((2, 16), bool)
    kept[1, 6] = False
    blank = pixels.copy()
    blank[1, 4:8, 8:12] = 0
    found = clip.image(jnp.asarray(pixels), jnp.asarray(kept))
    np.testing.assert_allclose(found, clip.image(jnp.asarray(blank)), atol=1e-5)
    assert np.abs(found[1] - clip.image(jnp.asarray(pixels))[1]).max() > 1e-3


def test_parameters_split_over_the_mesh(clip_encoder):
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    found = shardings(nnx.state(abstract_clip(clip_encoder.architecture)), mesh)
    specs = {".".join(map(str, path)): leaf.get_value().spec for path, leaf in nnx.to_flat_state(found)}
    assert tuple(specs["text.token_embedding"]) == ("tensor", "fsdp")
    assert tuple(specs["image.blocks.attention.query"]) == (None, "fsdp", "tensor", None)
    assert tuple(specs["logit_scale"]) == ()
