"""OPT's own folders, as transformers writes them: their logits, their ids, and what is refused."""

import dataclasses
import json
import os
import pickle
import shutil
import sys
import zipfile
from argparse import Namespace

import numpy as np
import pytest
from flax import nnx
from tokenizers import ByteLevelBPETokenizer

from cm3leon_jax.checkpoints import Checkpoints
from cm3leon_jax.commands import train
from cm3leon_jax.errors import UserError
from cm3leon_jax.generation.load import load_model
from cm3leon_jax.models.config import MeshConfig
from cm3leon_jax.models.transformer import Transformer, abstract_model
from cm3leon_jax.records import write_record
from cm3leon_jax.training.config import TrainConfig
from cm3leon_jax.vocabulary import SPECIAL_TOKENS, Vocabulary
from tests.conftest import random_document, write_corpus
from tests.huggingface.conftest import ONE_DEVICE, TEXTS, at, by_name, import_folder, imported, logits

torch = pytest.importorskip("torch", reason="folders of OPT are made with torch: pip install -e '.[test]'")
transformers = pytest.importorskip("transformers", reason="the extra [test] brings transformers")

ROWS = 320
SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=128, max_position_embeddings=64)


def opt_model(**changes):
    """A small OPT with random numbers in every tensor."""
    config = transformers.OPTConfig(
        vocab_size=ROWS, word_embed_proj_dim=changes.pop("embedded", 32), **SIZES, **changes
    )
    model = transformers.OPTForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center = 1.0 if "norm.weight" in name else 0.0
            # Numbers that float16 holds, so that every type of folder has the same model.
            parameter.copy_((center + 0.1 * torch.randn(parameter.shape, generator=generator)).half().float())
    return model


def write_tokenizer(folder):
    """vocab.json and merges.txt, as OPT's folders have them."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(TEXTS * 4, vocab_size=300, special_tokens=list(SPECIAL_TOKENS), show_progress=False)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_model(str(folder))


def opt_config(config, workdir, **changes):
    """A config of ours for that OPT."""
    config = at(config, workdir)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, biases=True, norm_scale_and_bias=True, **changes),
        vocabulary=dataclasses.replace(config.vocabulary, num_text_tokens=ROWS - 4),
    )


@pytest.fixture
def folder(tmp_path):
    write_tokenizer(tmp_path / "opt")
    return tmp_path / "opt"


@pytest.fixture
def config(tmp_path, make_run):
    """The base of `opt_config`, without a run."""
    run = make_run()
    shutil.rmtree(run.workdir)
    return run.config


def as_bin(model, folder, parts=1, prefix=True):
    state = {k if prefix else k.removeprefix("model."): v for k, v in model.half().state_dict().items()}
    names = sorted(state)
    if parts == 1:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        where = {name: f"pytorch_model-{i % parts}.bin" for i, name in enumerate(names)}
        for file in set(where.values()):
            torch.save({n: state[n] for n in names if where[n] == file}, folder / file)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    model.config.save_pretrained(folder)
    model.float()


def as_safetensors(model, folder):
    model.half().save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").exists()
    model.float()


@pytest.mark.parametrize(
    ("theirs", "ours", "write"),
    [
        (dict(), dict(), as_safetensors),
        (dict(), dict(), as_bin),
        (dict(activation_function="gelu"), dict(activation="gelu"), lambda m, f: as_bin(m, f, parts=3, prefix=False)),
        (
            dict(do_layer_norm_before=False, embedded=16),
            dict(norm_position="sum", embedding_dim=16),
            as_safetensors,
        ),
        (
            dict(enable_bias=False, layer_norm_elementwise_affine=False, activation_function="gelu"),
            dict(biases=False, norm_scale_and_bias=False, activation="gelu"),
            as_safetensors,
        ),
    ],
    ids=["sharded safetensors", "bin", "bins without prefix", "as OPT-350M", "as Galactica"],
)
def test_opt_gives_its_own_logits(config, folder, tmp_path, theirs, ours, write, capsys):
    model = opt_model(**theirs)
    write(model, folder)
    config = opt_config(config, tmp_path / "there")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **ours))
    import_folder(config, tmp_path / "there", folder)
    shown = capsys.readouterr().out
    assert "rows of the embedding table: 320 are the folder's, 64 are new" in shown
    assert "positions: the first 32 of the folder's 64" in shown
    assert "no image tokenizer yet" in shown

    vocabulary = Vocabulary.load(config.vocabulary.path)
    assert (vocabulary.num_text_tokens, vocabulary.first_image_code) == (ROWS - 4, ROWS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text in (*TEXTS, "  ünï 数 <break> "):
        assert vocabulary.encode_text(text) == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert vocabulary.decode_text(vocabulary.encode_text(text)) == text

    parameters, meta = imported(config, tmp_path / "there")
    assert meta["corpus"] == {"image_tokenizer": None}
    graph, _ = abstract_model(config.model, vocabulary.size, 32)
    tokens = np.random.default_rng(0).integers(0, ROWS, (2, 32))
    expected = model(torch.tensor(tokens)).logits.detach().numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(logits(nnx.merge(graph, parameters), tokens)[..., :ROWS], expected, atol=1e-4)


def test_new_rows_are_sampled_like_those_of_the_folder_and_new_positions_as_in_a_new_run(config, folder, tmp_path):
    model = opt_model()
    as_bin(model, folder)
    config = dataclasses.replace(
        opt_config(config, tmp_path / "there"), train=TrainConfig(seed=3, num_tokens=1e6), mesh=ONE_DEVICE
    )
    config = dataclasses.replace(config, batch=dataclasses.replace(config.batch, sequence_length=96))
    found = []
    for name, mesh in (("one", ONE_DEVICE), ("many", MeshConfig(replica=2, fsdp=2, tensor=2))):
        there = dataclasses.replace(at(config, tmp_path / name), mesh=mesh)
        import_folder(there, tmp_path / name, folder)
        found.append(by_name(imported(there, tmp_path / name, mesh)[0]))
    for name in found[0]:
        np.testing.assert_array_equal(found[0][name], found[1][name], err_msg=name)
    new = nnx.to_pure_dict(nnx.state(Transformer(config.model, 384, 96, nnx.Rngs(3))))
    positions, decoder = found[0]["position_embedding"], model.model.decoder
    np.testing.assert_array_equal(positions[:64], decoder.embed_positions.weight[2:].detach().numpy())
    np.testing.assert_allclose(positions[64:], new["position_embedding"][64:], rtol=1e-6)
    tokens, theirs = found[0]["token_embedding"], decoder.embed_tokens.weight.detach().numpy()
    np.testing.assert_array_equal(tokens[:ROWS], theirs)
    # What the statistics of 64 rows of 32 numbers can tell of a spread of 0.1.
    assert abs(tokens[ROWS:].std() / theirs.std() - 1) < 0.1 and abs(tokens[ROWS:].mean() - theirs.mean()) < 0.02


@pytest.mark.slow
def test_an_opt_is_trained_on_with_the_image_tokenizer_that_comes_later(config, folder, tmp_path, image_tokenizer):
    as_bin(opt_model(), folder)
    there = tmp_path / "there"
    config = opt_config(config, there)
    import_folder(config, there, folder)
    vocabulary = Vocabulary.load(config.vocabulary.path)
    rng = np.random.default_rng(0)
    documents = {split: [random_document(vocabulary, rng) for _ in range(16)] for split in ("train", "validation")}
    (there / "corpus").mkdir()
    corpus = write_corpus(there / "corpus", vocabulary, {"captions": documents})
    manifest = json.loads((corpus / "manifest.json").read_text())
    manifest["image_tokenizer"]["fingerprint"] = image_tokenizer.fingerprint
    write_record(corpus / "manifest.json", manifest)
    image_tokenizer.save(config.image_tokenizer.path)
    config = dataclasses.replace(
        config, train=TrainConfig(compilation_cache="", num_tokens=8.0 * 32, eval_every=0, sample_every=0)
    )
    assert train.run(config, there, Namespace(profile="")) == 0
    assert load_model(config, there).step == 1
    with Checkpoints(there / "checkpoints", keep=1) as checkpoints:
        assert checkpoints.meta(1)["origin"] == "imported parameters"


def test_a_wrong_number_of_text_tokens_names_the_right_one(config, folder, tmp_path):
    as_bin(opt_model(), folder)
    wrong = dataclasses.replace(
        opt_config(config, tmp_path / "there"), vocabulary=dataclasses.replace(config.vocabulary, num_text_tokens=300)
    )
    with pytest.raises(UserError, match=r"config.vocabulary.num_text_tokens is 300, the folder has 316"):
        import_folder(wrong, tmp_path / "there", folder)


class Malicious:
    """A pickle that would make a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("container", ["zip", "bare"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(config, folder, tmp_path, container):
    as_bin(opt_model(), folder)
    evil = pickle.dumps(Malicious(tmp_path / "was here"))
    file = folder / "pytorch_model.bin"
    if container == "bare":
        file.write_bytes(evil)
    else:
        honest = tmp_path / "honest.bin"
        file.rename(honest)
        with zipfile.ZipFile(honest) as source, zipfile.ZipFile(file, "w") as target:
            for name in source.namelist():
                target.writestr(name, evil if name.endswith("data.pkl") else source.read(name))
    with pytest.raises(UserError, match=r"pytorch_model.bin is refused") as refused:
        import_folder(opt_config(config, tmp_path / "there"), tmp_path / "there", folder)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "was here").exists()


def test_a_missing_torch_is_one_line(config, folder, tmp_path, monkeypatch):
    as_bin(opt_model(), folder)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"PyTorch's format only, and torch is not installed"):
        import_folder(opt_config(config, tmp_path / "there"), tmp_path / "there", folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "pytorch_model.bin").unlink(), "no weights in"),
        (lambda f: (f / "pytorch_model.bin").write_bytes(b"123"), "pytorch_model.bin is refused"),
        (lambda f: (f / "model.safetensors").write_bytes(b"123"), "model.safetensors is damaged"),
        (lambda f: edit(f / "config.json", model_type="gpt2"), "model_type is 'gpt2', not one of 'opt', 'llama'"),
        (lambda f: edit(f / "config.json", tie_word_embeddings=False), "tie_word_embeddings is False"),
        (lambda f: edit(f / "config.json", _remove_final_layer_norm=True), "_remove_final_layer_norm is True"),
        (lambda f: edit(f / "config.json", activation_function="silu"), "activation_function is 'silu'"),
        (lambda f: edit(f / "config.json", hidden_size="32"), "hidden_size is '32'"),
        (lambda f: edit(f / "config.json", max_position_embeddings=65), "embed_positions.weight is (66, 32), by"),
        (lambda f: edit_weights(f, "model.decoder.layers.1.fc1.bias", None), "layers.1.fc1.bias is absent, by"),
        (
            lambda f: edit_weights(f, "extra", torch.zeros(2)),
            "tensor extra is (2,), by config.json it has to be absent",
        ),
        (lambda f: edit_weights(f, "extra", torch.zeros(2, dtype=int)), "extra is no tensor of floats"),
        (lambda f: (f / "merges.txt").unlink(), "no tokenizer in"),
        (lambda f: swap(f / "vocab.json", "<s>", "<pad>"), "its first tokens are not OPT's, <s>, <pad>, </s>, <unk>"),
        (lambda f: swap(f / "vocab.json", "Ń", "other"), "num_text_tokens is 316, the folder has 317"),
        (lambda f: (f / "vocab.json").write_text("{"), "is damaged"),
    ],
)
def test_a_damaged_or_foreign_folder_is_one_line(config, folder, tmp_path, damage, message):
    as_bin(opt_model(), folder)
    damage(folder)
    with pytest.raises(UserError) as refused:
        import_folder(opt_config(config, tmp_path / "there"), tmp_path / "there", folder)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "there" / "checkpoints").exists()


def edit(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def edit_weights(folder, name, value):
    state = torch.load(folder / "pytorch_model.bin")
    state.pop(name, None)
    torch.save(state | ({} if value is None else {name: value}), folder / "pytorch_model.bin")


def swap(file, name, other):
    vocab = json.loads(file.read_text())
    vocab[name], vocab[other] = vocab.get(other, 300), vocab[name]
    file.write_text(json.dumps({k: v for k, v in vocab.items() if v != 300}))
