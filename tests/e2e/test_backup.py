"""A backup through the commands, beside a service under load, with Elasticsearch; put back and searched."""

from __future__ import annotations

import json
import secrets
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from logsvc import backup
from logsvc.store.elastic import ElasticStore, Snapshots
from tests.e2e.conftest import running
from tests.support.elasticsearch import drop_indices
from tests.support.service import ServiceProcess


@pytest.fixture
def repository(elasticsearch_url: str) -> Iterator[dict[str, str]]:
    """Settings with a snapshot repository of the test's own in Elasticsearch."""
    name = f"e2e-{secrets.token_hex(4)}"
    address = f"{elasticsearch_url}/_snapshot/{name}"
    with httpx.Client(timeout=60, trust_env=False) as http:
        # Below the server's path.repo.
        made = http.put(address, json={"type": "fs", "settings": {"location": name}})
        assert made.is_success, made.text
        try:
            yield {
                "LOGSVC_STORE_URL": elasticsearch_url,
                "LOGSVC_STORE_PREFIX": name,
                "LOGSVC_STORE_REPOSITORY": name,
            }
            left = http.get(f"{address}/_all").json()["snapshots"]
            assert len(left) == 1, "a backup that --keep removed takes its snapshot along"
        finally:
            drop_indices(elasticsearch_url, name)
            http.delete(f"{address}/*")
            http.delete(address)


@pytest.mark.elasticsearch
@pytest.mark.slow(seconds=60)
def test_a_backup_beside_a_service_under_load_is_put_back_whole(tmp_path: Path, repository: dict[str, str]) -> None:
    folder = tmp_path / "backups"
    url, prefix = repository["LOGSVC_STORE_URL"], repository["LOGSVC_STORE_PREFIX"]
    snapshots = Snapshots(ElasticStore(url, prefix=prefix), repository["LOGSVC_STORE_REPOSITORY"])
    acknowledged = 0
    ended = threading.Event()
    (tmp_path / "one").mkdir()
    with running(tmp_path / "one", **repository) as service:
        key = service.make_key("ingest", "read")
        service.use(key)

        def load() -> None:
            nonlocal acknowledged
            while not ended.wait(0.1):
                ids = range(acknowledged, acknowledged + 100)
                # Without an id of their own nothing but the journal's numbers keeps a replay from doubling them.
                service.ingest({"message": "charged", "labels": {"n": str(n)}} for n in ids)
                acknowledged = ids.stop

        loader = threading.Thread(target=load)
        loader.start()
        try:
            service.wait("some load", lambda: acknowledged >= 500)
            backup.back_up(
                service.data_dir,
                folder,
                now=datetime.now(UTC),
                state=service.data_dir / "state.db",
                store_name="elasticsearch",
                open_store=pytest.fail,
                server=snapshots,
            )
            killed = service.run("backup", str(folder), check=False, LOGSVC_TEST_KILL_AT="backup.snapshotted")
            assert killed.returncode == -9
            before = acknowledged
            made = json.loads(service.run("backup", str(folder), "--keep", "1", "-o", "json").stdout)
        finally:
            ended.set()
            loader.join()
        assert service.stop() == 0
    assert made["through_seq"] >= before > 500
    other = ServiceProcess(tmp_path, **repository)
    try:
        manifest = backup.manifest(folder)
        assert backup.verify(folder, manifest, snapshots) == []
        refused = other.run("restore", str(folder), check=False)
        assert "--overwrite" in refused.stderr
        # Else the next try would take what is there for its own.
        assert not (other.data_dir / backup.RESTORING).exists()
        # As on a server that has nothing but the repository.
        drop_indices(url, prefix)
        other.run("restore", str(folder))
        other.start()
        other.use(key)  # keys came back, hashed as they were
        other.ingest([{"message": "charged", "labels": {"n": "later"}}])
        other.wait("what came after the restore", lambda: other.count("labels.n:later") == 1)
        found = Counter(record["labels.n"] for record in other.walk())
        assert {n for n in range(before) if not found[str(n)]} == set()
        assert {n: times for n, times in found.items() if times > 1} == {}
    finally:
        other.close()
