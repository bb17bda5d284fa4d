"""Chameleon in folders of its authors, written here as shards: the same run as from a folder of transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm3leon_jax.errors import UserError
from cm3leon_jax.huggingface.families.chameleon_of_meta import merged, open_shards
from cm3leon_jax.vocabulary import Vocabulary
from tests.huggingface.conftest import assert_equal, at, import_folder, imported
from tests.huggingface.families.test_chameleon import KINDS, config_of, reference, save, their_model

torch = pytest.importorskip("torch")

HEADS, SIZE = 4, 8
NAMES = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{name}_proj": f"attention.w{name}" for name in "qkvo"},
    **{f"self_attn.{name}_norm": f"attention.{name}_normalization" for name in "qk"},
    **{"mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3"},
    **{"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output", "model.layers": "layers"},
}


def in_pairs(tensor: Any) -> Any:
    """Numbers of which halves are turned together, with each pair side by side."""
    return tensor.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)


def share_norms(model: Any, num_shards: int) -> None:
    """Has the heads of a shard share the norms of queries and keys, as the authors' shards have them."""
    for layer in model.model.layers:
        for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
            for parameter in norm.parameters():
                per_shard = len(parameter) // num_shards
                parameter.data = parameter.data[::per_shard].repeat_interleave(per_shard, dim=0)


def write_shards(model: Any, folder: Path, num_shards: int, **params: Any) -> Path:
    """The folder of a model as its authors have it, with the tokenizers beside it; returns it."""
    shards: list[dict[str, Any]] = [{"rope.freqs": torch.ones(4)} for _ in range(num_shards)]
    for name, tensor in model.state_dict().items():
        if "vqmodel" in name:
            continue
        for theirs, meta in NAMES.items():
            name = name.replace(theirs, meta)
        if ".wq." in name or ".wk." in name:
            tensor = torch.cat([in_pairs(head) for head in tensor.split(SIZE)])
        if "_normalization" in name:
            parts = [in_pairs(each[0]) for each in tensor.chunk(num_shards)]
        elif "norm" in name:
            parts = [tensor] * num_shards
        else:
            columns = any(each in name for each in ("tok_embeddings", ".wo.", ".w2."))
            parts = list(tensor.chunk(num_shards, dim=int(columns)))
        for shard, part in zip(shards, parts, strict=True):
            shard[name] = part.clone()
    models, tokenizer = folder / "models" / "tiny", folder / "tokenizer"
    models.mkdir(parents=True)
    for number, shard in enumerate(shards):
        torch.save(shard, models / ("consolidated.pth" if num_shards == 1 else f"consolidated.{number:02d}.pth"))
    config = model.config
    values = dict(model_parallel_size=num_shards, dim=32, n_layers=3, n_heads=HEADS, norm_eps=1e-5, vocab_size=-1)
    values |= dict(n_kv_heads=config.num_key_value_heads, qk_normalization=True, swin_norm=config.swin_norm)
    (models / "params.json").write_text(json.dumps({"model": values | params}))
    tokenizer.mkdir()
    torch.save({"state_dict": reference().tensors}, tokenizer / "vqgan.ckpt")
    return models


@pytest.mark.parametrize(("kind", "num_shards"), [("7b", 1), ("34b", 2)])
def test_it_is_the_run_that_the_folder_of_transformers_gives(make_run, tmp_path, kind, num_shards):
    theirs, one, other = their_model(**KINDS[kind]), tmp_path / "one", tmp_path / "other"
    share_norms(theirs, num_shards)
    folder = save(theirs, tmp_path / "theirs")
    models = write_shards(theirs, tmp_path / "meta", num_shards)
    (folder / "tokenizer.json").rename(tmp_path / "meta" / "tokenizer" / "text_tokenizer.json")
    (folder / "tokenizer.json").write_text((tmp_path / "meta" / "tokenizer" / "text_tokenizer.json").read_text())
    config = config_of(make_run(), folder, one)
    import_folder(config, one, folder)
    import_folder(at(config, other), other, models)
    expected, meta = imported(config, one)
    found, same = imported(at(config, other), other)
    assert_equal(found, expected)
    assert meta["vocabulary"] == same["vocabulary"] == Vocabulary.load(other / "vocabulary").fingerprint
    assert meta["corpus"] == same["corpus"] and same["corpus"]["image_tokenizer"]


def test_parts_of_merged_tensors(tmp_path):
    theirs = their_model(**KINDS["34b"])
    share_norms(theirs, 2)
    tensors = merged(open_shards(write_shards(theirs, tmp_path, 2)), HEADS, 2)
    state = {name: tensor for name, tensor in theirs.state_dict().items() if "vqmodel" not in name}
    assert tensors.keys() == state.keys()
    for name, expected in state.items():
        shape = tuple(expected.shape)
        assert tensors[name].shape == shape and tensors[name].name == name
        # Across the border between shards, and within one; whole heads.
        for index in [(slice(8, 24), slice(1, 3)), (slice(0, 8), slice(9, 30)), (slice(None), slice(20, 30))]:
            index = index[: len(shape)] if "_norm" not in name or len(shape) == 1 else (slice(1, 2), slice(2, 5))
            np.testing.assert_array_equal(tensors[name].read(index), expected.numpy()[index], err_msg=name)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (dict(num_experts=8), r"params.json: model.num_experts is 8, which this package's model cannot express$"),
        (dict(qk_normalization=False), "model.qk_normalization is False"),
        (dict(norm_eps=1e-6), "params.json: rms_norm_eps is 1e-06"),
        (dict(n_heads="4"), "params.json: model.n_heads is '4', not a whole number"),
    ],
)
def test_fields_that_nothing_is_known_of_are_refused(make_run, tmp_path, params, message):
    theirs = their_model()
    config = config_of(make_run(), save(theirs, tmp_path / "theirs"), tmp_path / "there")
    models = write_shards(theirs, tmp_path / "meta", 1, **params)
    with pytest.raises(UserError, match=message):
        import_folder(config, tmp_path / "there", models)


def test_what_is_missing_is_named(make_run, tmp_path):
    theirs, there = their_model(), tmp_path / "there"
    folder = save(theirs, tmp_path / "theirs")
    config = config_of(make_run(), folder, there)
    models = write_shards(theirs, tmp_path / "meta", 2)
    with pytest.raises(UserError, match=r"no tokenizer/text_tokenizer.json in it or in the two folders around it"):
        import_folder(config, there, models)
    tokenizer = tmp_path / "meta" / "tokenizer"
    (folder / "tokenizer.json").rename(tokenizer / "text_tokenizer.json")
    (tokenizer / "vqgan.ckpt").unlink()
    with pytest.raises(UserError, match=r"no image tokenizer that makes images.*vqgan.ckpt by --image-tokenizer"):
        import_folder(config, there, models)
    shard = torch.load(models / "consolidated.01.pth")
    torch.save(
        {name: tensor for name, tensor in shard.items() if name != "norm.weight"}, models / "consolidated.01.pth"
    )
    with pytest.raises(UserError, match=r"consolidated.00.pth do not both have norm.weight"):
        import_folder(config, there, models)
    (models / "consolidated.00.pth").unlink()
    with pytest.raises(UserError, match=r"its shards are consolidated.01.pth, not consolidated.pth or"):
        import_folder(config, there, models)
    assert not (there / "checkpoints").exists()
