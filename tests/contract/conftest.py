"""Fixtures of the contract suite: each store, empty, as a factory that can open it again.

``store_factory`` is parametrised over every store; ``factory()`` opens the store on the same data each time, so a
test that closes one store and opens another sees a restart.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from logsvc.store import Store
from tests.support import elasticsearch

StoreFactory = Callable[[], Store]

elasticsearch_url = elasticsearch.elasticsearch_url  # a fixture of this folder


@pytest.fixture
def embedded_factory(tmp_path: Path) -> StoreFactory:
    from logsvc.store.embedded import EmbeddedStore

    return lambda: EmbeddedStore(tmp_path / "index")


@pytest.fixture
def elastic_factory(elasticsearch_url: str) -> Iterator[StoreFactory]:
    """Stores over one alias of its own, on the server that all tests share; its indices go with the test."""
    from logsvc.store.elastic import ElasticStore

    prefix = f"test-{uuid.uuid4().hex}"
    yield lambda: ElasticStore(elasticsearch_url, prefix=prefix)
    elasticsearch.drop_indices(elasticsearch_url, prefix)


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
