"""Which path stands for which address, and what no path can stand for."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from cm3leon_jax import paths
from cm3leon_jax.errors import UserError
from cm3leon_jax.storage.address import address_of, local_path, shown


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CM3LEON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("address", ["gs://bucket", "gs://bucket/run", "s3://my.bucket-1/a b/é/c.json"])
def test_there_and_back(address, cache):
    path = local_path(address)
    assert path.is_relative_to(cache) and address_of(path) == address
    assert Path(paths.local(f"{address}/", "--workdir")) == path.resolve() == path
    assert shown(f"no file {path}/x: give another") == f"no file {address}/x: give another"


def test_other_paths_are_local(cache):
    for text in ("/data/gs/bucket/x", "runs/gs/x", str(cache), f"{cache}/gs", f"{cache}/.records/gs/bucket/x"):
        assert address_of(text) is None and shown(text) == text


@pytest.mark.parametrize(
    "address", ["gs://", "gs:///x", "gs://Bucket/x", "s3://bucket//x", "s3://bucket/../x", "gs://b/x"]
)
def test_what_no_object_is_called(address):
    with pytest.raises(UserError, match=rf"^--output={address}: .*; write {address[:2]}://BUCKET/NAME$"):
        paths.local(address, "--output")


def test_a_library_that_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    fix = r"s3:// needs s3fs, which is not installed: pip install 'cm3leon_jax\[cloud\]'"
    with pytest.raises(UserError, match=rf"^config\.corpus\.path=s3://bucket/x: {fix}$"):
        paths.local("s3://bucket/x", "config.corpus.path")


def test_no_cloud_library_is_loaded_before_it_is_needed():
    code = (
        "import sys, cm3leon_jax.cli, cm3leon_jax.lock, cm3leon_jax.checkpoints\n"
        "print(sorted({'fsspec.spec', 'gcsfs', 's3fs', 'botocore', 'aiohttp', 'google.auth'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "gcsfs" not in found.stdout and "s3fs" not in found.stdout and "botocore" not in found.stdout
