"""docs/bucket_to_run.md: each command is one, with a config in a bucket, and the bytes are those of the files."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from cm3leon_jax import config_file
from cm3leon_jax.cli import Parser, _parser, _split_overrides
from cm3leon_jax.commands.table import COMMANDS
from cm3leon_jax.config import Config
from cm3leon_jax.data.corpus.prepared import token_dtype
from cm3leon_jax.planning.accelerator_types import find_pod
from cm3leon_jax.storage import objects
from tests.storage import servers

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "bucket_to_run.md").read_text(encoding="utf-8")
(SNIPPET,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
_LINES = "\n".join(line[4:] for line in PAGE.splitlines() if line.startswith("    ")).replace("\\\n", " ")
RENDERED = [line.partition("|")[0] for line in _LINES.splitlines() if line.startswith("python launch/render_gke.py")]
COMMAND_LINES = [line for line in _LINES.splitlines() if line.startswith("cm3leon ")]


@pytest.fixture
def bucket(cache) -> str:
    """The page's bucket, with its config; also what was an address of the page, now one of the store on loopback."""
    objects.write_object_bytes(f"gs://{servers.BUCKET}/mine.py", SNIPPET.replace("BUCKET", servers.BUCKET).encode())
    return servers.BUCKET


def checked(words: list[str]) -> tuple[str, Config]:
    """Reads a command as the command line does, without running it."""
    command, *rest = words
    overrides, rest = _split_overrides(rest)
    module = importlib.import_module(COMMANDS[command].module)
    parser: Parser = _parser(command, "", lists_fields=False)
    if hasattr(module, "add_arguments"):
        module.add_arguments(parser)
    arguments = parser.parse_args(rest)
    if devices := getattr(arguments, "topology", None):
        assert find_pod(devices).num_devices == 256
    workdir = arguments.workdir or config_file.default_workdir(arguments.config)
    return command, config_file.load(arguments.config, str(workdir), overrides)


def test_every_step_has_its_command():
    named = [shlex.split(line.partition(" -- ")[2])[0] for line in RENDERED]
    named += [line.split()[1] for line in COMMAND_LINES]
    order = ["train-text-tokenizer", "import", "train-image-tokenizer", "prepare", "train", "evaluate", "export"]
    assert [name for name in dict.fromkeys(named) if name in order] == order
    assert {"plan", "inspect"} <= set(named)


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_a_command_of_the_page_is_one(line, bucket):
    checked(shlex.split(line.replace("BUCKET", bucket))[1:])


@pytest.mark.parametrize("line", RENDERED, ids=lambda line: line.partition("NAME=")[2].split()[0])
def test_a_job_of_the_page_is_one(line, bucket):
    line = line.replace("REGISTRY", "registry").replace("ACCOUNT=ACCOUNT", "ACCOUNT=account").replace("BUCKET", bucket)
    printed = subprocess.run(
        [sys.executable, *shlex.split(line)[1:]], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    *_, found = yaml.safe_load_all(printed)
    job = found["spec"]
    if found["kind"] == "JobSet":
        (workers,) = job["replicatedJobs"]
        job = workers["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    command, config = checked(container["args"])
    assert config.corpus.mixture == f"webdataset:gs://{bucket}/laion"
    devices = container["resources"]["limits"].get("google.com/tpu")
    # The image is of the variant that the nodes need.
    assert container["image"] == f"registry/cm3leon:{'tpu' if devices else 'cpu'}"
    if job["completions"] > 1:
        assert COMMANDS[command].distributed
    if command == "train":
        assert int(devices) * job["completions"] == 256
        assert config.mesh.replica * config.mesh.fsdp * config.mesh.tensor == 256


def test_the_bytes_are_those_of_the_files():
    rows = dict(re.findall(r"^\| ([\w-]+ ?\w*)[^|]*\| ([\d,]+) per", PAGE, flags=re.MULTILINE))
    found = {name.strip(): int(value.replace(",", "")) for name, value in rows.items()}
    config = config_file.load("cm3leon_350m", "run")
    plan_vocabulary = 65_152
    tokens = int(re.findall(r"token shards: ([\d,]+) tokens", PAGE)[0].replace(",", ""))
    offset, checksum = np.dtype(np.int64).itemsize, np.dtype(np.uint32).itemsize
    assert found["token shards"] == tokens * token_dtype(plan_vocabulary).itemsize + offset + checksum
    kept = config.retrieval.num_kept
    assert found["neighbors and"] == kept * (np.dtype(np.int64).itemsize + np.dtype(np.float32).itemsize)
    assert found["vectors of"] == 2 * 2 * 512 * np.dtype(np.float16).itemsize
    assert f"`config.train.keep_checkpoints` ({config.train.keep_checkpoints})" in PAGE


@pytest.mark.parametrize("name", ["mine.py", "a:b/mine.py"])
def test_a_config_in_a_bucket_has_variants(root, name, tmp_path):
    config = "ConfigDict({'model': {'num_layers': int(size)}})"
    content = f"from ml_collections import ConfigDict\ndef get_config(size='1'):\n    return {config}\n".encode()
    objects.write_object_bytes(f"{root}/{name}", content)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(content)
    for where in (root, tmp_path):
        for variant, layers in (("", 1), (":3", 3)):
            assert config_file.load(f"{where}/{name}{variant}", "run").model.num_layers == layers
