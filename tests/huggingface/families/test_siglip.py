"""SigLIP folders as transformers writes them: their vectors, their ids, their pixels, and what is refused."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cm3leon_jax.cli import main
from cm3leon_jax.config import Config
from cm3leon_jax.encoders.base import load_encoder
from cm3leon_jax.encoders.clip.config import ClipConfig
from cm3leon_jax.encoders.clip.inputs import normalize_images
from cm3leon_jax.encoders.siglip.config import SiglipConfig
from cm3leon_jax.errors import UserError
from tests.encoders.siglip.made import NUM_PIECES, SENTENCES, sentencepiece_model
from tests.huggingface.conftest import import_folder

torch = pytest.importorskip("torch", reason="folders of SigLIP are made with torch: pip install -e '.[test]'")
transformers = pytest.importorskip("transformers", reason="the extra [test] brings transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

LENGTH = 16
TEXT = dict(hidden_size=32, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4)
IMAGE = dict(
    hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=3, image_size=18, patch_size=4
)
TEXTS = [
    *SENTENCES,
    "a red square",
    "A  RED\tSquare, left of the green circle!",
    "  two spaces first",
    "\n\u00a0another space",
    "photo no. 123 of the café's naïve 東京 🙂 e\u0301",
    "x",
    "it's the photographer's; we'll see",
    "\u2581already \u2581\u2581 marked",
    "東京",
    "🙂🙂 red",
    "ＦＵＬＬ width ﬁ ½",
    "İstanbul ΣΑΣ straße",
    "a-b_c (d) [e] {f} <g> «h» … “i”",
    "zero\u200bwidth\ufeff and\u00adsoft",
    "the red green square circle photo " * 4,
    "1234567890" * 9,
]
# Nothing is left of them.
SAYING_NOTHING = ["", "   ", "?!", "\u2581", "..."]


def random_model(vocabulary_size: int, text: dict | None = None, image: dict | None = None):
    """transformers' SiglipModel with random numbers in every tensor."""
    texts = TEXT | dict(vocab_size=vocabulary_size, max_position_embeddings=LENGTH, projection_size=48) | (text or {})
    config = transformers.SiglipConfig(text_config=texts, vision_config=IMAGE | (image or {}))
    model = transformers.SiglipModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(center + 0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def model():
    return random_model(NUM_PIECES)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("siglip")
    model.save_pretrained(folder)
    (folder / "spiece.model").write_bytes(sentencepiece_model())
    transformers.SiglipTokenizer(str(folder / "spiece.model"), model_max_length=LENGTH).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "siglip"))


@pytest.fixture
def config(tmp_path) -> Config:
    return Config(encoder=SiglipConfig(path=str(tmp_path / "encoder")))


def change(file: Path, part: str | None = None, **values: object) -> None:
    stored = json.loads(file.read_text()) if file.exists() else {}
    (stored if part is None else stored[part]).update(values)
    file.write_text(json.dumps(stored))


def their_ids(folder: Path, texts: list[str], **options: object) -> list[list[int]]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True, **options).input_ids


def assert_same_vectors(encoder, model, folder, mean=(0.5,) * 3, std=(0.5,) * 3):
    side = model.config.vision_config.image_size
    images = np.random.default_rng(0).integers(0, 256, (5, side, side, 3), np.uint8)
    pixels = ((images / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
    with torch.no_grad():
        found = model(input_ids=torch.tensor(their_ids(folder, TEXTS)), pixel_values=torch.tensor(pixels))
    texts, seen = encoder.encode_texts(TEXTS), encoder.encode_images(images)
    np.testing.assert_allclose(texts, found.text_embeds.numpy(), atol=1e-4)
    np.testing.assert_allclose(seen, found.image_embeds.numpy(), atol=1e-4)
    logits = texts @ seen.T * np.exp(encoder.weights["logit_scale"]) + encoder.weights["logit_bias"]
    np.testing.assert_allclose(logits, found.logits_per_text.numpy(), atol=1e-4)
    # Not all alike, or equality would say little.
    assert min(np.std(texts, axis=0).mean(), np.std(seen, axis=0).mean()) > 2e-3


def test_the_command_makes_an_encoder_with_transformers_vectors(model, folder, tmp_path, capsys):
    processing = dict(size=dict(height=18, width=18), image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.25])
    change(folder / "preprocessor_config.json", **processing, resample=3, rescale_factor=1 / 255, do_normalize=True)
    (tmp_path / "config.py").write_text(
        "from ml_collections import ConfigDict\n\n\n"
        "def get_config():\n    return ConfigDict(dict(encoder=dict(family='siglip')))\n"
    )
    arguments = [f"--config={tmp_path}/config.py", f"--workdir={tmp_path}"]
    command = ["import", *arguments, f"--from={folder}"]
    assert main(command) == 0
    assert "imported the encoder" in capsys.readouterr().out
    encoder = load_encoder(tmp_path / "encoder")
    assert_same_vectors(encoder, model, folder, processing["image_mean"], processing["image_std"])
    assert main(command) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["train-encoder", *arguments]) == 2
    assert "config.encoder.family is 'siglip', which is not trained here" in capsys.readouterr().err


def test_half_precision_other_activation_and_epsilon(folder, tmp_path, config):
    model = random_model(NUM_PIECES, dict(hidden_act="gelu", layer_norm_eps=1e-3), dict(layer_norm_eps=1e-2)).half()
    model.save_pretrained(folder)
    import_folder(config, tmp_path, folder)
    assert_same_vectors(load_encoder(config.encoder.path), model.float(), folder)


@pytest.mark.slow
def test_a_layer_of_so400m_has_transformers_vectors(tmp_path, config, folder):
    """With heads of 72, and 384 pixels for 27 patches of 14."""
    shape = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=1, num_attention_heads=16)
    model = random_model(NUM_PIECES, shape | dict(projection_size=1152), shape | dict(image_size=384, patch_size=14))
    model.save_pretrained(folder)
    import_folder(config, tmp_path, folder)
    assert_same_vectors(load_encoder(config.encoder.path), model, folder)


def test_ids_of_sentencepiece_are_those_of_transformers(folder, tmp_path, config):
    import_folder(config, tmp_path, folder)
    tokenizer = load_encoder(config.encoder.path).tokenizer
    tokens, is_said = tokenizer(TEXTS + SAYING_NOTHING)
    assert tokens.tolist() == their_ids(folder, TEXTS + SAYING_NOTHING)
    assert is_said.tolist() == [True] * len(TEXTS) + [False] * len(SAYING_NOTHING)
    # A text that spells a special token stays text.
    spelled = ["a </s> red", "<unk>", "</s>"]
    tokens, _ = tokenizer(spelled)
    assert tokens.tolist() == their_ids(folder, spelled, split_special_tokens=True)


@pytest.mark.parametrize("is_lowered", [True, False])
def test_ids_with_other_case_are_those_of_transformers(folder, tmp_path, config, is_lowered):
    change(folder / "tokenizer_config.json", do_lower_case=is_lowered, pad_token="<unk>")
    import_folder(config, tmp_path, folder)
    tokens, _ = load_encoder(config.encoder.path).tokenizer(TEXTS)
    assert tokens.tolist() == their_ids(folder, TEXTS)


def gemma_tokenizer(**options: object):
    """SigLIP 2's: Gemma's, with a byte for what has no token."""
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += [*"\u2581abcdefghijklmnopqrstuvwxyzABC!,.", "re", "red"]
    vocabulary = {name: index for index, name in enumerate(names)}
    made = transformers.Siglip2Tokenizer(vocab=vocabulary, merges=[("r", "e"), ("re", "d")], **options)
    return made, len(names)


@pytest.mark.parametrize(
    "options",
    [
        dict(add_bos_token=False, add_eos_token=True, padding_side="right"),
        dict(add_bos_token=True, add_eos_token=True),
        dict(add_bos_token=False, add_eos_token=False, padding_side="left"),
    ],
    ids=["end", "start and end", "neither"],
)
def test_a_folder_with_a_tokenizer_json(tmp_path, config, options):
    folder = tmp_path / "siglip2"
    tokenizer, size = gemma_tokenizer(**options)
    model = random_model(size)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    import_folder(config, tmp_path, folder)
    encoder = load_encoder(config.encoder.path)
    assert encoder.tokenizer.format.file == "tokenizer.json"
    tokens, is_said = encoder.tokenizer([*TEXTS, ""])
    assert tokens.tolist() == their_ids(folder, [*TEXTS, ""])
    assert is_said.tolist() == [True] * len(TEXTS) + [False]
    assert_same_vectors(encoder, model, folder)


def test_ids_that_the_model_has_no_rows_for_are_refused(tmp_path, config):
    folder = tmp_path / "siglip2"
    tokenizer, size = gemma_tokenizer(add_bos_token=False, add_eos_token=True)
    random_model(size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    stored = json.loads((folder / "tokenizer.json").read_text())
    stored["post_processor"]["special_tokens"]["<eos>"]["ids"] = [size + 7]
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=f"its tokenizer has the id {size + 7}, its config.json says vocab_size {size}"):
        import_folder(config, tmp_path, folder)
    stored["post_processor"]["single"] = [{"Sequence": {"id": "A", "type_id": 0}}] + 3 * [
        {"SpecialToken": {"id": "<eos>", "type_id": 0}}
    ]
    stored["post_processor"]["special_tokens"]["<eos>"]["ids"] = [1]
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    change(folder / "config.json", "text_config", max_position_embeddings=3)
    with pytest.raises(UserError, match=r"puts 3 tokens around a text, .* text_config.max_position_embeddings 3: they"):
        import_folder(config, tmp_path, folder)


def test_a_folder_as_siglip_2_was_published(tmp_path, config):
    """With Gemma's class, which leaves the case of a text as it is, but SigLIP 2 was trained on lower case."""
    folder = tmp_path / "siglip2"
    tokenizer, size = gemma_tokenizer(add_bos_token=False, add_eos_token=True)
    random_model(size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    stored = json.loads((folder / "tokenizer.json").read_text())
    stored["normalizer"] = stored["normalizer"]["normalizers"][1]
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    flags = dict(add_bos_token=False, add_eos_token=True, padding_side="right", do_lower_case=True)
    change(folder / "tokenizer_config.json", tokenizer_class="GemmaTokenizer", **flags)
    import_folder(config, tmp_path, folder)
    lowered = [text.lower() for text in TEXTS]
    tokens, _ = load_encoder(config.encoder.path).tokenizer(lowered)
    assert tokens.tolist() == their_ids(folder, lowered)
    assert tokens[TEXTS.index("x")].tolist() == [tokens[TEXTS.index("x")][0], 1] + [0] * (LENGTH - 2)
    tokens_of_given, _ = load_encoder(config.encoder.path).tokenizer(["A RED Square"])
    assert tokens_of_given.tolist() == their_ids(folder, ["a red square"])


@pytest.mark.parametrize(("number", "method"), [(1, "lanczos3"), (2, "linear"), (3, "cubic")])
@pytest.mark.parametrize("side", [7, 40])
def test_pixels_are_resized_as_pillow_does(folder, tmp_path, config, number, method, side):
    change(folder / "preprocessor_config.json", size=dict(height=18, width=18), resample=number)
    import_folder(config, tmp_path, folder)
    encoder = load_encoder(config.encoder.path)
    assert encoder.resize == method
    # Of middle brightness: Pillow also clips between its two passes.
    images = np.random.default_rng(0).integers(96, 160, (2, side, side, 3), np.uint8)
    resized = np.stack([Image.fromarray(image).resize((18, 18), Image.Resampling(number)) for image in images])
    found = normalize_images(jnp.asarray(images), 18, encoder.normalization, encoder.resize)
    # It rounds to whole levels twice.
    np.testing.assert_allclose(found, resized / 127.5 - 1, atol=2.1 / 127.5)


def test_preprocessing_beside_that_of_texts(folder, tmp_path, config):
    """In the one processor_config.json that transformers writes of both."""
    module = "transformers.models.siglip.image_processing_pil_siglip"
    images = importlib.import_module(module).SiglipImageProcessorPil(
        size=dict(height=18, width=18), image_mean=[0.1, 0.2, 0.3], resample=2
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    transformers.SiglipProcessor(images, tokenizer).save_pretrained(folder)
    assert not (folder / "preprocessor_config.json").exists()
    import_folder(config, tmp_path, folder)
    encoder = load_encoder(config.encoder.path)
    assert (encoder.normalization.mean, encoder.normalization.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert encoder.resize == "linear"


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("text_config", dict(hidden_act="relu"), "text_config.hidden_act is 'relu', not 'gelu' or"),
        ("text_config", dict(projection_size=32), r"projection_size is 32, not 48, vision_config.hidden_size"),
        ("vision_config", dict(num_channels=4), "vision_config.num_channels is 4, not 3"),
        ("vision_config", dict(vision_use_head=False), "vision_config.vision_use_head is False, not true"),
        ("vision_config", dict(image_size=[16, 32]), r"vision_config.image_size is \[16, 32\], not a whole number"),
        ("vision_config", dict(patch_size=19), "vision_config.patch_size is 19, not a whole number from 1 to 18"),
        ("vision_config", dict(num_hidden_layers=3), r"vision_model.encoder.layers.2.layer_norm1.bias is absent"),
        ("text_config", dict(num_hidden_layers=2), r"text_model.encoder.layers.2.\S+ is \(32,\), .* to be absent"),
        ("vision_config", dict(intermediate_size=80), r"vision_model.\S+ is \(96,\), by config.json .* \(80,\)"),
        ("text_config", dict(vocab_size=20), r"its tokenizer has the id \d+, its config.json says vocab_size 20: they"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(folder, config, part, values, message):
    change(folder / "config.json", part, **values)
    with pytest.raises(UserError, match=message) as refused:
        import_folder(config, folder.parent, folder)
    assert "\n" not in str(refused.value)
    assert not Path(config.encoder.path).exists()


@pytest.mark.parametrize("name", ["vision_model.head.probe", "vision_model.head.attention.in_proj_bias", "logit_bias"])
def test_a_missing_tensor_is_named(folder, config, name):
    weights = safetensors_torch.load_file(folder / "model.safetensors")
    safetensors_torch.save_file(
        {key: value for key, value in weights.items() if key != name}, folder / "model.safetensors"
    )
    with pytest.raises(UserError, match=f"tensor {name} is absent"):
        import_folder(config, folder.parent, folder)


def test_what_is_missing_is_refused_in_a_line(folder, config):
    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message) as found:
            import_folder(config, folder.parent, folder)
        assert "\n" not in str(found.value)

    processing = folder / "preprocessor_config.json"
    change(processing, size=dict(height=18, width=32))
    refused("makes images of .*32.*, config.json says 18 pixels a side")
    change(processing, size=dict(height=18, width=18), resample=0)
    refused(r"resample is 0, not 1 \(Lanczos\), 2 \(bilinear\) or 3 \(bicubic\)")
    change(processing, resample=3, rescale_factor=1)
    refused("rescale_factor is 1.0, not 1/255")
    change(processing, rescale_factor=1 / 255, image_std=[1, 0, 1])
    refused("image_std is .* not 3 numbers above 0")
    processing.unlink()
    change(folder / "tokenizer_config.json", eos_token="<end>")
    refused("its tokenizer has no token <end>")
    change(folder / "tokenizer_config.json", eos_token="</s>", unk_token="\ud800")
    refused(r"the tokenizer in \S+ cannot be made \(not a string\)")
    (folder / "spiece.model").write_bytes(b"no model")
    refused("spiece.model is damaged")
    (folder / "spiece.model").unlink()
    refused("neither spiece.model nor tokenizer.json")
    (folder / "tokenizer.json").write_text("{}")
    refused("tokenizer.json is damaged")


def test_another_encoder_is_not_overwritten(folder, config):
    import_folder(config, folder.parent, folder)
    change(folder / "tokenizer_config.json", do_lower_case=False)
    with pytest.raises(UserError, match="holds another encoder than the folder's"):
        import_folder(config, folder.parent, folder)


def test_the_familys_name_in_the_config_is_no_condition(folder, tmp_path):
    """As the encoder's folder says its family, an imported one is found whatever the config's is."""
    config = Config(encoder=ClipConfig(path=str(tmp_path / "encoder")))
    import_folder(config, tmp_path, folder)
    assert load_encoder(config.encoder.path).family == "siglip"


def test_without_sentencepiece_a_line_says_what_to_install(folder, config, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match=r"spiece.model needs sentencepiece .*: pip install 'cm3leon_jax\[data\]'"):
        import_folder(config, folder.parent, folder)
