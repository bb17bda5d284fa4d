"""Image tokenizers of other projects give their codes and pixels here; what is none is refused in one line."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm3leon_jax.commands import import_ as import_command
from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.config import BatchConfig
from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.errors import UserError
from cm3leon_jax.image_tokenizers.base import ImageTokenizer, load_image_tokenizer
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig
from cm3leon_jax.image_tokenizers.vqgan.tokenizer import VQGANTokenizer
from cm3leon_jax.squaring import Squaring
from tests.huggingface.image_tokenizers import references
from tests.huggingface.image_tokenizers.references import CONFIG, SIDE, Reference, save

pytest.importorskip("torch", reason="parity needs torch: pip install -e '.[test]'")


def imported(source: Path, workdir: Path, scaled_by: str = "lanczos", **changes: Any) -> ImageTokenizer:
    path = workdir / "image_tokenizer"
    tokenizer: VQGANConfig = dataclasses.replace(CONFIG, path=str(path), **changes)
    corpus = CorpusConfig(squaring=Squaring(filter=scaled_by))
    config = Config(corpus=corpus, image_tokenizer=tokenizer, batch=BatchConfig(sequence_length=64))
    import_command.run(config, workdir, Namespace(source=None, image_tokenizer=str(source)))
    return load_image_tokenizer(path)


def assert_same(tokenizer: ImageTokenizer, reference: Reference) -> None:
    """Codes are equal, and pixels within one level."""
    import torch

    # Under one config, for which the encoder and the decoder are compiled once.
    tokenizer = VQGANTokenizer(CONFIG, tokenizer.weights)
    pixels = references.images()
    with torch.no_grad():
        theirs = torch.tensor(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        codes = reference.encode(theirs)
        assert len(np.unique(codes)) > 5
        np.testing.assert_array_equal(tokenizer.encode(pixels), codes.numpy())
        grid = tokenizer.config.grid
        decoded = reference.decode(codes.reshape(-1, grid, grid)).permute(0, 2, 3, 1).numpy()
    expected = np.round((np.clip(decoded, -1, 1) + 1) * 127.5)
    assert expected.std() > 10
    assert np.abs(tokenizer.decode(codes.numpy()) - expected).max() <= 1


def test_chameleon_of_transformers(tmp_path):
    reference = references.chameleon()
    config = {"model_type": "chameleon", "vq_config": {"resolution": SIDE}}
    folder = save(tmp_path / "theirs", reference.tensors, "model.vqmodel.", config)
    assert_same(imported(folder, tmp_path), reference)


@pytest.mark.parametrize("container", [None, "state_dict", "model"])
def test_a_checkpoint_of_taming(tmp_path, container):
    import torch

    reference = references.of_diffusers(references.diffusers_model())
    # It was trained with other models, and knows how far.
    tensors = references.taming_names(reference.tensors) | {"loss.logvar": torch.zeros(()), "loss.n": torch.tensor(3)}
    file = tmp_path / "last.ckpt"
    torch.save(tensors if container is None else {container: tensors, "epoch": 3, "global_step": 100}, file)
    assert_same(imported(file, tmp_path, scaled_by="bilinear"), reference)


def test_janus_of_transformers(tmp_path):
    reference = references.janus()
    config = {"model_type": "janus", "vq_config": {"channel_multiplier": [1, 2, 3], "num_patches": SIDE // 4}}
    folder = save(tmp_path / "theirs", reference.tensors, "model.vqmodel.", config)
    assert_same(imported(folder, tmp_path, scaled_by="bicubic"), reference)


@pytest.mark.parametrize("prefix", ["", "gen_vision_model."])
def test_llamagen_and_janus_as_published(tmp_path, prefix):
    import torch

    reference = references.janus()
    tensors = references.llamagen_names(reference.tensors) | {"quantize.codebook_used": torch.zeros(10)}
    others = {"language_model.norm.weight": torch.zeros(3)} if prefix else {}
    named = {prefix + name: tensor for name, tensor in tensors.items()} | others
    if prefix:
        source = save(tmp_path / "theirs", named, config={"model_type": "multi_modality"})
    else:
        source = tmp_path / "vq_ds4_c2i.pt"
        torch.save({"model": named}, source)
    assert_same(imported(source, tmp_path, scaled_by="bicubic"), reference)


@pytest.mark.parametrize("has_earlier_names", [False, True])
def test_diffusers(tmp_path, has_earlier_names):
    model = references.diffusers_model()
    reference = references.of_diffusers(model)
    folder = tmp_path / "theirs"
    model.save_pretrained(folder)
    if has_earlier_names:
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        tensors = {}
        for name, tensor in reference.tensors.items():
            for today, earlier in names.items():
                name = name.replace(f".{today}.", f".{earlier}.")
            tensors[name] = tensor
        (folder / "diffusion_pytorch_model.safetensors").unlink()
        save(folder, tensors)
    assert_same(imported(folder, tmp_path), reference)


def test_a_second_import_changes_nothing_and_another_is_refused(tmp_path):
    import torch

    tensors = references.taming_names(references.diffusers_model().state_dict())
    folder = save(tmp_path / "theirs", tensors)
    first = imported(folder, tmp_path).fingerprint
    assert imported(folder, tmp_path).fingerprint == first
    tensors["encoder.conv_in.bias"] = tensors["encoder.conv_in.bias"] + torch.ones(())
    with pytest.raises(UserError, match=r"config.image_tokenizer.path .* holds another image tokenizer"):
        imported(save(tmp_path / "other", tensors), tmp_path)
    assert load_image_tokenizer(tmp_path / "image_tokenizer").fingerprint == first


def test_one_line_names_all_that_the_config_would_have_to_be(tmp_path):
    folder = save(tmp_path / "theirs", references.taming_names(references.diffusers_model().state_dict()))
    with pytest.raises(UserError) as refused:
        imported(
            folder,
            tmp_path,
            base_channels=64,
            channel_multipliers=(1, 1, 4),
            attention_resolutions=(SIDE,),
            num_res_blocks=2,
            encoder="patch",
        )
    message = str(refused.value)
    assert "\n" not in message and message.count("config.") == 5
    for phrase in (
        "base_channels is 64, it has 32",
        "channel_multipliers is (1, 1, 4), it has (1, 2, 3)",
        f"attention_resolutions is ({SIDE},), it has ({SIDE // 4},)",
        "num_res_blocks is 2, it has 1",
        "encoder is 'patch', it has 'convolutional'",
    ):
        assert phrase in message
    assert not (tmp_path / "image_tokenizer" / "config.json").exists()


# Parameters of every part; without those of the encoder's blocks it would be another architecture.
NAMES = [
    "encoder.mid.attn_1.q.bias",
    "encoder.down.0.downsample.conv.weight",
    "post_quant_conv.weight",
    "decoder.up.0.block.1.norm2.weight",
    "decoder.conv_out.bias",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_a_wrong_and_an_unknown_tensor_are_named(tmp_path, name):
    tensors = references.taming_names(references.diffusers_model().state_dict())
    changes = {
        rf"tensor {name} is \(.*has to be \(": tensors | {name: tensors[name][:-1]},
        rf"tensor {name}\.more is \(.*has to be absent": tensors | {f"{name}.more": tensors[name].clone()},
        rf"tensor {name} is absent": {other: tensor for other, tensor in tensors.items() if other != name},
    }
    for number, (message, changed) in enumerate(changes.items()):
        with pytest.raises(UserError, match=message) as refused:
            imported(save(tmp_path / str(number), changed), tmp_path)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["encoder.conv_in.weight", "quantize.embedding.weight", "encoder.conv_out.weight"])
def test_a_tensor_that_tells_the_architecture_is_named_where_it_is_missing(tmp_path, name):
    tensors = references.taming_names(references.diffusers_model().state_dict())
    del tensors[name]
    with pytest.raises(UserError, match=f"there is no tensor {name}: this is no whole VQModel of taming"):
        imported(save(tmp_path / "theirs", tensors), tmp_path)


def test_an_encoder_alone_is_refused(tmp_path):
    tensors = {name: x for name, x in references.chameleon().tensors.items() if not name.startswith("decoder.")}
    folder = save(tmp_path / "theirs", tensors, "model.vqmodel.", {"model_type": "chameleon"})
    with pytest.raises(UserError, match=r"no decoder.*--image-tokenizer \(Chameleon's vqgan.ckpt\)$"):
        imported(folder, tmp_path)


class Callback:
    """What a training program keeps in its checkpoints."""


def test_a_whole_lightning_pickle_is_refused_in_one_line(tmp_path):
    import torch

    tensors = references.taming_names(references.diffusers_model().state_dict())
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": tensors, "callbacks": {Callback: {}}, "pytorch-lightning_version": "1.0.8"}, file)
    with pytest.raises(UserError, match=r"last.ckpt is refused.*Callback.*docs/export.md") as refused:
        imported(file, tmp_path)
    assert "\n" not in str(refused.value)


def test_another_filter_than_that_of_the_weights_is_refused(tmp_path):
    folder = save(tmp_path / "theirs", references.llamagen_names(references.janus().tensors))
    with pytest.raises(UserError, match=r"squaring\.filter is 'lanczos', it has 'bicubic'"):
        imported(folder, tmp_path)


def test_what_has_no_image_tokenizer_is_refused(tmp_path):
    import torch

    folder = save(tmp_path / "theirs", {"model.embed_tokens.weight": torch.zeros(3, 3)})
    with pytest.raises(UserError, match=r"has no image tokenizer: it has none of the tensors of"):
        imported(folder, tmp_path)
    with pytest.raises(UserError, match="nothing to import"):
        import_command.run(Config(), tmp_path, Namespace(source=None, image_tokenizer=None))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "chameleon", "vq_config": {"double_latent": True}}, "double_latent is True"),
        ({"model_type": "chameleon", "vq_config": {"attn_type": "None"}}, "attn_type is 'None'"),
        ({"model_type": "chameleon"}, f"resolution is {SIDE}, it has 512"),
        ({"_class_name": "VQModel", "act_fn": "relu"}, "act_fn is 'relu'"),
        ({"_class_name": "VQModel", "norm_type": "spatial"}, "norm_type is 'spatial'"),
        ({"_class_name": "VQModel", "norm_num_groups": 16}, "norm_groups is 32, it has 16"),
    ],
)
def test_what_weights_do_not_say_is_read_from_their_config(tmp_path, config, message):
    model = references.diffusers_model().state_dict()
    tensors = model if "_class_name" in config else references.taming_names(model)
    with pytest.raises(UserError, match=message):
        imported(save(tmp_path / "theirs", tensors, config=config), tmp_path)
