"""A test that cannot run here is skipped, with its reason; where CI is set it fails: nobody would miss it there.

Hooks of pytest. However a test skips (a mark, a call, a module that is not installed), they decide what it means.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """Of a test."""
    return _judged((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    """Of a file whose tests all skip."""
    return _judged((yield))


def _judged(report: Any) -> Any:
    # An expected failure is reported as a skip, too.
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI", "") not in ("", "0", "false"):
        report.outcome = "failed"
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        report.longrepr = f"CI is set, so this must run, and cannot: {reason}"
    return report
