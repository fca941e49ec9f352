"""Fixtures of the end-to-end tests: a service process on each store."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.elasticsearch import drop_indices, elasticsearch_url  # noqa: F401 - one is a fixture
from tests.support.service import ServiceProcess

_STORES = ["embedded", pytest.param("elastic", marks=pytest.mark.elasticsearch)]


@contextmanager
def _settings(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Lend the settings of one store; in Elasticsearch with indices of its own, gone afterwards."""
    if request.param == "embedded":
        yield {}
        return
    url: str = request.getfixturevalue("elasticsearch_url")
    prefix = f"e2e-{secrets.token_hex(4)}"
    try:
        yield {"LOGSVC_STORE_URL": url, "LOGSVC_STORE_PREFIX": prefix}
    finally:
        drop_indices(url, prefix)


@pytest.fixture(params=_STORES)
def own_settings(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Settings of a store of the test's own, each store in turn."""
    with _settings(request) as settings:
        yield settings


@pytest.fixture(scope="session", params=_STORES)
def shared_settings(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Settings of each store in turn, for a service that many tests share."""
    with _settings(request) as settings:
        yield settings


@contextmanager
def running(directory: Path, **settings: str) -> Iterator[ServiceProcess]:
    """Run a service for the block."""
    process = ServiceProcess(directory, **settings)
    try:
        yield process.start()
    finally:
        process.close()


@pytest.fixture
def own_service(tmp_path: Path, own_settings: dict[str, str]) -> Iterator[ServiceProcess]:
    """A running service of the test's own, to kill and start again, on each store."""
    with running(tmp_path, **own_settings) as process:
        process.use(process.make_key())
        yield process


@pytest.fixture(scope="session")
def each_service(tmp_path_factory: pytest.TempPathFactory, shared_settings: dict[str, str]) -> Iterator[ServiceProcess]:
    """One service on each store for all tests that need no more than a tenant of their own."""
    with running(tmp_path_factory.mktemp("service"), **shared_settings) as process:
        yield process


@pytest.fixture
def service(each_service: ServiceProcess) -> ServiceProcess:
    """A running service on each store, with a key for a tenant that nobody else uses."""
    each_service.use(each_service.make_key(tenant=f"t{secrets.token_hex(6)}"))
    return each_service


@pytest.fixture(scope="session")
def one_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """One service on the embedded store."""
    with running(tmp_path_factory.mktemp("service")) as process:
        yield process


@pytest.fixture
def embedded_service(one_service: ServiceProcess) -> ServiceProcess:
    """A running service on the embedded store, for what no store decides, with a tenant of the test's own."""
    one_service.use(one_service.make_key(tenant=f"t{secrets.token_hex(6)}"))
    return one_service
