"""CLIP folders as transformers writes them: their vectors, their ids, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from cm3leon_jax.cli import main
from cm3leon_jax.config import Config
from cm3leon_jax.encoders.base import load_encoder
from cm3leon_jax.encoders.clip.config import ClipConfig
from cm3leon_jax.errors import UserError
from tests.encoders.conftest import TINY_IMAGE, TINY_TEXT, theirs
from tests.huggingface.conftest import import_folder

torch = pytest.importorskip("torch", reason="folders of CLIP are made with torch: pip install -e '.[test]'")
transformers = pytest.importorskip("transformers", reason="the extra [test] brings transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

WORDS = ("red", "green", "square", "circle", "photo", "the", "left")
TEXTS = [
    "a red square",
    "A  RED\tSquare, left of the green circle!",
    "photo no. 123 of the café's naïve 東京 🙂 e\u0301",
    "x",
    "it's the photographer's; we'll see",
    "the red green square circle photo " * 4,
]


def bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Bytes, bytes at the end of a word, and merges that make a few words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        left, *others = [*word[:-1], f"{word[-1]}</w>"]
        for right in others:
            merges[left, right] = None
            left += right
    names = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *map("".join, merges)]
    names += ["<|startoftext|>", "<|endoftext|>"]
    return {name: index for index, name in enumerate(names)}, list(merges)


VOCABULARY, MERGES = bpe()
SIZE = len(VOCABULARY)
END = VOCABULARY["<|endoftext|>"]


def write_pair(folder: Path) -> None:
    """vocab.json and merges.txt, as the first folders have them."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES))


def tokenizer():
    return transformers.CLIPTokenizer(vocab=VOCABULARY, merges=MERGES, model_max_length=11)


@pytest.fixture(scope="module")
def model():
    return theirs(TINY_TEXT | dict(vocab_size=SIZE, eos_token_id=END), TINY_IMAGE, projection_dim=24)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "clip"))


@pytest.fixture
def config(tmp_path) -> Config:
    return Config(encoder=ClipConfig(path=str(tmp_path / "encoder")))


def change(file: Path, part: str | None = None, **values: object) -> None:
    stored = json.loads(file.read_text())
    (stored if part is None else stored[part]).update(values)
    file.write_text(json.dumps(stored))


def their_vectors(model, texts, pixels):
    asked = tokenizer()(texts, padding="max_length", max_length=11, truncation=True, return_tensors="pt")
    with torch.no_grad():
        found = model(input_ids=asked.input_ids, pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)))
    return found.text_embeds.numpy(), found.image_embeds.numpy()


def assert_same_vectors(encoder, model, mean, std):
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    text, image = their_vectors(model, TEXTS, ((images / 255 - mean) / std).astype(np.float32))
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), text, atol=1e-4)
    np.testing.assert_allclose(encoder.encode_images(images), image, atol=1e-4)


def test_the_command_makes_an_encoder_with_transformers_vectors(model, folder, tmp_path, capsys):
    processing = dict(crop_size=dict(height=16, width=16), image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.25])
    transformers.CLIPImageProcessor(size=dict(shortest_edge=16), **processing).save_pretrained(folder)
    (tmp_path / "config.py").write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict()\n"
    )
    command = ["import", f"--config={tmp_path}/config.py", f"--workdir={tmp_path}", f"--from={folder}"]
    assert main(command) == 0
    assert "imported the encoder" in capsys.readouterr().out
    encoder = load_encoder(tmp_path / "encoder")
    assert_same_vectors(encoder, model, processing["image_mean"], processing["image_std"])
    assert main(command) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_preprocessing_beside_that_of_texts(folder, config):
    """In the one processor_config.json that transformers writes of both."""
    processing = dict(crop_size=dict(height=16, width=16), image_mean=[0.5, 0.4, 0.3])
    (folder / "processor_config.json").write_text(json.dumps(dict(image_processor=processing)))
    import_folder(config, folder.parent, folder)
    assert load_encoder(config.encoder.path).normalization.mean == (0.5, 0.4, 0.3)


def test_an_old_folder(model, folder, config):
    """As the first published one: no tokenizer.json, the wrong end, tables of numbers beside the weights."""
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    write_pair(folder)
    change(folder / "config.json", "text_config", eos_token_id=2)
    weights = {name: tensor.half() for name, tensor in model.state_dict().items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(11)[None]
    safetensors_torch.save_file(weights, folder / "model.safetensors")
    import_folder(config, folder.parent, folder)
    legacy = transformers.CLIPModel.from_pretrained(folder).float().eval()
    assert legacy.config.text_config.eos_token_id == 2
    published = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    assert_same_vectors(load_encoder(config.encoder.path), legacy, *published)


def test_ids_of_vocabulary_and_merges_are_those_of_transformers(folder, config):
    (folder / "tokenizer.json").unlink()
    write_pair(folder)
    import_folder(config, folder.parent, folder)
    encoder = load_encoder(config.encoder.path)
    expected = tokenizer()(TEXTS, padding="max_length", max_length=11, truncation=True).input_ids
    tokens, _ = encoder.tokenizer(TEXTS)
    assert tokens.tolist() == expected
    words = [VOCABULARY[name] for name in ("<|startoftext|>", "a</w>", "red</w>", "square</w>", "<|endoftext|>")]
    assert tokens[0, :5].tolist() == words


def test_another_encoder_is_not_overwritten(folder, config):
    import_folder(config, folder.parent, folder)
    found = load_encoder(config.encoder.path).fingerprint
    (folder / "preprocessor_config.json").write_text(json.dumps(dict(image_mean=[0, 0, 0], crop_size=16)))
    with pytest.raises(UserError, match="holds another encoder than the folder's"):
        import_folder(config, folder.parent, folder)
    assert load_encoder(config.encoder.path).fingerprint == found
    elsewhere = replace(config, encoder=ClipConfig(path=str(folder.parent / "other")))
    import_folder(elsewhere, folder.parent, folder)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("text_config", dict(hidden_act="relu"), "text_config.hidden_act is 'relu', not 'gelu' or 'quick_gelu'"),
        ("vision_config", dict(num_channels=4), "vision_config.num_channels is 4, not 3"),
        ("vision_config", dict(image_size=18), "vision_config.image_size is 18, not a multiple of patch_size 4"),
        ("vision_config", dict(image_size=[16, 32]), r"vision_config.image_size is \[16, 32\], not a whole number"),
        (
            "vision_config",
            dict(num_hidden_layers=3),
            r"tensor vision_model.encoder.layers.2.layer_norm1.bias is absent",
        ),
        ("text_config", dict(num_hidden_layers=2), r"text_model.encoder.layers.2.\S+ is \(32,\), .* to be absent"),
        ("vision_config", dict(patch_size=8), r"patch_embedding.weight is \(48, 3, 4, 4\), .* \(48, 3, 8, 8\)"),
        (None, dict(projection_dim=25), r"text_projection.weight is \(24, 32\), by config.json .* \(25, 32\)"),
        ("text_config", dict(vocab_size=SIZE - 1), f"its tokenizer has the id {END}, .* vocab_size {SIZE - 1}"),
        ("text_config", dict(eos_token_id=7), f"ends a text with the id {END}, its config.json reads it at 7"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(folder, config, part, values, message):
    change(folder / "config.json", part, **values)
    with pytest.raises(UserError, match=message) as refused:
        import_folder(config, folder.parent, folder)
    assert "\n" not in str(refused.value)
    assert not Path(config.encoder.path).exists()


def test_what_is_missing_is_refused_in_a_line(folder, config):
    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            import_folder(config, folder.parent, folder)

    (folder / "preprocessor_config.json").write_text(json.dumps(dict(crop_size=32)))
    refused("makes images of 32, config.json says 16 pixels a side")
    (folder / "preprocessor_config.json").write_text(json.dumps(dict(crop_size=16, image_std=[1, 0, 1])))
    refused("image_std is .* not 3 numbers above 0")
    (folder / "preprocessor_config.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(bos_token="<begin>")))
    refused("its tokenizer has no token <begin>")
    (folder / "tokenizer.json").write_text("{}")
    refused("tokenizer.json is damaged")
    (folder / "tokenizer.json").unlink()
    refused("neither tokenizer.json nor vocab.json and merges.txt")
    write_pair(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "model.safetensors").unlink()
    refused("no weights in")
