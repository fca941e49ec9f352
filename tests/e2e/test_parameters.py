"""Parameters of the API: what a route would ignore is refused, and the one that was meant is named."""

from __future__ import annotations

import httpx
import pytest

from tests.support.service import ServiceProcess


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("/search?limt=1", "did you mean limit?"),
        ("/search?start=now-1h", "known here"),
        ("/count?form=now-1h", "did you mean from?"),
        ("/histogram?intervall=5m", "did you mean interval?"),
        ("/records/x?q=a", "known here: none"),
        ("/records/x/context?befor=1", "did you mean before?"),
        ("/facets?feld=level", "did you mean field?"),
        ("/export?fromat=csv", "did you mean format?"),
        ("/tail?query=a", "there is no parameter 'query'"),
        ("/tickets?stat=open", "did you mean state?"),
        ("/tickets/t-1?x=1", "known here: none"),
    ],
)
def test_a_parameter_that_would_be_ignored_is_refused(
    embedded_service: ServiceProcess, address: str, says: str
) -> None:
    answer = embedded_service.http.get(f"/api/v1{address}")
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert says in answer.json()["detail"]


def test_a_parameter_of_ingest_that_would_be_ignored_is_refused(embedded_service: ServiceProcess) -> None:
    answer = embedded_service.http.post("/api/v1/ingest?service=web", content=b'{"message":"a"}')
    assert answer.status_code == 400
    assert "'service'" in answer.json()["detail"]


def test_who_has_no_key_is_told_so_first(embedded_service: ServiceProcess) -> None:
    answer = httpx.get(f"{embedded_service.url}/api/v1/search?limt=1", trust_env=False)
    assert answer.status_code == 401
