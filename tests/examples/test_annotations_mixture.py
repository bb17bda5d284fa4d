"""All data sets of the example, made of tiny packages, are read by the readers of what is published."""

import importlib
import sys

import pytest

from cm3leon_jax import config_file
from cm3leon_jax.data.sources.registry import SOURCES
from cm3leon_jax.documents import Document
from cm3leon_jax.errors import UserError
from cm3leon_jax.evaluation.metrics import build_metrics
from cm3leon_jax.evaluation.sets.configured import build_sets
from examples.annotations import activities, convert, emoji_images
from tests.examples import annotation_packages as packages

KINDS = {
    *("instruct_pix2pix", "ultraedit", "omniedit", "magicbrush"),
    *("llava", "llava_onevision", "cauldron", "vqa", "localized_narratives"),
    *("coco_captions", "coco_objects", "coco_segmentation", "grit", "structures"),
}
MODULES = ("examples.annotations.tasks", "examples.annotations.annotations", "examples.annotations.packages")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The data sets of the tiny packages."""
    folder = tmp_path_factory.mktemp("annotations")
    packages.write_packages(folder / "packages")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(activities, "rasterize", packages.rendered)
        patched.setattr(emoji_images, "rasterize", packages.rendered)
        patched.setattr(activities, "SCENE_SIDE", 200)
        convert.convert(folder / "packages", folder / "data", resolution=32)
    return folder / "data"


@pytest.fixture
def modules(data, monkeypatch):
    """The modules of the example that know where the data is, imported for this folder."""
    import seqio

    monkeypatch.setenv("ANNOTATIONS", str(data))
    before = {name: sys.modules.pop(name, None) for name in MODULES}
    yield lambda name: importlib.import_module(f"examples.annotations.{name}")
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module
    for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
        for name in [each for each in registry.names() if each.startswith("annotations")]:
            registry.remove(name)


def test_every_kind_of_reader_takes_part(modules):
    tasks = modules("tasks")
    assert {source.partition(":")[0] for source, _ in tasks.TASKS.values()} == KINDS <= set(SOURCES)
    assert all(rate > 0 for _, rate in tasks.TASKS.values())


def test_without_the_data_sets_the_mixture_says_how_to_make_them(modules, monkeypatch, tmp_path):
    monkeypatch.setenv("ANNOTATIONS", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"no folder .*none: make it with python -m examples\.annotations\.convert"):
        modules("tasks")


@pytest.mark.slow
def test_every_task_has_documents_of_its_templates_and_skips_nothing(modules):
    from cm3leon_jax.data.corpus.config import CorpusConfig
    from cm3leon_jax.data.sources.reading import open_mixture

    tasks = modules("tasks")
    found = open_mixture(CorpusConfig(mixture="annotations"))
    assert {each.name for each in found} == set(tasks.TASKS)
    templates = set()
    for task in found:
        for split in ("train", "validation"):
            documents = list(task.documents(split))
            assert documents or split == "validation", task.name
            assert all(isinstance(each, Document) for each in documents), (task.name, documents[:3])
            templates |= {each.template for each in documents}
    assert templates >= {
        *("edit", "edits", "objects", "segmentation", "caption", "narrative", "question", "science_question"),
        *("questions", "questions_of_text", "question_of_images", "edges", "soft_edges", "scribble", "blur"),
    }


@pytest.mark.slow
def test_the_conversion_gives_the_same_files_again(data, tmp_path, monkeypatch):
    monkeypatch.setattr(activities, "rasterize", packages.rendered)
    monkeypatch.setattr(emoji_images, "rasterize", packages.rendered)
    monkeypatch.setattr(activities, "SCENE_SIDE", 200)
    packages.write_packages(tmp_path / "packages")
    convert.convert(tmp_path / "packages", tmp_path / "data", resolution=32)
    first, second = (
        {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for folder in (data, tmp_path / "data")
    )
    assert first == second


def test_held_out_data_is_what_the_config_measures(modules, data):
    modules("annotations")
    config = config_file.load("annotations", "runs/annotations")
    sets = build_sets(config.evaluate)
    assert build_metrics(config.evaluate.metrics).keys() == config.evaluate.metrics.keys()
    for name in ("tones", "lines", "styles", "emoji_questions", "captions", "sessions", "objects"):
        assert sets[name].items and sets[name].requests, name


def test_packages_that_are_missing_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["convert", f"--packages={tmp_path}", f"--output={tmp_path / 'data'}"])
    assert convert.main() == 2
    assert capsys.readouterr().err.startswith("error: no folder") and not (tmp_path / "data").exists()
    with pytest.raises(UserError, match="unpack the package kgeography-data"):
        convert.convert(tmp_path, tmp_path / "data", 32)
