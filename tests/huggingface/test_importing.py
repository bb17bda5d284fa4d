"""What comes back from an exported folder: the same numbers, on any mesh, and a run that trains on."""

import dataclasses
import json
import shutil
from argparse import Namespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cm3leon_jax.cli import main
from cm3leon_jax.commands import train
from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.errors import UserError
from cm3leon_jax.generation.load import load_model
from cm3leon_jax.image_tokenizers.base import load_image_tokenizer
from cm3leon_jax.image_tokenizers.vqgan.tokenizer import VQGANTokenizer
from cm3leon_jax.models.config import MeshConfig
from cm3leon_jax.progress import read_step_log
from cm3leon_jax.records import write_record
from cm3leon_jax.training import transformer
from cm3leon_jax.training.config import OptimizerConfig, TrainConfig
from cm3leon_jax.vocabulary import Vocabulary
from tests.conftest import random_document, write_corpus
from tests.huggingface.conftest import assert_equal, at, import_folder, imported


@pytest.mark.parametrize(
    ("changes", "shard_size"),
    [
        (dict(), "2GB"),
        (dict(biases=True, norm_scale_and_bias=True), "20KB"),
        (dict(norm_position="sum", norm_scale_and_bias=True, embedding_dim=16), "20KB"),
    ],
)
def test_there_and_back_is_bit_for_bit(make_run, tmp_path, changes, shard_size, capsys):
    run = make_run(**changes)
    folder, there = run.export(shard_size=shard_size), tmp_path / "there"
    config = at(run.config, there)
    import_folder(config, there, folder)
    assert "rows of the embedding table" not in capsys.readouterr().out
    parameters, meta = imported(config, there)
    assert_equal(parameters, nnx.state(run.model))
    assert meta["imported"] is True
    assert meta["vocabulary"] == run.vocabulary.fingerprint == Vocabulary.load(there / "vocabulary").fingerprint
    theirs = load_image_tokenizer(run.config.image_tokenizer.path).fingerprint
    assert meta["corpus"] == {"image_tokenizer": theirs}
    assert load_image_tokenizer(there / "image_tokenizer").fingerprint == theirs
    restored = load_model(config, there)
    assert restored.step == 0
    # And out again, to the same bytes.
    again = dataclasses.replace(run, config=config, workdir=there).export(shard_size=shard_size)
    for file in folder.glob("*.safetensors"):
        assert file.read_bytes() == (again / file.name).read_bytes()
    assert "were imported from another folder" in (again / "README.md").read_text()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_types_come_back_rounded_once(make_run, tmp_path, dtype):
    run = make_run()
    config = at(run.config, tmp_path / "there")
    import_folder(config, tmp_path / "there", run.export(dtype=dtype))
    expected = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), nnx.state(run.model))
    assert_equal(imported(config, tmp_path / "there")[0], expected)


def test_a_mesh_gets_the_numbers_of_one_device(make_run, tmp_path):
    run = make_run(biases=True, norm_scale_and_bias=True, embedding_dim=16)
    folder, mesh = run.export(), MeshConfig(replica=2, fsdp=2, tensor=2)
    config = dataclasses.replace(at(run.config, tmp_path / "there"), mesh=mesh)
    import_folder(config, tmp_path / "there", folder)
    parameters, _ = imported(config, tmp_path / "there", mesh)
    assert_equal(parameters, nnx.state(run.model))
    assert len({str(shard.index) for shard in parameters["token_embedding"][...].addressable_shards}) == 4


def test_a_folder_is_not_mixed_with_what_is_there(make_run, tmp_path, image_tokenizer):
    run = make_run()
    folder, there = run.export(), tmp_path / "there"
    with pytest.raises(UserError, match=r"holds a run already"):
        import_folder(run.config, run.workdir, folder)
    config = at(run.config, there)
    Vocabulary.train(["x y"], 288, 32, 8, progress=False).save(there / "vocabulary")
    with pytest.raises(UserError, match=r"config.vocabulary.path .* holds another vocabulary"):
        import_folder(config, there, folder)
    shutil.rmtree(there / "vocabulary")
    other = VQGANTokenizer(image_tokenizer.config, {n: w + 1 for n, w in image_tokenizer.weights.items()})
    other.save(there / "image_tokenizer")
    with pytest.raises(UserError, match=r"config.image_tokenizer.path .* holds another image tokenizer"):
        import_folder(config, there, folder)
    # Files that were exchanged after the export.
    shutil.rmtree(folder / "image_tokenizer")
    other.save(folder / "image_tokenizer")
    with pytest.raises(UserError, match=r"its image tokenizer has the fingerprint .*, cm3leon.json says"):
        import_folder(config, there, folder)
    assert not (there / "checkpoints").exists()


def test_another_architecture_is_refused_field_by_field(make_run, tmp_path):
    run = make_run(biases=True)
    folder, config = run.export(), at(run.config, tmp_path / "there")
    wrong = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, num_layers=3, num_heads=2, biases=False, positions="rotary"),
        vocabulary=dataclasses.replace(config.vocabulary, num_masks=9),
        batch=dataclasses.replace(config.batch, sequence_length=64),
        image_tokenizer=dataclasses.replace(config.image_tokenizer, encoder="patch"),
    )
    with pytest.raises(UserError) as refused:
        import_folder(wrong, tmp_path / "there", folder)
    message = str(refused.value)
    assert "\n" not in message
    for phrase in (
        "config.model.num_layers is 3, the folder has 2",
        "config.model.num_heads is 2, the folder has 4",
        "config.model.biases is False, the folder has True",
        "config.model.positions is 'rotary', the folder has 'learned'",
        "config.vocabulary.num_masks is 9, the folder has 8",
        "config.batch.sequence_length is 64, the folder has 32",
        "config.image_tokenizer.encoder is 'patch', the folder has 'convolutional'",
    ):
        assert phrase in message
    assert message.count("config.") == 7


@pytest.fixture
def prepared(tmp_path, make_run):
    """An exported folder, and a config and corpus that go with it."""
    run = make_run(sequence_length=48)
    there = tmp_path / "there"
    rng = np.random.default_rng(0)
    documents = {split: [random_document(run.vocabulary, rng) for _ in range(24)] for split in ("train", "validation")}
    corpus = write_corpus(tmp_path / "corpus", run.vocabulary, {"captions": documents})
    manifest = json.loads((corpus / "manifest.json").read_text())
    manifest["image_tokenizer"]["fingerprint"] = load_image_tokenizer(run.config.image_tokenizer.path).fingerprint
    write_record(corpus / "manifest.json", manifest)
    config = dataclasses.replace(
        at(run.config, there),
        corpus=CorpusConfig(path=str(corpus)),
        mesh=MeshConfig(replica=2, fsdp=2, tensor=2),
        optimizer=OptimizerConfig(peak_learning_rate=1e-3, warmup_steps=2),
        train=TrainConfig(
            compilation_cache="", num_tokens=8.0 * 48 * 2, log_every=1, save_every=1, eval_every=0, sample_every=0
        ),
    )
    return run, config, there


@pytest.mark.slow
def test_training_starts_from_imported_parameters(prepared, capsys, monkeypatch):
    run, config, there = prepared
    import_folder(config, there, run.export())
    # What shapes no parameter may differ from the import's config.
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=5, num_tokens=8.0 * 48 * 3))
    seen = []
    real = transformer.TrainStep

    class Watched(real):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            step = self.step

            def watched(state, batch):
                seen.append((jax.device_get(state), batch))
                return step(state, batch)

            self.step = watched

    monkeypatch.setattr(transformer, "TrainStep", Watched)
    assert train.run(config, there, Namespace(profile="")) == 0
    assert "of 8 x 48 tokens, from imported parameters" in capsys.readouterr().out
    first, batch = seen[0]
    assert_equal(first["parameters"], nnx.state(run.model))
    assert int(first["step"]) == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(first["optimizer"]))
    # The first loss is that of the model that was exported.
    scores = jax.nn.log_softmax(
        run.model.logits(run.model(batch.tokens, batch.positions, batch.document_start, batch.image_positions))
    )
    chosen = jnp.take_along_axis(scores, batch.targets[..., None], -1)[..., 0]
    loss = -float((chosen * batch.weights).sum() / batch.weights.sum())
    assert read_step_log(there / "metrics.jsonl")[0]["loss"] == pytest.approx(loss, rel=1e-4)
    # Then it is a run like any other.
    assert train.run(config, there, Namespace(profile="")) == 0
    assert "finished: step 3 of 3" in capsys.readouterr().out


def test_an_import_is_not_trained_as_another_model(prepared):
    run, config, there = prepared
    import_folder(config, there, run.export())
    wider = dataclasses.replace(config, batch=dataclasses.replace(config.batch, sequence_length=64))
    with pytest.raises(UserError, match=r"batch.sequence_length was 48 and is 64"):
        train.run(wider, there, Namespace(profile=""))
    manifest = json.loads((there.parent / "corpus" / "manifest.json").read_text())
    manifest["image_tokenizer"]["fingerprint"] = "another"
    write_record(there.parent / "corpus" / "manifest.json", manifest)
    with pytest.raises(UserError, match=r"corpus.image_tokenizer was .* and is 'another'"):
        train.run(config, there, Namespace(profile=""))


def test_the_commands(make_run, tmp_path, capsys):
    run = make_run()
    values = {
        "vocabulary": dict(num_text_tokens=288, num_masks=8),
        "image_tokenizer": {k: v for k, v in dataclasses.asdict(run.config.image_tokenizer).items() if k != "path"},
        "batch": dict(batch_size=8, sequence_length=32),
        "model": dataclasses.asdict(run.config.model),
    }
    (tmp_path / "configs").mkdir()
    file = tmp_path / "configs" / "tiny.py"
    file.write_text(f"from ml_collections import ConfigDict\n\ndef get_config():\n    return ConfigDict({values!r})\n")
    there, out = tmp_path / "there", tmp_path / "out"
    assert (
        main(["export", f"--config={file}", f"--workdir={run.workdir}", f"--output={out}", "--format=huggingface"]) == 0
    )
    assert main(["import", f"--config={file}", f"--workdir={there}", f"--from={out}"]) == 0
    assert (there / "config.json").exists()
    shown = capsys.readouterr()
    assert "exported step 7" in shown.out and "imported" in shown.out
    assert main(["import", f"--config={file}", f"--workdir={tmp_path / 'x'}", f"--from={tmp_path / 'nothing'}"]) == 2
    assert "is missing: no file" in capsys.readouterr().err
