from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.shippers.support import Service, serving


@pytest.fixture
def service() -> Iterator[Service]:
    with serving() as running:
        yield running
