"""What holds for every test: a clean environment, no clock in a property, the longest first, and in CI no skipped test.

Tests run in random order on several workers. A test of minutes that one of them came to last would run alone, so
those marked ``slow(seconds)`` begin, dealt to the workers like cards.

A test that is skipped proves nothing, and nobody reads the list of skipped ones. Where ``CI`` is set, a skip is
therefore a failure with the skip's own reason.

Not here: fixtures. They live beside the tests that use them or in ``tests/support``.
"""

from __future__ import annotations

import itertools
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


@pytest.hookimpl(trylast=True)  # pytest-randomly shuffles first
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each worker's part of the tests its share of the longest, and those first.

    xdist's ``worksteal`` gives the first worker the first n-th of the tests, the second the next, and so on; then
    who has none left takes from the end of who has most.
    """
    workers: int = getattr(config, "workerinput", {}).get("workercount", 1)
    seconds = {item: _seconds(item) for item in items}
    long = sorted((item for item in items if seconds[item]), key=lambda item: -seconds[item])
    rest = iter([item for item in items if not seconds[item]])
    ordered: list[pytest.Item] = []
    for n in range(workers):
        part = (len(items) - len(ordered)) // (workers - n)
        mine = long[n::workers]
        ordered += mine + list(itertools.islice(rest, max(0, part - len(mine))))
    items[:] = ordered + list(rest)


def _seconds(item: pytest.Item) -> float:
    mark = item.get_closest_marker("slow")
    return 0.0 if mark is None else mark.kwargs["seconds"]


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
