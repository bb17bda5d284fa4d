"""Folders of Llama 2 and 3, SmolLM2, Mistral and Qwen in and out: logits, greedy tokens, bits; and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from flax import nnx

from cm3leon_jax import config_file
from cm3leon_jax.checkpoints import abstract_on
from cm3leon_jax.errors import UserError
from cm3leon_jax.huggingface.decoders import model_differences, read_parameters
from cm3leon_jax.huggingface.exporting import choose_family
from cm3leon_jax.huggingface.families import FAMILIES
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.models.config import ModelConfig
from cm3leon_jax.models.sharding import make_mesh, shardings
from cm3leon_jax.models.transformer import Transformer, abstract_model
from cm3leon_jax.vocabulary import Vocabulary
from tests.huggingface.conftest import ONE_DEVICE, TEXTS, assert_equal, at, greedy, import_folder, imported, logits

transformers = pytest.importorskip("transformers", reason="the extra [test] brings transformers")
torch = pytest.importorskip("torch", reason="folders are made with torch: pip install -e '.[test]'")

LENGTH, ROWS = 96, 128
TINY = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48)
# With heads 8 wide and this base: a pair of each kind, and one in between.
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=10_000.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
LINEAR = dict(rope_type="linear", rope_theta=1000.0, factor=2.0)

# The class of the model in transformers, and what its config says besides the sizes.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("Llama", dict(num_key_value_heads=4)),
    "llama3": ("Llama", dict(rope_parameters=LLAMA3, tie_word_embeddings=True)),
    "linear": ("Llama", dict(rope_parameters=LINEAR)),
    "biases": ("Llama", dict(attention_bias=True, mlp_bias=True)),
    "smollm2": ("Llama", dict(num_attention_heads=3, num_key_value_heads=1, hidden_size=24, tie_word_embeddings=True)),
    "wide heads": ("Llama", dict(head_dim=12)),
    "mistral": ("Mistral", dict(sliding_window=None)),
    "mistral with a window": (
        "Mistral",
        dict(sliding_window=LENGTH, hidden_size=24, num_attention_heads=10, head_dim=4),
    ),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    "qwen2 untied": ("Qwen2", dict(use_sliding_window=True, sliding_window=LENGTH, max_window_layers=1)),
    "qwen3": ("Qwen3", dict(head_dim=16)),
    "qwen3 tied": ("Qwen3", dict(tie_word_embeddings=True, head_dim=8)),
}
# One layer as published: width, heads, key/value heads, feed-forward width.
TRUE_LAYERS: dict[str, tuple[str, tuple[int, int, int, int], dict[str, Any]]] = {
    "SmolLM2-135M": ("Llama", (576, 9, 3, 1536), dict(rope_parameters=dict(rope_type="default", rope_theta=1e5))),
    "Llama-3.2-1B": ("Llama", (2048, 32, 8, 8192), dict(rope_parameters=LLAMA3 | dict(rope_theta=5e5, factor=32.0))),
    "Llama-2-7B": ("Llama", (4096, 32, 32, 11008), dict()),
    "Mistral-7B": ("Mistral", (4096, 32, 8, 14336), dict(sliding_window=4096)),
    "Qwen2.5-0.5B": ("Qwen2", (896, 14, 2, 4864), dict(rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    "Qwen3-0.6B": ("Qwen3", (1024, 16, 8, 3072), dict(rope_parameters=dict(rope_type="default", rope_theta=1e6))),
}


def their_model(kind: str, **changes: Any) -> Any:
    """A model of transformers with random numbers in every tensor, also where an initialization has zeros or ones."""
    config = getattr(transformers, f"{kind}Config")(
        **TINY | dict(vocab_size=ROWS, max_position_embeddings=256) | changes
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                # Layers that outweigh the embedding they add to: a tied head would repeat the last token.
                is_table = "embed" in name or "lm_head" in name
                parameter.normal_(std=(1.0 if is_table else 2.0) * parameter.shape[-1] ** -0.5)
    return model.eval()


def our_model(folder: Path) -> Transformer:
    """The model of a folder, whose vocabulary is that of its rows."""
    stored = json.loads((folder / "config.json").read_text())
    family, where = FAMILIES.load(stored["model_type"]), StoredConfig(stored, f"{folder}/config.json")
    fields = family.model_fields(where)
    config = ModelConfig(**fields, compute_dtype="float32", attention="xla", remat="none")
    graph, abstract = abstract_model(config, stored["vocab_size"], LENGTH)
    placed = abstract_on(abstract, shardings(abstract, make_mesh(ONE_DEVICE)))
    weights = family.open_weights(folder, fields)
    return nnx.merge(graph, read_parameters(family, placed, weights, {}, lambda name: None, folder))


def check_parity(theirs: Any, folder: Path, num_tokens: int) -> None:
    """Compares the logits of a folder with those of the model it is of, and what both answer greedily."""
    model = our_model(folder)
    tokens = np.random.default_rng(0).integers(0, ROWS, (2, LENGTH))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(logits(model, tokens), expected, atol=1e-4)
    prompt = tokens[:1, :8]
    theirs.generation_config.eos_token_id = None
    answer = theirs.generate(torch.tensor(prompt), do_sample=False, max_new_tokens=num_tokens)[0, 8:].tolist()
    assert len(set(answer)) > 4, "an answer that repeats itself shows little"
    assert greedy(model, prompt[0].tolist(), num_tokens) == answer


@pytest.mark.parametrize("name", KINDS)
def test_logits_and_greedy_tokens_equal_those_of_transformers(tmp_path, name):
    kind, changes = KINDS[name]
    theirs = their_model(kind, **changes)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    check_parity(theirs, tmp_path, num_tokens=80)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRUE_LAYERS)
def test_one_layer_of_the_true_shape(tmp_path, name):
    kind, (width, heads, key_value_heads, ffn_dim), changes = TRUE_LAYERS[name]
    sizes = dict(hidden_size=width, num_attention_heads=heads, num_key_value_heads=key_value_heads)
    theirs = their_model(kind, **sizes, intermediate_size=ffn_dim, num_hidden_layers=1, **changes)
    theirs.save_pretrained(tmp_path)
    check_parity(theirs, tmp_path, num_tokens=16)


OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3": ("Llama", dict(rotary_scaling="llama3", rotary_original_length=16, rotary_base=5e5)),
    "linear": ("Llama", dict(rotary_scaling="linear", rotary_scaling_factor=3.0, tied_embeddings=True)),
    "grouped heads of their own width": ("Llama", dict(num_key_value_heads=2, head_size=12)),
    "heads that do not divide the width": ("Mistral", dict(num_heads=3, head_size=12)),
    "biases of q, k, v": ("Qwen2", dict(query_key_value_biases=True, num_key_value_heads=1)),
    "biases of q, k, v, tied": ("Qwen2", dict(query_key_value_biases=True, tied_embeddings=True)),
    "normalized queries and keys": ("Qwen3", dict(query_key_norm="rms", head_size=16)),
}
LLAMA = dict(
    norm="rms", norm_scale_and_bias=True, gated=True, activation="silu", positions="rotary", tied_embeddings=False
)


@pytest.mark.parametrize("name", OURS)
def test_an_export_is_the_same_model_in_transformers_and_comes_back_bit_for_bit(make_run, tmp_path, name):
    kind, changes = OURS[name]
    run = make_run(**LLAMA | changes)
    folder = run.export(shard_size="20KB")
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(theirs).__name__ == f"{kind}ForCausalLM" and not any(info[name] for name in info), info
    tokens = np.random.default_rng(0).integers(0, run.vocabulary.size, (3, 32))
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(tokens)).logits.numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(run.logits(tokens), expected, atol=1e-4)
    there = at(run.config, tmp_path / "there")
    import_folder(there, tmp_path / "there", folder)
    assert_equal(imported(there, tmp_path / "there")[0], nnx.state(run.model))
    again = dataclasses.replace(run, config=there, workdir=tmp_path / "there").export(shard_size="20KB")
    for file in (*folder.glob("*.safetensors"), folder / "config.json"):
        assert file.read_bytes() == (again / file.name).read_bytes()


@pytest.mark.parametrize("name", ["smollm2", "qwen2 untied"])
def test_a_text_model_is_imported_with_its_tokenizer_and_keeps_its_logits(make_run, tmp_path, name):
    kind, changes = KINDS[name]
    theirs = their_model(kind, vocab_size=320, **changes)
    folder = tmp_path / "text"
    theirs.save_pretrained(folder, max_shard_size="20KB")
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(TEXTS * 4, vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    base = make_run()
    stored = json.loads((folder / "config.json").read_text())
    fields = FAMILIES.load(kind.lower()).model_fields(StoredConfig(stored, "it"))
    config = dataclasses.replace(
        at(base.config, tmp_path / "there"),
        model=ModelConfig(**fields, compute_dtype="float32", attention="xla", remat="none"),
        vocabulary=dataclasses.replace(at(base.config, tmp_path / "there").vocabulary, num_text_tokens=319),
        batch=dataclasses.replace(base.config.batch, sequence_length=LENGTH),
        mesh=ONE_DEVICE,
    )
    import_folder(config, tmp_path / "there", folder)
    vocabulary = Vocabulary.load(config.vocabulary.path)
    assert (vocabulary.end, vocabulary.num_text_tokens, vocabulary.first_image_code) == (0, 319, 323)
    parameters, _ = imported(config, tmp_path / "there")
    graph, _ = abstract_model(config.model, vocabulary.size, LENGTH)
    model = nnx.merge(graph, parameters)
    ids = [vocabulary.end, *vocabulary.encode_text(TEXTS[0]), vocabulary.end]
    assert ids == [0, *tokenizer.encode(TEXTS[0]).ids, 0]
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits.numpy()
    found = logits(model, np.array([ids]))
    np.testing.assert_allclose(found[..., :320], expected, atol=1e-4)
    # New ids are as likely as others, so that none takes over what a text model says.
    new = found[..., 320:]
    assert 0.5 < new.std() / expected.std() < 2 and new.max() < expected.max() + 2 * expected.std()


def test_the_config_for_smollm2_is_that_of_its_folder(tmp_path):
    config = config_file.load("configs/smollm2_135m_images.py", str(tmp_path))
    stored = transformers.LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=100_000,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    ).to_dict()
    assert model_differences(config.model, FAMILIES.load("llama").model_fields(StoredConfig(stored, "it"))) == []
    for pod in ("v5e-16", "v6e-16", "h100-8"):
        placed = config_file.load(f"configs/smollm2_135m_images.py:{pod}", str(tmp_path))
        assert placed.mesh.replica == int(pod.partition("-")[2]) and placed.model.num_layers == 30


def test_a_stored_head_that_is_tied_is_not_read(tmp_path):
    theirs = their_model("Qwen2", tie_word_embeddings=True)
    state = theirs.state_dict()
    state["lm_head.weight"] = torch.full_like(state["lm_head.weight"], 9.0)
    theirs.config.save_pretrained(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    tokens = np.random.default_rng(0).integers(0, ROWS, (2, 20))
    expected = theirs(torch.tensor(tokens)).logits.detach().numpy()
    np.testing.assert_allclose(logits(our_model(tmp_path), tokens), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "changes", "window"),
    [
        ("Mistral", dict(sliding_window=31), 31),
        ("Mistral", dict(sliding_window=32), None),
        ("Qwen2", dict(query_key_value_biases=True, use_sliding_window=True, sliding_window=8), 8),
        ("Qwen2", dict(query_key_value_biases=True, use_sliding_window=False, sliding_window=8), None),
        ("Qwen3", dict(query_key_norm="rms", use_sliding_window=True, sliding_window=8), 8),
    ],
)
def test_a_window_shorter_than_the_rows_is_refused(make_run, tmp_path, kind, changes, window):
    ours = {name: value for name, value in changes.items() if name.startswith("query_key")}
    run = make_run(**LLAMA | ours)
    folder, config = run.export(family=kind.lower()), at(run.config, tmp_path / "there")
    stored = json.loads((folder / "config.json").read_text())
    stored |= {name: value for name, value in changes.items() if name not in ours}
    (folder / "config.json").write_text(json.dumps(stored))
    if window is None:
        import_folder(config, tmp_path / "there", folder)
        return
    message = (
        rf"a token attends to {window} tokens \(sliding_window\).*sequence_length 32: set that to at most {window}$"
    )
    with pytest.raises(UserError, match=message):
        import_folder(config, tmp_path / "there", folder)
    assert not (tmp_path / "there" / "checkpoints").exists()


def test_windows_that_a_config_does_not_name():
    # As transformers has it.
    for kind, changes in (("mistral", {}), ("qwen2", dict(use_sliding_window=True)), ("qwen2", {}), ("qwen3", {})):
        theirs = getattr(transformers, f"{kind.capitalize()}Config")(**changes).sliding_window
        assert FAMILIES.load(kind).attention_window(StoredConfig(changes, "it")) == theirs
        for value in (None, 77):
            given = changes | dict(sliding_window=value)
            theirs = getattr(transformers, f"{kind.capitalize()}Config")(**given).sliding_window
            assert FAMILIES.load(kind).attention_window(StoredConfig(given, "it")) == theirs


def test_the_family_of_an_export_is_the_one_that_fits():
    names = {"Llama": "llama", "Mistral": "mistral", "Qwen2": "qwen2", "Qwen3": "qwen3"}
    for kind, changes in OURS.values():
        assert choose_family(ModelConfig(model_dim=32, **dict(num_heads=4) | LLAMA | changes)).model_type == names[kind]
    with pytest.raises(UserError, match=r"query_key_value_biases is True and can only be False"):
        choose_family(ModelConfig(**LLAMA, query_key_value_biases=True), "llama")
    with pytest.raises(UserError, match=r"rotary_scaling is 'linear' and can only be 'none'"):
        choose_family(ModelConfig(rotary_scaling="linear"), "opt")
    with pytest.raises(UserError, match=r"model.biases has those of model.query_key_value_biases"):
        ModelConfig(biases=True, query_key_value_biases=True)


def test_a_qwen3_with_biases_is_refused(tmp_path):
    their_model("Qwen3").save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text()) | dict(attention_bias=True)
    with pytest.raises(UserError, match="attention_bias is True, which this package's model cannot express"):
        FAMILIES.load("qwen3").model_fields(StoredConfig(stored, "it"))
