"""`prepare` from buckets to buckets, by processes that share nothing else: the same corpus as on a local disk."""

import json
import time
from pathlib import Path

import pytest

from cm3leon_jax.errors import EXIT_RESTART
from cm3leon_jax.storage import objects
from tests import launched
from tests.commands.test_killed_prepare import write_inputs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def local(tmp_path_factory, vocabulary, image_tokenizer) -> Path:
    """A folder of captioned images, all that `prepare` needs, and the corpus that it makes of them."""
    root = tmp_path_factory.mktemp("local")
    write_inputs(root, vocabulary, image_tokenizer)
    launched.run(
        ["prepare", f"--config={root}/tiny.py", f"--workdir={root}", "--config.corpus.folder.compare_times=False"]
    )
    return root


def put(local: Path, root: str) -> None:
    """Puts all but the corpus into a bucket."""
    for file in local.rglob("*"):
        name = file.relative_to(local)
        if file.is_file() and name.parts[0] != "corpus":
            content = file.read_bytes()
            if name.name == "tiny.py":
                content = content.replace(str(local).encode(), root.encode())
            objects.write_object_bytes(f"{root}/{name}", content)


def stored_corpus(root: str) -> dict[str, bytes]:
    names = objects.list_objects(f"{root}/run/corpus")
    contents = objects.in_threads(lambda name: objects.read_object_bytes(f"{root}/run/corpus/{name}"), list(names))
    return dict(zip(names, contents, strict=True))


def same_but_for_the_source(files: dict[str, bytes]) -> dict[str, object]:
    """Files, without what says where the documents came from."""
    found: dict[str, object] = dict(files)
    for name in ("plan.json", "manifest.json"):
        record = json.loads(files[name])
        record.pop("checksum", None)
        record["mixture"], record["sources"] = "", {}
        for task in record.get("tasks", {}).values():
            task.pop("source")
        found[name] = record
    return found


def test_prepare_killed_on_two_hosts_goes_on_on_others(local, root, cache, tmp_path):
    put(local, root)
    command = [
        "prepare",
        f"--config={root}/tiny.py",
        f"--workdir={root}/run",
        "--config.corpus.folder.compare_times=False",
    ]
    seconds, killed = 2.0, 0
    for attempt in range(4):
        processes = launched.start(command, 2, own=lambda number: {"CM3LEON_CACHE": str(tmp_path / f"host_{number}")})
        count = len(objects.list_objects(f"{root}/run/corpus"))
        launched.wait_until(
            lambda least=count + 7: len(objects.list_objects(f"{root}/run/corpus")) >= least, processes[0]
        )
        time.sleep(0.01 * attempt)
        killed += processes[attempt % 2].poll() is None
        processes[attempt % 2].kill()
        ended = launched.ended(processes, 400)
        codes = [code for code, _ in ended]
        if codes == [0, 0]:
            break
        assert codes[1 - attempt % 2] in (EXIT_RESTART, 0) and codes[attempt % 2] <= 0, ended
    assert killed >= 2 and seconds
    # Hosts that have nothing.
    last = launched.start(command, 2, own=lambda number: {"CM3LEON_CACHE": str(tmp_path / f"new_{number}")})
    ended = launched.ended(last, 900)
    assert [code for code, _ in ended] == [0, 0], "\n".join(text for _, text in ended)
    found = stored_corpus(root)
    assert same_but_for_the_source(found) == same_but_for_the_source(launched.files_below(local / "corpus"))
    again = launched.ended(launched.start(command, own=lambda number: {"CM3LEON_CACHE": str(tmp_path / "third")}))
    assert again[0][0] == 0 and again[0][1].count("complete: nothing to do") == 2
    assert f"{root}/run/corpus" in again[0][1] and str(tmp_path) not in again[0][1]
    assert stored_corpus(root) == found
