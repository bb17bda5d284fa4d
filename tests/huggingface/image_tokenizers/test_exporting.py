"""The run's image tokenizer in other projects: same codes and pixels, their names, and back to the same bits."""

from __future__ import annotations

import dataclasses
import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from cm3leon_jax.commands import export as export_command
from cm3leon_jax.config import Config
from cm3leon_jax.data.batches.config import BatchConfig
from cm3leon_jax.errors import UserError
from cm3leon_jax.image_tokenizers.vqgan.config import VQGANConfig
from cm3leon_jax.image_tokenizers.vqgan.model import abstract_vqgan
from cm3leon_jax.image_tokenizers.vqgan.tokenizer import VQGANTokenizer
from cm3leon_jax.named_parameters import parameters
from tests.huggingface.image_tokenizers import references
from tests.huggingface.image_tokenizers.references import CODES, CONFIG, SIDE
from tests.huggingface.image_tokenizers.test_importing import assert_same, imported


def exported(
    workdir: Path, name: str, config: VQGANConfig = CONFIG, dtype: str = "float32"
) -> tuple[VQGANTokenizer, Path]:
    config = dataclasses.replace(config, path=str(workdir / "ours"))
    rng = np.random.default_rng(0)
    arrays = {
        path: np.asarray(("scale" in path) + rng.normal(0, 0.1, value.shape), np.float32)
        for path, value in parameters(abstract_vqgan(config)).items()
    }
    tokenizer = VQGANTokenizer(config, arrays)
    tokenizer.save(config.path)
    output = workdir / name
    arguments = Namespace(output=str(output), format=name, family=None, dtype=dtype, shard_size="2GB")
    run = Config(image_tokenizer=config, batch=BatchConfig(sequence_length=2048))
    export_command.run(run, workdir, arguments)
    return tokenizer, output


def test_diffusers_loads_it_and_gives_the_same(tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="the extra [test] brings diffusers")
    tokenizer, folder = exported(tmp_path, "diffusers")
    model, info = diffusers.VQModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info[name] for name in info), info
    reference = references.of_diffusers(model.eval())
    assert_same(tokenizer, reference)
    # As docs/export.md has it.
    import torch

    codes = torch.tensor(np.random.default_rng(0).integers(0, CODES, (2, 4, 4)))
    with torch.no_grad():
        found = model.decode(codes, force_not_quantize=True, shape=(2, 4, 4, 6)).sample
        torch.testing.assert_close(found, reference.decode(codes))


@pytest.mark.parametrize("name", ["diffusers", "taming"])
def test_there_and_back_is_bit_for_bit(tmp_path, name):
    tokenizer, folder = exported(tmp_path, name)
    there = imported(folder, tmp_path / "there")
    assert there.fingerprint == tokenizer.fingerprint
    for path, value in tokenizer.weights.items():
        np.testing.assert_array_equal(there.weights[path], value, err_msg=path)


def conv(name: str, outputs: int, inputs: int, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs, size, size), f"{name}.bias": (outputs,)}


def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def block(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    found = norm(f"{name}.norm1", inputs) | conv(f"{name}.conv1", outputs, inputs, 3)
    found |= norm(f"{name}.norm2", outputs) | conv(f"{name}.conv2", outputs, outputs, 3)
    return found | (conv(f"{name}.nin_shortcut", outputs, inputs, 1) if inputs != outputs else {})


def attention(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    found = norm(f"{name}.norm", channels)
    for part in ("q", "k", "v", "proj_out"):
        found |= conv(f"{name}.{part}", channels, channels, 1)
    return found


def test_taming_has_its_names_and_config(tmp_path):
    """The state dict of a VQModel of taming-transformers of these sizes, written out."""
    _, folder = exported(tmp_path, "taming")
    expected = {
        **conv("encoder.conv_in", 32, 3, 3),
        **block("encoder.down.0.block.0", 32, 32),
        **conv("encoder.down.0.downsample.conv", 32, 32, 3),
        **block("encoder.down.1.block.0", 32, 64),
        **conv("encoder.down.1.downsample.conv", 64, 64, 3),
        **block("encoder.down.2.block.0", 64, 96),
        **attention("encoder.down.2.attn.0", 96),
        **block("encoder.mid.block_1", 96, 96),
        **attention("encoder.mid.attn_1", 96),
        **block("encoder.mid.block_2", 96, 96),
        **norm("encoder.norm_out", 96),
        **conv("encoder.conv_out", 12, 96, 3),
        **conv("decoder.conv_in", 96, 12, 3),
        **block("decoder.mid.block_1", 96, 96),
        **attention("decoder.mid.attn_1", 96),
        **block("decoder.mid.block_2", 96, 96),
        **block("decoder.up.0.block.0", 64, 32),
        **block("decoder.up.0.block.1", 32, 32),
        **block("decoder.up.1.block.0", 96, 64),
        **block("decoder.up.1.block.1", 64, 64),
        **conv("decoder.up.1.upsample.conv", 64, 64, 3),
        **block("decoder.up.2.block.0", 96, 96),
        **block("decoder.up.2.block.1", 96, 96),
        **attention("decoder.up.2.attn.0", 96),
        **attention("decoder.up.2.attn.1", 96),
        **conv("decoder.up.2.upsample.conv", 96, 96, 3),
        **norm("decoder.norm_out", 32),
        **conv("decoder.conv_out", 3, 32, 3),
        "quantize.embedding.weight": (CODES, 6),
        **conv("quant_conv", 6, 12, 1),
        **conv("post_quant_conv", 12, 6, 1),
    }
    found = safetensors.numpy.load_file(folder / "model.safetensors")
    assert {name: value.shape for name, value in found.items()} == expected
    yaml = pytest.importorskip("yaml")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    values = config["model"]["params"]["ddconfig"]
    assert values["ch_mult"] == [1, 2, 3] and values["attn_resolutions"] == [SIDE // 4]
    assert config["model"]["params"]["n_embed"] == CODES


def test_a_narrow_type_is_rounded_once(tmp_path):
    tokenizer, folder = exported(tmp_path, "taming", dtype="bfloat16")
    there = imported(folder, tmp_path / "there")
    import ml_dtypes

    for name, value in tokenizer.weights.items():
        np.testing.assert_array_equal(there.weights[name], value.astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("diffusers", dict(encoder="patch"), "encoder is 'patch' and can only be 'convolutional'"),
        ("taming", dict(mid_block=False), "mid_block is False and can only be True"),
        ("taming", dict(norm_groups=16), "norms have 16 groups and can only have 32"),
        ("diffusers", dict(base_channels=20), "norms have 20, 30 groups and can only have one number"),
    ],
)
def test_what_a_layout_cannot_express_is_named(tmp_path, name, changes, message):
    with pytest.raises(UserError, match=message):
        exported(tmp_path, name, dataclasses.replace(CONFIG, **changes))
    assert not (tmp_path / name).exists()


def test_other_groups_are_written_for_diffusers(tmp_path):
    _, folder = exported(tmp_path, "diffusers", dataclasses.replace(CONFIG, norm_groups=16))
    assert json.loads((folder / "config.json").read_text())["norm_num_groups"] == 16
