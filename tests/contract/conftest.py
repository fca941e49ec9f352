"""Fixtures of the contract suite: each store, empty, as a factory that can open it again.

``store_factory`` is parametrised over every store; ``factory()`` opens the store on the same data each time, so a
test that closes one store and opens another sees a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from logsvc.store import Store

StoreFactory = Callable[[], Store]


@pytest.fixture
def embedded_factory(tmp_path: Path) -> StoreFactory:
    from logsvc.store.embedded import EmbeddedStore

    return lambda: EmbeddedStore(tmp_path / "index")


# ELASTIC HOOK (owned by the elastic store): a fixture ``elastic_factory`` with the same meaning, over a server from
# tests/support/elasticsearch.py. Until it exists here the "elastic" parameter is skipped.


@pytest.fixture(params=["embedded", pytest.param("elastic", marks=pytest.mark.elasticsearch)])
def store_factory(request: pytest.FixtureRequest) -> Iterator[StoreFactory]:
    """Open the store under test; every store that a test opened is closed after it."""
    try:
        make: StoreFactory = request.getfixturevalue(f"{request.param}_factory")
    except pytest.FixtureLookupError:
        pytest.skip(f"no {request.param} store here")
    with ExitStack() as opened:

        def open_store() -> Store:
            store = make()
            opened.callback(store.close)
            return store

        yield open_store


@pytest.fixture
def store(store_factory: StoreFactory) -> Store:
    """The store under test, empty."""
    return store_factory()
