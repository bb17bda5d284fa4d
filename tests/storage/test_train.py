"""Training on buckets, by processes that share nothing else, killed and continued: the steps of an undisturbed run."""

import json
from pathlib import Path

import pytest

from cm3leon_jax import paths
from cm3leon_jax.checkpoints import Checkpoints
from cm3leon_jax.progress import read_step_log
from cm3leon_jax.storage import mirror, objects
from tests import launched
from tests.training.test_runs import CONFIG

pytestmark = pytest.mark.slow

NUM_STEPS, SAVE_EVERY = 30, 5
ARGUMENTS = [f"--config.train.num_tokens={8 * 48 * NUM_STEPS}", f"--config.train.save_every={SAVE_EVERY}"]


def put(folder: Path, address: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            objects.write_object_bytes(f"{address}/{file.relative_to(folder)}", file.read_bytes())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, vocabulary, corpus) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    vocabulary.save(folder / "vocabulary")
    (folder / "tiny.py").write_text(CONFIG.format(corpus=corpus.path, folder=folder))
    launched.run(["train", f"--config={folder}/tiny.py", f"--workdir={folder}/run", *ARGUMENTS], devices=2)
    return folder / "run"


def numbers(lines: list[dict]) -> list[dict]:
    """What does not depend on the clock."""
    return [{name: line[name] for name in ("step", "loss", "grad_norm", "learning_rate")} for line in lines]


def test_training_killed_and_continued_elsewhere(undisturbed, corpus, vocabulary, root, cache, tmp_path, monkeypatch):
    put(corpus.path, f"{root}/corpus")
    put(undisturbed.parent / "vocabulary", f"{root}/vocabulary")
    config = CONFIG.format(corpus=f"{root}/corpus", folder=root).replace(f"{root}/cache", str(tmp_path / "compiled"))
    objects.write_object_bytes(f"{root}/tiny.py", config.encode())
    workdir = f"{root}/run"
    command = ["train", f"--config={root}/tiny.py", f"--workdir={workdir}", *ARGUMENTS]

    def host(name: str):
        return lambda number: {"CM3LEON_CACHE": str(tmp_path / f"{name}_{number}")}

    def saved() -> list[int]:
        records = (name for name in objects.list_objects(f"{workdir}/checkpoints") if name.endswith("/record.json"))
        return sorted(int(name.partition("/")[0]) for name in records)

    first = launched.start(command, 2, own=host("first"))
    launched.wait_until(lambda: bool(saved()), first[0], 400)
    first[1].kill()
    ended = launched.ended(first, 60)
    assert saved() and max(saved()) < NUM_STEPS, "\n".join(text for _, text in ended)
    at = max(saved())
    # Another number of processes, on a host that has nothing; killed, too.
    second = launched.start(command, 1, 2, own=host("second"))
    launched.wait_until(lambda: max(saved()) > at, second[0], 400)
    second[0].kill()
    launched.ended(second)
    ended = launched.ended(launched.start(command, 2, own=host("third")), 400)
    assert [code for code, _ in ended] == [0, 0], "\n".join(text for _, text in ended)
    assert "continued from the checkpoint of step" in ended[0][1] and str(tmp_path / "third_0") not in ended[0][1]

    monkeypatch.setenv("CM3LEON_CACHE", str(tmp_path / "reader"))
    copy = Path(paths.local(workdir, "--workdir"))
    mirror.refresh(copy, whole=False)
    assert numbers(read_step_log(copy / "metrics.jsonl")) == numbers(read_step_log(undisturbed / "metrics.jsonl"))
    with (
        Checkpoints(copy / "checkpoints", keep=2, read_only=True) as found,
        Checkpoints(undisturbed / "checkpoints", keep=2, read_only=True) as expected,
    ):
        assert found.steps == expected.steps == [20, 25, 30]
        for step in found.steps:
            assert found.bit_sums(step) == expected.bit_sums(step)
    stored = set(objects.list_objects(workdir))
    assert {name.split("/")[1] for name in stored if name.startswith("checkpoints/")} == {"20", "25", "30"}
    assert {name for name in stored if "/" not in name} == {"config.json", "metrics.jsonl"}
    assert any(name.startswith("tensorboard/") for name in stored)
    written = json.loads(objects.read_object_bytes(f"{workdir}/config.json"))
    assert written["corpus"]["path"] == f"{root}/corpus"


def test_training_through_faults(undisturbed, disturbed, corpus, tmp_path):
    root, proxy = disturbed
    put(corpus.path, f"{root}/corpus")
    put(undisturbed.parent / "vocabulary", f"{root}/vocabulary")
    config = tmp_path / "tiny.py"
    config.write_text(
        CONFIG.format(corpus=f"{root}/corpus", folder=root).replace(f"{root}/cache", str(tmp_path / "compiled"))
    )
    proxy.disturb_every(9)
    ended = launched.ended(
        launched.start(["train", f"--config={config}", f"--workdir={root}/run", *ARGUMENTS], devices=2), 900
    )
    proxy.disturb_every(1 << 30)
    assert ended[0][0] == 0, ended[0][1]
    assert len(proxy.faults) > 20
    copy = Path(paths.local(f"{root}/run", "--workdir"))
    mirror.refresh(copy, whole=False)
    assert numbers(read_step_log(copy / "metrics.jsonl")) == numbers(read_step_log(undisturbed / "metrics.jsonl"))
    with (
        Checkpoints(copy / "checkpoints", keep=2, read_only=True) as found,
        Checkpoints(undisturbed / "checkpoints", keep=2, read_only=True) as expected,
    ):
        assert found.steps == expected.steps
        assert all(found.bit_sums(step) == expected.bit_sums(step) for step in found.steps)
    assert not any(name.endswith(".lock") for name in objects.list_objects(f"{root}/run"))
