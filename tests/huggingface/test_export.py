"""An exported folder is the same model in transformers: logits, tokens, ids; and what cannot be exported is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from cm3leon_jax.checkpoints import Checkpoints
from cm3leon_jax.cli import main
from cm3leon_jax.errors import UserError
from cm3leon_jax.huggingface.exporting import with_materialized_norms
from cm3leon_jax.image_tokenizers.base import load_image_tokenizer
from cm3leon_jax.image_tokenizers.vqgan.tokenizer import VQGANTokenizer
from cm3leon_jax.vocabulary import Vocabulary
from tests.huggingface.conftest import greedy

SHAPES = [
    dict(),
    dict(num_heads=1, num_layers=1, num_text_tokens=338),
    dict(num_heads=8, num_layers=3, ffn_dim=48, num_text_tokens=339),
    dict(biases=True, norm_scale_and_bias=True),
    dict(biases=True, activation="gelu", sequence_length=48),
    dict(norm_scale_and_bias=True, activation="gelu_tanh", model_dim=48, num_heads=3),
    dict(biases=True, norm_scale_and_bias=True, norm_position="sum", embedding_dim=16),
    dict(norm_position="sum", scan_layers=False, num_layers=1),
    dict(embedding_dim=64, num_text_tokens=500),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: ",".join(f"{k}={v}" for k, v in shape.items()) or "plain")
def test_logits_equal_those_of_transformers(make_run, shape, torch, transformers):
    run = make_run(**shape)
    theirs = load(transformers, run.export(shard_size="20KB"))
    tokens = np.random.default_rng(0).integers(0, run.vocabulary.size, (3, 32))
    expected = theirs(torch.tensor(tokens)).logits.detach().numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(run.logits(tokens), expected, atol=1e-4)


def test_greedy_answers_equal_those_of_transformers_token_for_token(make_run, torch, transformers):
    run = make_run(sequence_length=256, num_layers=3)
    prompt = np.random.default_rng(0).integers(4, run.vocabulary.size, (1, 10))
    theirs = load(transformers, run.export())
    theirs.generation_config.eos_token_id = None
    expected = theirs.generate(torch.tensor(prompt), do_sample=False, max_new_tokens=200)[0, 10:].tolist()

    assert len(expected) == 200
    assert len(set(expected)) > 20, "an answer that repeats itself shows little"
    assert greedy(run.model, prompt[0].tolist(), 200) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_rounded_once(make_run, dtype):
    run = make_run()
    folder = run.export(dtype=dtype)
    stored = safetensors.numpy.load_file(folder / "model.safetensors")
    table = np.asarray(run.model.token_embedding[...])
    found = stored["model.decoder.embed_tokens.weight"]
    assert str(found.dtype) == dtype
    np.testing.assert_array_equal(found, table.astype(found.dtype))
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype


def test_large_weights_are_split_and_indexed(make_run):
    run = make_run()
    whole = safetensors.numpy.load_file(run.export("whole") / "model.safetensors")
    folder = run.export("split", shard_size="30KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert files == [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
    assert sorted(set(index["weight_map"].values())) == files and len(files) > 2
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    split = {}
    for file in files:
        found = safetensors.numpy.load_file(folder / file)
        # A tensor that is larger than a shard has one of its own.
        assert len(found) == 1 or sum(tensor.nbytes for tensor in found.values()) <= 30_000
        assert all(index["weight_map"][name] == file for name in found)
        split |= found
    assert split.keys() == whole.keys()
    for name, tensor in whole.items():
        np.testing.assert_array_equal(split[name], tensor)


def test_the_tokenizer_gives_the_vocabularys_ids(make_run, transformers):
    run = make_run()
    folder, v = run.export(), run.vocabulary
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == v.first_mask + v.num_masks
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    assert ids == (v.end, v.end, v.pad, v.unknown)
    for text in ("a handwritten seven", "  two  spaces , ünï 数 \n", ""):
        assert tokenizer(text)["input_ids"] == v.encode_text(text)
        assert tokenizer.decode(v.encode_text(text)) == text
    assert tokenizer("</s>a text<break>")["input_ids"] == [v.end, *v.encode_text("a text"), v.break_]
    ids_by_name = {v.name(number): number for number in range(len(tokenizer))}
    special = ["<break>", "<eoss>", *(f"<mask:{i}>" for i in range(8)), *(f"<image:{k}>" for k in range(32))]
    assert tokenizer("".join(special))["input_ids"] == [ids_by_name[name] for name in special]
    config = transformers.AutoConfig.from_pretrained(folder)
    assert config.vocab_size == v.size and config.max_position_embeddings == 32
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (v.end, v.end, v.pad)
    assert transformers.GenerationConfig.from_pretrained(folder).eos_token_id == v.end


def test_what_the_folder_holds_beside_weights(make_run, image_tokenizer):
    run = make_run()
    (run.workdir / "evaluation.json").write_text('{"step": 7, "eval_loss": 1.25}')
    folder = run.export()
    assert Vocabulary.load(folder).fingerprint == run.vocabulary.fingerprint
    assert load_image_tokenizer(folder / "image_tokenizer").fingerprint == image_tokenizer.fingerprint
    record = json.loads((folder / "cm3leon.json").read_text())
    assert record["step"] == 7 and record["sequence_length"] == 32
    assert record["vocabulary"] == run.vocabulary.fingerprint
    assert record["image_tokenizer"] == image_tokenizer.fingerprint
    assert record["model"]["num_layers"] == 2
    # Nothing of the machine goes with the model.
    texts = [path for path in folder.rglob("*") if path.suffix in (".json", ".md")]
    assert not [path for path in texts if str(run.workdir) in path.read_text()]
    assert not list(run.workdir.glob(".*partial"))


def test_the_model_card_says_what_it_is_and_its_example_runs(make_run, monkeypatch, torch, transformers):
    run = make_run(sequence_length=64)
    (run.workdir / "evaluation.json").write_text('{"step": 5, "eval_loss": 1.25}')
    folder = run.export()
    card = (folder / "README.md").read_text()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(run.model)))
    assert f"| parameters | {parameters:,} |" in card
    assert "| steps | 7 |" in card and "| tokens | 3,584 (8 sequences of 64 per step) |" in card
    assert "| captions | 1 | 40 |" in card and "| started from | random numbers |" in card
    assert "| eval_loss | 1.25 |" in card and "Measured at step 5" in card
    monkeypatch.chdir(folder)
    # The last one needs vllm.
    *examples, _ = [part.removeprefix("python") for part in card.split("```")[1::2]]
    values: dict = {}
    exec("\n".join(examples), values)
    assert values["images"].shape == (1, 8, 8, 1)
    assert len(values["codes"]) == 16 and all(0 <= code < 32 for code in values["codes"])
    caption = values["tokenizer"](values["caption"])["input_ids"]
    assert run.vocabulary.is_text(np.array(caption, np.int64)).all()


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (dict(), "OPTForCausalLM"),
        (dict(biases=True, norm_position="sum"), "OPTForCausalLM"),
        (dict(norm="rms", gated=True, activation="silu", positions="rotary"), "LlamaForCausalLM"),
    ],
)
def test_norms_that_are_materialized_change_nothing(make_run, torch, transformers, changes, name):
    run = make_run(**changes)
    folder = run.export(materialize_norms=True, shard_size="20KB")
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(theirs).__name__ == name and not any(info[each] for each in info), info
    scales = [weight for key, weight in theirs.named_parameters() if "norm" in key and key.endswith("weight")]
    assert len(scales) == 4 + (changes.get("norm_position") != "sum") and all((scale == 1).all() for scale in scales)
    tokens = np.random.default_rng(0).integers(0, run.vocabulary.size, (3, 32))
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(run.logits(tokens), expected, atol=1e-4)
    # Learned ones are what they are.
    learned = dataclasses.replace(run.config.model, norm_scale_and_bias=True)
    assert with_materialized_norms(learned) == learned == with_materialized_norms(run.config.model)


def test_what_opt_cannot_express_is_refused_by_name(make_run, tmp_path, capsys):
    run = make_run(positions="learned+rotary", gated=True, layer_norm_epsilon=1e-6)
    with pytest.raises(UserError) as refused:
        run.export(family="opt")
    for field in ("positions is 'learned+rotary'", "gated is True", "layer_norm_epsilon is 1e-06"):
        assert f"config.model.{field}" in str(refused.value)
    run = make_run(positions="rotary", gated=True, norm="rms", norm_scale_and_bias=True, activation="silu")
    with pytest.raises(UserError, match=r"\(opt\) cannot express.*positions is 'rotary'.*; --family=llama can$"):
        run.export(family="opt")
    command = ["export", "--config=examples/digits/demo.py", f"--workdir={tmp_path}", f"--output={tmp_path / 'out'}"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "config.model.image_position_embedding is True and can only be False" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_refusals_leave_nothing_behind(make_run):
    run = make_run()
    for text in ("5 apples", "0", "-3MB", "0.1"):
        with pytest.raises(UserError, match="--shard-size"):
            run.export(shard_size=text)
    (run.workdir / "taken").mkdir()
    run.export("taken")
    with pytest.raises(UserError, match=r"taken is there already"):
        run.export("taken")
    run.model.token_embedding.set_value(run.model.token_embedding[...].at[0, 0].set(1e6))
    with Checkpoints(run.workdir / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(8, {"parameters": nnx.state(run.model)}, checkpoints.meta(7))
    with pytest.raises(UserError, match=r"embed_tokens.weight has values beyond the range of float16"):
        run.export("small", dtype="float16")
    assert not (run.workdir / "small").exists() and not list(run.workdir.glob(".small*"))


def test_another_config_vocabulary_or_image_tokenizer_is_refused(make_run, image_tokenizer, tmp_path):
    run = make_run()
    with pytest.raises(UserError, match=r"model.num_heads was 4 and is 2"):
        model = dataclasses.replace(run.config.model, num_heads=2)
        dataclasses.replace(run, config=dataclasses.replace(run.config, model=model)).export()
    other = VQGANTokenizer(image_tokenizer.config, {n: w + 1 for n, w in image_tokenizer.weights.items()})
    other.save(run.config.image_tokenizer.path)
    with pytest.raises(UserError, match=r"holds the image tokenizer .*, the model was trained with"):
        run.export()
    Vocabulary.train(["x y z"], 288, 32, 8, progress=False).save(run.config.vocabulary.path)
    with pytest.raises(UserError, match=r"made with another vocabulary"):
        run.export()
    with pytest.raises(UserError, match=r"no checkpoints in"):
        dataclasses.replace(run, workdir=tmp_path / "nowhere").export()


def load(transformers, folder):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == "OPTForCausalLM"
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()
