from __future__ import annotations

from collections.abc import Iterator

import pytest

from shippers import context
from tests.unit.shippers.support import Service, serving


@pytest.fixture
def service() -> Iterator[Service]:
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def _no_shipper_is_left_open() -> Iterator[None]:
    """Fail the test that leaves a shipper to which the next one's task runs would be reported."""
    yield
    left = list(context._reporters)
    context._reporters.clear()
    assert left == [], "close every handler, sink and batcher that the test opens"
