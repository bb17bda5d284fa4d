"""Chameleon folders of transformers in and out: decoder, vocabulary and image tokenizer."""

import dataclasses
import functools
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from flax import nnx

from cm3leon_jax import config_file
from cm3leon_jax.commands import import_ as import_command
from cm3leon_jax.errors import UserError
from cm3leon_jax.huggingface.decoders import DecoderFamily, model_differences
from cm3leon_jax.huggingface.families import FAMILIES
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.image_tokenizers.base import load_image_tokenizer
from cm3leon_jax.models.config import ModelConfig
from cm3leon_jax.models.transformer import abstract_model
from cm3leon_jax.vocabulary import Vocabulary
from tests.huggingface.conftest import ONE_DEVICE, TEXTS, Run, assert_equal, at, greedy, import_folder, imported, logits
from tests.huggingface.families.test_llama_and_chameleon import LLAMA
from tests.huggingface.families.test_llama_types import our_model
from tests.huggingface.image_tokenizers import references

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROWS, LENGTH, CODES = 384, 48, references.CODES
KINDS: dict[str, dict[str, Any]] = {
    "7b": dict(num_key_value_heads=4),
    "34b": dict(num_key_value_heads=2, swin_norm=True, model_parallel_size=4),
}
LETTERS = str.maketrans("0123456789", "ABCDEFGHIJ")
# The codes are in another order than the ids.
SPECIAL = [
    *("<s>", "<pad>", "</s>", "<unk>"),
    *(f"IMGIMG{str(code).translate(LETTERS)}Z" for code in reversed(range(CODES))),
    *("<eoss>", "<racm3:break>", "<reserved08706>", "<image>"),
]
FIRST_CODE, EOI, BOI, SEP, PLACEHOLDER = 4, 4 + CODES, 5 + CODES, 6 + CODES, 7 + CODES
PROMPT = np.array([[0, *range(200, 212), SEP]])


@functools.cache
def reference() -> references.Reference:
    """The image tokenizer of every folder here: two of them would have different random numbers."""
    return references.chameleon()


def write_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """A BPE with the special tokens of Chameleon's, which begins a text with `<s>`."""
    base = tokenizers.ByteLevelBPETokenizer()
    base.train_from_iterator(TEXTS * 4, vocab_size=ROWS - 8, special_tokens=SPECIAL, show_progress=False)
    base.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    base.save(str(folder / "tokenizer.json"))
    return base


def their_model(**changes: Any) -> Any:
    """A model with random numbers in every tensor, and the image tokenizer that `references` has."""
    vq = dict(base_channels=32, channel_multiplier=[1, 2, 3], num_res_blocks=1, latent_channels=12, embed_dim=6)
    vq |= dict(num_embeddings=CODES, resolution=references.SIDE, attn_resolutions=[references.SIDE // 4])
    sizes = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48)
    sizes |= dict(num_key_value_heads=4)
    config = transformers.ChameleonConfig(
        **sizes | dict(vocab_size=ROWS, max_position_embeddings=LENGTH) | changes,
        vocabulary_map={name: index for index, name in enumerate(SPECIAL)},
        vq_config=vq,
    )
    torch.manual_seed(0)
    model = transformers.ChameleonForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "vqmodel" not in name:
                is_table = "embed" in name or "lm_head" in name
                parameter.normal_(std=(1.0 if is_table else 2.0) * parameter.shape[-1] ** -0.5)
        theirs = reference().tensors
        model.model.vqmodel.load_state_dict({n: t for n, t in theirs.items() if not n.startswith("decoder.")})
    return model.eval()


def save(model: Any, folder: Path, with_decoder: bool = True) -> Path:
    """Writes a folder, with the decoder that Anole's have and others lack."""
    decoder = {f"model.vqmodel.{n}": t for n, t in reference().tensors.items() if n.startswith("decoder.")}
    state = model.state_dict() | (decoder if with_decoder else {})
    model.save_pretrained(folder, state_dict=state, max_shard_size="200KB")
    write_tokenizer(folder)
    return folder


def all_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    """Logits of every token: the class of transformers answers with text alone, and hides those of image codes."""
    with torch.no_grad():
        return model.lm_head(model.model(torch.tensor(tokens)).last_hidden_state).numpy()


def config_of(base: Run, folder: Path, workdir: Path) -> Any:
    """The config of a run that begins with a folder."""
    fields = FAMILIES.load("chameleon").model_fields(StoredConfig(json.loads((folder / "config.json").read_text()), ""))
    config = at(dataclasses.replace(base.config, image_tokenizer=references.CONFIG), workdir)
    return dataclasses.replace(
        config,
        model=ModelConfig(**fields, compute_dtype="float32", attention="xla", remat="none"),
        vocabulary=dataclasses.replace(config.vocabulary, num_text_tokens=ROWS - 4 - CODES - 3),
        batch=dataclasses.replace(config.batch, sequence_length=LENGTH),
        mesh=ONE_DEVICE,
    )


def run_of(config: Any, workdir: Path) -> Run:
    """The run that an import has begun."""
    vocabulary = Vocabulary.load(config.vocabulary.path)
    graph, _ = abstract_model(config.model, vocabulary.size, LENGTH)
    return Run(config, workdir, vocabulary, nnx.merge(graph, imported(config, workdir)[0]))


def pixels_for_them() -> Any:
    return torch.tensor(references.images()).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.mark.parametrize("kind", KINDS)
def test_in_and_out(make_run, tmp_path, monkeypatch, kind):
    theirs = their_model(**KINDS[kind])
    folder, there = save(theirs, tmp_path / "theirs"), tmp_path / "there"
    config = config_of(make_run(), folder, there)
    import_folder(config, there, folder)
    run = run_of(config, there)
    tokens = np.random.default_rng(0).integers(0, ROWS, (2, LENGTH))
    expected = all_logits(theirs, tokens)
    np.testing.assert_allclose(run.logits(tokens)[..., :ROWS], expected, atol=1e-4)

    output = run.export(shard_size="200KB")
    back, info = transformers.ChameleonForConditionalGeneration.from_pretrained(output, output_loading_info=True)
    assert not any(info[name] for name in info), info
    np.testing.assert_allclose(all_logits(back, tokens)[..., :ROWS], expected, atol=1e-4)
    # Both find the same codes at the same ids, with and without the folder between them.
    codes = load_image_tokenizer(config.image_tokenizer.path).encode(references.images())
    ids = run.vocabulary.encode_image(codes)
    for model in (theirs, back):
        found = model.get_image_tokens(pixels_for_them()).reshape(len(ids), -1).numpy()
        np.testing.assert_array_equal(found, ids[:, 1:-1])
    assert len(np.unique(codes)) > 5 and back.config.image_token_id == PLACEHOLDER
    # The rows beyond theirs are new.
    size = run.vocabulary.size
    back.model.vocabulary_mapping.image_tokens = []
    back.generation_config.eos_token_id = None
    answer = back.generate(torch.tensor(PROMPT), do_sample=False, max_new_tokens=30)[0, PROMPT.shape[1] :].tolist()
    assert len(set(answer)) > 4 and back.config.vocab_size == size > ROWS
    assert greedy(run.model, PROMPT[0].tolist(), 30) == answer

    monkeypatch.chdir(output)
    card = (output / "README.md").read_text()
    values: dict[str, Any] = {}
    exec("\n".join(part.removeprefix("python") for part in card.split("```")[1::2]), values)
    assert values["images"].shape == (1, references.SIDE, references.SIDE, 3) and len(set(values["codes"])) > 1
    assert run.vocabulary.is_text(np.array(values["tokenizer"](values["caption"])["input_ids"], np.int64)).all()

    again = at(config, tmp_path / "again")
    import_folder(again, tmp_path / "again", output)
    assert_equal(imported(again, tmp_path / "again")[0], nnx.state(run.model))
    second = dataclasses.replace(run, config=again, workdir=tmp_path / "again").export(shard_size="200KB")
    for file in (*output.glob("*.safetensors"), output / "config.json"):
        assert file.read_bytes() == (second / file.name).read_bytes()


@pytest.mark.slow
def test_one_layer_of_the_true_shape(tmp_path):
    sizes = dict(hidden_size=4096, num_attention_heads=32, num_key_value_heads=32, intermediate_size=11_008)
    theirs = their_model(**sizes, num_hidden_layers=1)
    theirs.save_pretrained(tmp_path)
    tokens = np.random.default_rng(0).integers(0, ROWS, (2, 20))
    np.testing.assert_allclose(logits(our_model(tmp_path), tokens), all_logits(theirs, tokens), atol=1e-4)


def test_the_vocabulary_has_its_tokens_by_their_roles(make_run, tmp_path):
    folder, there = save(their_model(), tmp_path / "theirs"), tmp_path / "there"
    config = config_of(make_run(), folder, there)
    import_folder(config, there, folder)
    v = Vocabulary.load(config.vocabulary.path)
    assert (v.end, v.pad, v.unknown, v.break_) == (0, 1, 3, SEP)
    assert (v.begin_image, v.end_image, v.eoss, v.first_mask) == ((BOI,), (EOI,), ROWS, ROWS + 1)
    first, last = FIRST_CODE + CODES - 1, FIRST_CODE
    assert v.encode_image(np.array([0, CODES - 1])).tolist() == [BOI, first, last, EOI]
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert [v.end, *v.encode_text(TEXTS[0])] == tokenizer.encode(TEXTS[0]).ids


def test_greedy_answers_are_texts(make_run, tmp_path):
    theirs = their_model()
    folder, there = save(theirs, tmp_path / "theirs"), tmp_path / "there"
    config = config_of(make_run(), folder, there)
    import_folder(config, there, folder)
    model = run_of(config, there).model
    theirs.generation_config.eos_token_id = None
    answer = theirs.generate(torch.tensor(PROMPT), do_sample=False, max_new_tokens=20)[0, PROMPT.shape[1] :].tolist()
    tokens, is_masked = PROMPT[0].tolist(), np.isin(np.arange(ROWS), range(FIRST_CODE, FIRST_CODE + CODES))
    padded = np.zeros((1, LENGTH), int)
    for _ in answer:
        padded[0, : len(tokens)] = tokens
        found = logits(model, padded)[0, len(tokens) - 1, :ROWS]
        tokens.append(int(np.where(is_masked, -np.inf, found).argmax()))
    assert tokens[PROMPT.shape[1] :] == answer


def test_a_folder_without_a_decoder_needs_an_image_tokenizer(make_run, tmp_path):
    theirs = their_model()
    folder, there = save(theirs, tmp_path / "theirs", with_decoder=False), tmp_path / "there"
    config = config_of(make_run(), folder, there)
    message = rf"no image tokenizer that makes images.*{there}.*: give Chameleon's vqgan.ckpt by --image-tokenizer$"
    with pytest.raises(UserError, match=message):
        import_folder(config, there, folder)
    assert not (there / "checkpoints").exists()
    tensors = reference().tensors
    file = tmp_path / "vqgan.ckpt"
    torch.save({"state_dict": tensors}, file)
    import_command.run(config, there, Namespace(source=str(folder), image_tokenizer=str(file)))
    codes = load_image_tokenizer(config.image_tokenizer.path).encode(references.images())
    found = theirs.get_image_tokens(pixels_for_them()).reshape(len(codes), -1).numpy()
    ids = Vocabulary.load(config.vocabulary.path).encode_image(codes)
    np.testing.assert_array_equal(found, ids[:, 1:-1])

    other = at(config, tmp_path / "other")
    torch.save({"state_dict": tensors | {"quantize.embedding.weight": torch.zeros(CODES, 6)}}, file)
    with pytest.raises(UserError, match="holds another image tokenizer than the folder's"):
        import_command.run(other, tmp_path / "other", Namespace(source=str(folder), image_tokenizer=str(file)))


@pytest.mark.parametrize("name", ["<racm3:break>", "<eoss>", "<reserved08706>", "IMGIMGDZ"])
def test_a_tokenizer_without_one_of_its_tokens_is_refused(make_run, tmp_path, name):
    folder, there = save(their_model(), tmp_path / "theirs"), tmp_path / "there"
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace(json.dumps(name), '"other"'))
    with pytest.raises(UserError, match=rf"its tokenizer has no token {name}: it is none of Chameleon's"):
        import_folder(config_of(make_run(), folder, there), there, folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(rms_norm_eps=1e-6), "rms_norm_eps is 1e-06"),
        (dict(hidden_act="mish"), "hidden_act is 'mish'"),
        (dict(attention_bias=True), "mlp_bias is None"),
        (dict(rope_scaling=dict(rope_type="yarn", factor=8.0)), "rope_scaling.rope_type is 'yarn'"),
    ],
)
def test_what_no_field_says_is_refused(changes, message):
    sizes = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48)
    with pytest.raises(UserError, match=message):
        FAMILIES.load("chameleon").model_fields(StoredConfig(sizes | changes, "it"))


def test_the_config_for_7b_is_that_of_its_folder(tmp_path):
    stored = transformers.ChameleonConfig(vocabulary_map={}, vq_config={}).to_dict()
    fields = FAMILIES.load("chameleon").model_fields(StoredConfig(stored, "it"))
    for variant in ("", ":h100-8", ":v5e-16", ":v6e-16", ":head", ":head-h100-8", ":head-v5e-16", ":head-v6e-16"):
        config = config_file.load(f"configs/chameleon_7b_sft.py{variant}", str(tmp_path))
        assert model_differences(config.model, fields) == []
        assert config.mesh.fsdp == (int(variant.rpartition("-")[2]) if "-" in variant else -1)
        assert ("*=0" in config.optimizer.learning_rate_factors) == ("head" in variant)
    vq, ours = stored["vq_config"], config.image_tokenizer
    assert (ours.resolution, ours.codebook_size, ours.embedding_dim) == (
        *(vq[name] for name in ("resolution", "num_embeddings", "embed_dim")),
    )
    # Without image codes, begin and end of an image, <break>, <s>, <pad>, </s> and <unk>.
    assert config.vocabulary.num_text_tokens == stored["vocab_size"] - ours.codebook_size - 3 - 4


CHAMELEON = dict(LLAMA, query_key_norm="layer", query_key_norm_per_head=True)


def test_what_it_cannot_express_is_named(make_run):
    family = FAMILIES.load("chameleon")
    assert isinstance(family, DecoderFamily) and family.cannot_express(ModelConfig(**CHAMELEON)) == []
    assert family.cannot_express(ModelConfig(**CHAMELEON, layer_norm_epsilon=1e-6, head_size=8)) == [
        "config.model.head_size is 8 and can only be None",
        "config.model.layer_norm_epsilon is 1e-06 and can only be 1e-05",
    ]
    with pytest.raises(
        UserError, match=r"cannot express this image tokenizer: .*its norms have 4, 8 groups and can only have 32"
    ):
        make_run(**CHAMELEON).export()
