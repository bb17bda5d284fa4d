"""What a skip means, here and where CI is set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WAYS = {
    "mark": "import pytest\n@pytest.mark.skipif(True, reason='no tool')\ndef test_it(): pass\n",
    "call": "import pytest\ndef test_it(): pytest.skip('no tool')\n",
    "fixture": "import pytest\n@pytest.fixture\ndef tool(): pytest.skip('no tool')\ndef test_it(tool): pass\n",
    "import": "import pytest\ndef test_it(): pytest.importorskip('no_such_module', reason='no tool')\n",
    "file": "import pytest\npytest.importorskip('no_such_module', reason='no tool')\ndef test_it(): pass\n",
}
OTHERS = "import pytest\ndef test_runs(): pass\n@pytest.mark.xfail\ndef test_known(): assert False\n"


@pytest.mark.parametrize(
    ("ci", "code", "counts"),
    [
        ("", 0, "1 passed, 5 skipped, 1 xfailed"),
        ("false", 0, "1 passed, 5 skipped, 1 xfailed"),
        # What skips in the test itself is a failure, what skips before it an error.
        ("true", 1, "2 failed, 1 passed, 1 xfailed, 3 errors"),
    ],
)
def test_a_skip_fails_where_ci_is_set(tmp_path, ci, code, counts):
    for way, text in WAYS.items():
        (tmp_path / f"test_{way}.py").write_text(text)
    (tmp_path / "test_others.py").write_text(OTHERS)
    program = [sys.executable, "-m", "pytest", "-p", "tests.skips", "-rA", "-c", os.devnull, f"--rootdir={tmp_path}"]
    ended = subprocess.run(
        [*program, "--continue-on-collection-errors", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"CI": ci, "PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == code, ended.stdout
    assert counts in ended.stdout.splitlines()[-1]
    assert "no tool" in ended.stdout
    assert ended.stdout.count("CI is set, so this must run, and cannot: ") >= (len(WAYS) if code else 0)
