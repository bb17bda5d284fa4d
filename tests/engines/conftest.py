"""Engines of others that serve exported folders, in an environment of their own: `make engines` names its Python."""

import os

from tests.huggingface.conftest import make_run  # noqa: F401 - a fixture

# Elsewhere these tests are not collected, so that no test run misses a tool of a gigabyte.
collect_ignore_glob = [] if "ENGINES_PYTHON" in os.environ else ["test_*.py"]
