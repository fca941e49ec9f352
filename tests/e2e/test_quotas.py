"""Quotas, as senders meet them."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import httpx

import shippers
from tests.support.service import ServiceProcess


def _metrics(service: ServiceProcess) -> str:
    headers = {"Authorization": f"Bearer {service.make_key('read')}"}
    return httpx.get(f"{service.url}/metrics", headers=headers, trust_env=False).text


def test_a_key_over_its_quota_is_told_when_to_come_again_and_then_is_taken(embedded_service: ServiceProcess) -> None:
    service = embedded_service
    key = service.make_key("ingest", records_per_second=10, burst_s=1)
    headers = {"Authorization": f"Bearer {key}"}
    body = b'{"message":"hello"}\n' * 25

    def send() -> httpx.Response:
        return httpx.post(f"{service.url}/api/v1/ingest", content=body, headers=headers, trust_env=False)

    assert send().status_code == 202
    refused = send()
    assert refused.status_code == 429
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["title"] == "Too Many Requests"
    assert "10 records per second" in refused.json()["detail"]
    wait_s = int(refused.headers["retry-after"])
    assert wait_s == 2  # 15 too many
    time.sleep(wait_s)  # what the header promises is what is tested
    assert send().status_code == 202
    assert 'ingest_throttled_requests_total{reason="quota_records"}' in _metrics(service)


def test_our_shippers_lose_nothing_to_a_quota(embedded_service: ServiceProcess, tmp_path: Path) -> None:
    service = embedded_service
    tenant = "quota_of_a_shipper"
    handler = shippers.LogHandler(
        service="billing",
        url=service.url,
        api_key=service.make_key("ingest", tenant=tenant, bytes_per_second=100 << 10, burst_s=1),
        spool_dir=str(tmp_path),
        settings=shippers.Settings(batch_max_records=100),
    )
    log = logging.getLogger("tests.quota")
    log.addHandler(handler)
    log.propagate = False
    try:
        for n in range(400):
            log.warning("record %d %s", n, "x" * 200)
        service.use(service.make_key(tenant=tenant))
        service.wait("all to be searchable", lambda: service.count() == 400)
    finally:
        log.removeHandler(handler)
        handler.close()
    assert 'ingest_throttled_requests_total{reason="quota_bytes"}' in _metrics(service)
