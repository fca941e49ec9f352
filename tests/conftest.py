"""What holds for every test: a clean environment, no clock in a property, and in CI no skipped test.

A test that is skipped proves nothing, and nobody reads the list of skipped ones. Where ``CI`` is set, a skip is
therefore a failure with the skip's own reason.

Not here: fixtures. They live beside the tests that use them or in ``tests/support``.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Machines differ in speed, so no property has a deadline and none fails for generating slowly.
settings.register_profile(
    "default",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("quick", settings.get_profile("default"), max_examples=15)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=2_000)
settings.load_profile("default")


def pytest_configure() -> None:
    """Forget the settings of whoever runs the tests, here and so in every process that a test starts."""
    for name in list(os.environ):
        if name.startswith("LOGSVC_") and not name.startswith("LOGSVC_TEST_"):
            del os.environ[name]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skipped test into a failed one where CI is set."""
    return _without_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn a module that skips itself into a failed one where CI is set."""
    return _without_skip((yield))


def _without_skip(report: Any) -> Any:
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"a skip is a failure in CI: {reason}"
    return report
