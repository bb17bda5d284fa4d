"""Prompts files: every mistake is named by line, and regions cover the codes they should."""

import json

import numpy as np
import pytest

from cm3leon_jax.config import ImageTokenizerConfig
from cm3leon_jax.documents import encode_png
from cm3leon_jax.errors import UserError
from cm3leon_jax.generation import generate
from cm3leon_jax.image_tokenizer import vqgan
from cm3leon_jax.image_tokenizer.codec import ImageTokenizer


@pytest.fixture(scope="module")
def image_tokenizer() -> ImageTokenizer:
    config = ImageTokenizerConfig(
        resolution=8,
        in_channels=1,
        base_channels=4,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        latent_channels=4,
        embedding_dim=3,
        codebook_size=16,
    )
    return ImageTokenizer(config, vqgan.initial_parameters(vqgan.abstract_vqgan(config), 0))


def test_a_region_in_shares_of_the_sides():
    grid = generate.region_mask((0.0, 0.25, 1.0, 0.75), 4).reshape(4, 4)
    np.testing.assert_array_equal(grid.any(axis=1), [False, True, True, False])
    corner = generate.region_mask((0.5, 0.0, 1.0, 0.5), 4).reshape(4, 4)
    np.testing.assert_array_equal(np.argwhere(corner), [[0, 2], [0, 3], [1, 2], [1, 3]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", r"prompts.jsonl, line 2 is not JSON"),
        ("[1]", r"line 2: write an object"),
        ('{"promt": "x"}', r"line 2: no such field promt"),
        ('{"prompt": "x", "task": "paint"}', r"line 2: task 'paint' is none of text_to_image, caption, infill"),
        ("{}", r"line 2: the task text_to_image needs a prompt"),
        ('{"task": "caption"}', r"line 2: the task caption needs an image"),
        ('{"task": "caption", "image": "gone.png"}', r"line 2: no picture .*gone.png"),
        ('{"task": "caption", "image": "broken.png"}', r"line 2: the picture .*broken.png cannot be read"),
        ('{"task": "infill", "prompt": "x", "image": "fine.png", "region": [0, 2, 1, 1]}', r"line 2: region is"),
        ('{"task": "infill", "prompt": "x", "image": "fine.png", "region": 5}', r"line 2: region is"),
        ('{"task": "infill", "prompt": "x", "image": "fine.png", "region": [1, 0, 0, 1]}', r"line 2: the region"),
        ('{"task": "caption", "prompt": 3, "image": "fine.png"}', r"line 2: the task caption needs a prompt, a text"),
        ('{"task": "caption", "image": "."}', r"line 2: the picture .* cannot be read"),
    ],
)
def test_a_mistake_in_a_prompts_file_is_named(line, message, tmp_path, image_tokenizer):
    (tmp_path / "broken.png").write_bytes(b"broken")
    (tmp_path / "fine.png").write_bytes(encode_png(np.zeros((8, 8, 1), np.uint8)))
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "fine"}) + "\n" + line + "\n")
    with pytest.raises(UserError, match=message):
        generate.read_requests(file, image_tokenizer)


def test_missing_and_empty_prompts_files(tmp_path, image_tokenizer):
    with pytest.raises(UserError, match="no prompts file"):
        generate.read_requests(tmp_path / "none.jsonl", image_tokenizer)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        generate.read_requests(tmp_path / "empty.jsonl", image_tokenizer)
