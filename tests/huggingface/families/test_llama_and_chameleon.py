"""Llama's and Chameleon's configs and weights give the logits of transformers; and a Llama is written as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from cm3leon_jax.checkpoints import abstract_on
from cm3leon_jax.errors import UserError
from cm3leon_jax.huggingface.decoders import read_parameters
from cm3leon_jax.huggingface.exporting import choose_family
from cm3leon_jax.huggingface.families import FAMILIES
from cm3leon_jax.huggingface.reading_weights import open_weights
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.models.config import ModelConfig
from cm3leon_jax.models.sharding import make_mesh, shardings
from cm3leon_jax.models.transformer import abstract_model
from tests.huggingface.conftest import ONE_DEVICE, assert_equal, at, import_folder, imported, logits

V, L, D, N, H, K, F = 96, 20, 32, 3, 4, 2, 48
LLAMA = dict(
    norm="rms", norm_scale_and_bias=True, gated=True, activation="silu", positions="rotary", tied_embeddings=False
)


def transformers_model(family: str, **changes: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = dict(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=N,
        num_attention_heads=H,
        num_key_value_heads=K,
        intermediate_size=F,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
    )
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    if family == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **changes))
    else:
        tokens = {f"IMGIMG{'ABCD'[i]}Z": i + 4 for i in range(4)} | {"<image>": 8}
        vq = dict(base_channels=32, embed_dim=8, num_embeddings=4, resolution=8, latent_channels=8, num_res_blocks=1)
        config = transformers.ChameleonConfig(**sizes, **changes, vocabulary_map=tokens, vq_config=vq)
        model = transformers.ChameleonForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def read_model(family: Any, stored: dict[str, Any], folder: Path) -> Any:
    """Our model of a folder."""
    fields = family.model_fields(StoredConfig(stored, "it"))
    config = ModelConfig(**fields, compute_dtype="float32", attention="xla")
    graph, abstract = abstract_model(config, V, L)
    placed = shardings(abstract, make_mesh(ONE_DEVICE))
    weights = open_weights(folder, family.ignored)
    found = read_parameters(family, abstract_on(abstract, placed), weights, {}, lambda name: None, folder)
    return nnx.merge(graph, found)


@pytest.mark.parametrize(
    ("family", "changes", "fields"),
    [
        ("llama", {}, {}),
        ("llama", dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True), dict(tied_embeddings=True)),
        ("llama", dict(rope_parameters=dict(rope_type="default", rope_theta=500_000.0)), dict(rotary_base=5e5)),
        ("chameleon", {}, dict(norm_position="input")),
        ("chameleon", dict(swin_norm=True), dict(norm_position="output")),
    ],
    ids=["llama", "llama-tied-with-biases", "llama-rotary-base", "chameleon-7b", "chameleon-34b"],
)
def test_logits_equal_those_of_transformers(tmp_path, family, changes, fields):
    torch = pytest.importorskip("torch")
    reference = transformers_model(family, **changes)
    reference.save_pretrained(tmp_path)
    model = read_model(FAMILIES.load(family), reference.config.to_dict(), tmp_path)
    assert all(getattr(model.config, name) == value for name, value in fields.items())
    tokens = np.random.default_rng(0).integers(10, V, (2, L))
    found = logits(model, tokens)
    with torch.no_grad():
        expected = reference(torch.tensor(tokens)).logits.numpy()
    if family == "chameleon":
        # Transformers lets it answer with text alone.
        is_masked = expected[0, 0] == np.finfo(np.float32).min
        found, expected = found[..., ~is_masked], expected[..., ~is_masked]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", dict(rope_scaling=dict(rope_type="yarn", factor=8.0)), "rope_scaling.rope_type is 'yarn'"),
        ("llama", dict(rope_scaling=dict(type="dynamic", factor=2.0)), "rope_scaling.type is 'dynamic'"),
        ("llama", dict(rope_parameters=dict(rope_type="linear")), "rope_parameters.factor is None"),
        ("llama", dict(attention_bias=True), "mlp_bias is False"),
        ("llama", dict(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
        ("llama", dict(hidden_act="mish"), "hidden_act is 'mish'"),
    ],
)
def test_what_no_field_says_is_refused(family, changes, message):
    sizes = dict(hidden_size=D, num_hidden_layers=N, num_attention_heads=H, intermediate_size=F, mlp_bias=False)
    with pytest.raises(UserError, match=message):
        FAMILIES.load(family).model_fields(StoredConfig(sizes | changes, "it"))


@pytest.mark.parametrize(
    "changes", [{}, dict(num_key_value_heads=2, biases=True, rotary_base=5e5, tied_embeddings=True)]
)
def test_a_llama_is_exported_as_one_and_comes_back(make_run, tmp_path, changes):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    run = make_run(**LLAMA | changes)
    folder = run.export(shard_size="20KB")
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(theirs).__name__ == "LlamaForCausalLM" and not any(info[name] for name in info), info
    tokens = np.random.default_rng(0).integers(0, run.vocabulary.size, (3, 32))
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(run.logits(tokens), expected, atol=1e-4)
    there = at(run.config, tmp_path / "there")
    import_folder(there, tmp_path / "there", folder)
    assert_equal(imported(there, tmp_path / "there")[0], nnx.state(run.model))


def test_export_chooses_the_family_that_fits():
    assert choose_family(ModelConfig()).model_type == "opt"
    assert choose_family(ModelConfig(**LLAMA)).model_type == "llama"
    with pytest.raises(UserError, match=r"\(llama\) cannot express.*query_key_norm is 'layer' and can only be 'none'"):
        choose_family(ModelConfig(**LLAMA, query_key_norm="layer"), "llama")
    with pytest.raises(UserError, match="--family=clip can only be imported"):
        choose_family(ModelConfig(), "clip")
    chameleon = ModelConfig(**LLAMA, query_key_norm="layer", query_key_norm_per_head=True)
    assert choose_family(chameleon).model_type == "chameleon"
    with pytest.raises(UserError, match="did you mean 'llama'"):
        choose_family(ModelConfig(), "lama")
