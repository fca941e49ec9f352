"""Fixtures of the end-to-end tests: a service process on each store."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.elasticsearch import elasticsearch_url  # noqa: F401 - a fixture
from tests.support.service import ServiceProcess


@pytest.fixture(params=["embedded", pytest.param("elastic", marks=pytest.mark.elasticsearch)])
def store_settings(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Settings that choose a store of the test's own."""
    if request.param == "embedded":
        yield {}
        return
    url: str = request.getfixturevalue("elasticsearch_url")
    prefix = f"e2e-{secrets.token_hex(4)}"
    yield {"LOGSVC_STORE_URL": url, "LOGSVC_STORE_PREFIX": prefix}
    for kind in ("", "_index_template/"):
        httpx.delete(f"{url}/{kind}{prefix}-*", timeout=60)


@pytest.fixture
def service(tmp_path: Path, store_settings: dict[str, str]) -> Iterator[ServiceProcess]:
    """A running service with a key that may send and read."""
    process = ServiceProcess(tmp_path, **store_settings)
    process.use(process.make_key())
    try:
        yield process.start()
    finally:
        process.close()


@pytest.fixture
def embedded_service(tmp_path: Path) -> Iterator[ServiceProcess]:
    """A running service on the embedded store, for what no store decides."""
    process = ServiceProcess(tmp_path)
    process.use(process.make_key())
    try:
        yield process.start()
    finally:
        process.close()


@pytest.fixture(scope="module")
def shared_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """One service on the embedded store for a whole module of tests that do not count each other's records."""
    process = ServiceProcess(tmp_path_factory.mktemp("shared"))
    process.use(process.make_key())
    try:
        yield process.start()
    finally:
        process.close()
