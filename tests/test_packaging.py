"""What is installed: the package with its templates, the configs and the launch files."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cm3leon_jax

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The package as a wheel has it, built from a copy of the checkout."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("cm3leon_jax", "configs", "examples", "launch"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "setup.py", "-q", "build", f"--build-lib={target}"]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    return target


def test_the_version_is_the_same_everywhere():
    version = cm3leon_jax.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()
    asked = [sys.executable, "setup.py", "--version"]
    assert subprocess.check_output(asked, cwd=ROOT, text=True).split()[-1] == version


def test_templates_configs_and_launch_files_are_installed(installed):
    names = {str(path.relative_to(installed / "cm3leon_jax")) for path in installed.rglob("*") if path.is_file()}
    assert {"evaluation/report.html.jinja", "commands/inspect.html.jinja", "py.typed"} <= names
    for folder in ("configs", "examples", "launch"):
        files = (path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc")
        assert {f"shipped/{path.relative_to(ROOT)}" for path in files} <= names
    assert os.access(installed / "cm3leon_jax" / "shipped" / "launch" / "local.sh", os.X_OK)


def test_a_config_of_ones_own_builds_on_an_installed_one(installed, tmp_path):
    (tmp_path / "mine.py").write_text("from configs import demo\nget_config = demo.get_config\n")
    code = (
        "from cm3leon_jax import config_file, shipped\n"
        f"assert shipped.shipped_folder().is_relative_to({str(installed)!r})\n"
        "for name in ('mine.py', 'demo', 'examples/digits/demo_opt.py'):\n"
        "    print(config_file.load(name, 'runs/x').model.model_dim)\n"
    )
    settings = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["128"] * 3, "")
