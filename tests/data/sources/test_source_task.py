"""Mixtures of sources that a config spells, and the page about them."""

import re
from pathlib import Path

import pytest
import seqio

from cm3leon_jax.data.corpus.config import CorpusConfig
from cm3leon_jax.data.sources import AnnotationsConfig, FolderConfig, add_source_task
from cm3leon_jax.data.sources.annotated import AnnotatedSource
from cm3leon_jax.data.sources.reading import open_mixture, read_documents
from cm3leon_jax.data.sources.registry import SOURCES
from cm3leon_jax.data.templates import TEMPLATES
from cm3leon_jax.errors import UserError
from tests.data.sources.published import shown, write_images, write_json

PAGE = (Path(__file__).parents[3] / "docs" / "instruction_data.md").read_text(encoding="utf-8")
DATA_PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")


@pytest.fixture
def folders(tmp_path):
    """Conversations in two folders of one name, and a captioned image in a third."""
    for name in ("first", "second"):
        write_images(tmp_path / name / "data", "a.png")
        turns = [{"from": "human", "value": f"<image>\n{name}?"}, {"from": "gpt", "value": "Yes."}]
        write_json(tmp_path / name / "data" / "entries.json", [{"image": "a.png", "conversations": turns}])
    write_images(tmp_path / "photos", "b.png")
    (tmp_path / "photos" / "b.txt").write_text("a photo")
    return tmp_path


def test_sources_mix(folders):
    whole = FolderConfig(held_out_fraction=0.0)
    renamed = AnnotationsConfig(templates={"questions": "questions_after_image"})
    add_source_task("mixed_first", f"llava:{folders}/first/data", whole)
    add_source_task("mixed_second", f"llava:{folders}/second/data", whole, renamed)
    add_source_task("mixed_photos", f"folder:{folders}/photos", whole)
    names = ["mixed_first", "mixed_second", "mixed_photos"]
    seqio.MixtureRegistry.add("mixed_sources", [(name, rate) for rate, name in enumerate(names, start=1)])
    corpus = CorpusConfig(mixture="mixed_sources")
    assert {task.name: task.rate for task in open_mixture(corpus)} == {name: n for n, name in enumerate(names, 1)}
    assert sorted(shown(each) for each in read_documents(corpus, "train")) == [
        ("", "a photo", "<0>"),
        ("questions", "<0>", "first?", "Yes."),
        ("questions_after_image", "<0>", "second?", "Yes."),
    ]
    assert all(task.provenance() for task in open_mixture(corpus))
    assert open_mixture(CorpusConfig(mixture=f"llava:{folders}/first/data"))[0].name == "llava_data"
    add_source_task("mixed_again", f"llava:{folders}/second/data", whole)
    assert "llava_data" in seqio.TaskRegistry.names()
    with pytest.raises(UserError, match="the task 'mixed_again' cannot be registered: "):
        add_source_task("mixed_again", f"llava:{folders}/second/data", whole)


def test_what_is_no_source_is_one_line(tmp_path):
    with pytest.raises(UserError, match="the task 'x' is of the source '/data/vqa': begin it with one of folder:, "):
        add_source_task("x", "/data/vqa")
    with pytest.raises(UserError, match="nothing is at that path; give that of questions of VQAv2"):
        add_source_task("x", f"vqa:{tmp_path}/nowhere")


def test_the_pages_have_every_kind_and_templates_that_there_are():
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", PAGE, re.MULTILINE))
    kinds = [kind for kind in SOURCES if issubclass(SOURCES.load(kind), AnnotatedSource)]
    assert [*re.findall(r"^\| `(\w+):PATH` \|", DATA_PAGE, re.MULTILINE), *rows] == kinds
    for templates in rows.values():
        assert set(re.findall(r"`(\w+)`", templates)) <= set(TEMPLATES)


def test_the_mixture_of_the_page_is_made(monkeypatch):
    (code, _) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    made, mixed = [], []
    monkeypatch.setattr("cm3leon_jax.data.sources.source_task.add_source_task", lambda *a, **b: made.append(a))
    monkeypatch.setattr(seqio.MixtureRegistry, "add", lambda *arguments: mixed.append(arguments))
    exec(code, {})
    assert [name for name, _ in mixed[0][1]] == [name for name, _ in made]
    assert {source.partition(":")[0] for _, source in made} <= set(SOURCES)
