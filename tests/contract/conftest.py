"""Fixtures of the contract suite: each store, empty, as a factory that can open it again.

``store_factory`` is parametrised over every store; ``factory()`` opens the store on the same data each time, so a
test that closes one store and opens another sees a restart.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from logsvc.store import Store
from tests.support import elasticsearch

StoreFactory = Callable[[], Store]

elasticsearch_url = elasticsearch.elasticsearch_url  # a fixture of this folder


_STORES = ["embedded", pytest.param("elastic", marks=pytest.mark.elasticsearch)]


@contextmanager
def _factory(request: pytest.FixtureRequest, directory: Path) -> Iterator[StoreFactory]:
    """Lend what opens the store that ``request`` names, always on the same data; everything it opened is closed.

    In Elasticsearch that is an alias of its own, on the server that all tests share; its indices go in the end.
    """
    with ExitStack() as stack:
        if request.param == "embedded":
            from logsvc.store.embedded import EmbeddedStore

            def make() -> Store:
                return EmbeddedStore(directory / "index")

        else:
            from logsvc.store.elastic import ElasticStore

            url: str = request.getfixturevalue("elasticsearch_url")
            prefix = f"test-{uuid.uuid4().hex}"
            stack.callback(elasticsearch.drop_indices, url, prefix)

            def make() -> Store:
                return ElasticStore(url, prefix=prefix)

        def open_store() -> Store:
            store = make()
            stack.callback(store.close)
            return store

        yield open_store


@pytest.fixture(params=_STORES)
def store_factory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoreFactory]:
    """Open the store under test."""
    with _factory(request, tmp_path) as factory:
        yield factory


@pytest.fixture
def store(store_factory: StoreFactory) -> Store:
    """The store under test, empty."""
    return store_factory()


@pytest.fixture(scope="module", params=_STORES)
def shared_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The store under test for all tests of a module that only read what the module has put there."""
    with _factory(request, tmp_path_factory.mktemp("shared")) as factory:
        yield factory()
