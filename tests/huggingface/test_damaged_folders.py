"""Folders that were changed after they were written: a line names the file, and nothing is half-written."""

import itertools
import json
import os
import shutil

import numpy as np
import pytest
import safetensors.numpy

from cm3leon_jax.checkpoints import Checkpoints
from cm3leon_jax.errors import UserError
from cm3leon_jax.huggingface.export_record import ExportRecord
from cm3leon_jax.huggingface.families import FAMILIES
from cm3leon_jax.huggingface.stored_config import StoredConfig
from cm3leon_jax.models.config import ModelConfig
from tests.huggingface.conftest import STEP, at, import_folder

OTHER_VALUES = (None, True, -1, 10**30, float("nan"), "x", [1], {"a": 1})


def refused(config, workdir, folder, match):
    with pytest.raises(UserError, match=match) as error:
        import_folder(config, workdir, folder)
    assert str(error.value).isprintable() and len(str(error.value)) < 1500
    assert not (workdir / "checkpoints").exists() and not (workdir / "vocabulary").exists()


@pytest.mark.slow
def test_weights_that_are_not_finite_name_their_tensor(make_run, tmp_path):
    run = make_run()
    folder = run.export()
    # As a folder from elsewhere, which has no sums.
    (folder / "cm3leon.json").unlink()
    weights, config = safetensors.numpy.load_file(folder / "model.safetensors"), at(run.config, tmp_path / "there")
    for name, value in zip(sorted(weights)[::4], itertools.cycle((np.nan, np.inf, -np.inf)), strict=False):
        changed = weights[name].copy()
        changed.flat[-1] = value
        safetensors.numpy.save_file({**weights, name: changed}, folder / "model.safetensors")
        refused(config, tmp_path / "there", folder, f"model.safetensors: tensor {name} has values that are NaN or inf")


def test_every_flipped_bit_of_exported_weights_is_noticed(make_run, tmp_path):
    run = make_run()
    folder, config = run.export(shard_size="40KB"), at(run.config, tmp_path / "there")
    rng = np.random.default_rng(0)
    for file in sorted(folder.glob("*.safetensors")):
        whole = file.read_bytes()
        # Behind the header, where only a sum can tell.
        place = rng.integers(8 + int.from_bytes(whole[:8], "little"), len(whole))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        refused(config, tmp_path / "there", folder, f"{file.name} is not the file that was exported")
        file.write_bytes(whole)
    import_folder(config, tmp_path / "there", folder)


def test_shards_of_another_export_are_noticed(make_run, tmp_path):
    run = make_run()
    folder, config = run.export(), at(run.config, tmp_path / "there")
    other = safetensors.numpy.load_file(folder / "model.safetensors")
    safetensors.numpy.save_file(other, folder / "more.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(other, "more.safetensors")}))
    refused(config, tmp_path / "there", folder, "more.safetensors is not the file that was exported")


def others(stored):
    """The object with each field as another value, or absent."""
    for key in stored:
        yield {name: value for name, value in stored.items() if name != key}
        yield from ({**stored, key: value} for value in OTHER_VALUES)


def is_line(error):
    return str(error).isprintable() and len(str(error)) < 1500


@pytest.mark.parametrize("name", ["opt", "llama", "mistral"])
def test_fields_of_the_config_are_what_they_must_be_or_named(name):
    family = FAMILIES.load(name)
    stored = family.write_config(ModelConfig(ffn_dim=5, embedding_dim=7, num_key_value_heads=2), 128, 8, "float32")

    def types_of(values, where):
        found = family.model_fields(StoredConfig(values, where))
        return {name: type(value) for name, value in found.items() if value is not None}

    types = types_of(stored, "it")
    num_refused = 0
    for changed in others(stored):
        try:
            assert types_of(changed, "it/config.json").items() <= types.items()
        except UserError as error:
            assert is_line(error) and "it/config.json" in str(error)
            num_refused += 1
    assert num_refused > 70


def test_fields_of_the_record_are_what_they_must_be_or_named(tmp_path):
    stored = dict(format_version=1, sequence_length=8, vocabulary="ab", image_tokenizer="cd", sha256={"a": "b"})
    file = tmp_path / "cm3leon.json"
    file.write_text(json.dumps(stored))
    assert ExportRecord.read(tmp_path) == ExportRecord(8, "ab", "cd", {"a": "b"})
    num_refused = 0
    for changed in [[], None, 3, {**stored, "sha256": {"a": 3}}, *others(stored)]:
        file.write_text(json.dumps(changed))
        try:
            assert isinstance(ExportRecord.read(tmp_path), ExportRecord)
        except UserError as error:
            assert is_line(error) and str(file) in str(error)
            num_refused += 1
    assert num_refused > 30


def test_what_a_killed_import_left_is_no_run(make_run, tmp_path):
    run = make_run()
    folder, there = run.export(), tmp_path / "there"
    config = at(run.config, there)
    (there / "checkpoints" / "0.orbax-checkpoint-tmp" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    import_folder(config, there, folder)
    assert [path.name for path in (there / "checkpoints").iterdir()] == ["0"]
    with pytest.raises(UserError, match="holds a run already"):
        import_folder(config, there, folder)


def test_names_of_weights_lead_nowhere_else(make_run, tmp_path):
    run = make_run()
    folder, config = run.export(), at(run.config, tmp_path / "there")
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = folder / "model.safetensors.index.json"
    for name in ("../elsewhere.safetensors", str(tmp_path / "elsewhere.safetensors"), "a/../../elsewhere.safetensors"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        refused(config, tmp_path / "there", folder, "no file beside it")
    index.unlink()
    os.mkfifo(folder / "model.safetensors")
    refused(config, tmp_path / "there", folder, "no ordinary file")
    # As the cache of Hugging Face's hub has them.
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    import_folder(config, tmp_path / "there", folder)


@pytest.mark.parametrize("length", [0, 1, 7, 100_000_001, 2**63, 2**64 - 1])
def test_headers_of_any_length_are_refused(make_run, tmp_path, length):
    run = make_run()
    folder, config = run.export(), at(run.config, tmp_path / "there")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + whole[8:])
    refused(config, tmp_path / "there", folder, "model.safetensors is damaged")


@pytest.mark.slow
def test_a_damaged_checkpoint_is_a_line_and_no_folder(make_run):
    run = make_run()
    whole = (run.export("whole") / "model.safetensors").read_bytes()
    step = run.workdir / "checkpoints" / str(STEP)
    rng = np.random.default_rng(0)
    kept = shutil.copytree(step, run.workdir / "kept")
    num_refused = 0
    for file in sorted(path for path in (step / "state").rglob("*") if path.is_file() and path.stat().st_size):
        data = bytearray(file.read_bytes())
        for place in rng.integers(0, len(data), 3):
            data[place] ^= 0x80
        file.write_bytes(data)
        try:
            found = run.export("out")
        except UserError as error:
            assert str(step) in str(error) and str(error).isprintable()
            assert not (run.workdir / "out").exists() and not list(run.workdir.glob(".out*"))
            num_refused += 1
        else:
            assert (found / "model.safetensors").read_bytes() == whole
            shutil.rmtree(found)
        shutil.copyfile(kept / file.relative_to(step), file)
    assert num_refused >= 3


def test_weights_with_other_bits_than_were_saved_are_not_exported(make_run, monkeypatch):
    run = make_run()
    with Checkpoints(run.workdir / "checkpoints", keep=1) as checkpoints:
        sums = checkpoints.bit_sums(STEP)
    sums["parameters.blocks.feed_forward.up"] ^= 1
    monkeypatch.setattr(Checkpoints, "bit_sums", lambda self, step: sums)
    with pytest.raises(UserError, match=r"other bits in parameters.blocks.feed_forward.up than were written"):
        run.export()
    assert not (run.workdir / "exported").exists()


def test_every_exported_file_has_an_ordinary_mode(make_run):
    before = os.umask(0o027)
    try:
        folder = make_run().export(shard_size="40KB")
    finally:
        os.umask(before)
    for path in folder.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path
