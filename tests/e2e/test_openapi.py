"""The API's own description is true: each route is in it, with an example, and its examples are answered."""

from __future__ import annotations

from tests.support.service import ServiceProcess


def test_every_route_is_described_with_an_example_and_no_answer_that_is_never_given(
    embedded_service: ServiceProcess,
) -> None:
    document = embedded_service.http.get("/openapi.json").json()
    assert set(document["paths"]) >= {
        "/api/v1/ingest",
        "/api/v1/search",
        "/api/v1/count",
        "/api/v1/histogram",
        "/api/v1/records/{id}",
        "/api/v1/records/{id}/context",
        "/api/v1/facets",
        "/api/v1/values",
        "/api/v1/fields",
        "/api/v1/export",
        "/api/v1/tail",
        "/api/v1/tickets",
        "/api/v1/tickets/{id}",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert "422" not in operation["responses"], path
            if path.startswith("/api/v1/"):
                good = operation["responses"].get("200") or operation["responses"]["202"]
                assert all("example" in content for name, content in good["content"].items() if name != "text/html"), (
                    path
                )
                assert {"HTTPBearer": []} in operation["security"], path
    assert "Duplicate Operation ID" not in embedded_service.log


def test_every_example_of_a_parameter_is_accepted(embedded_service: ServiceProcess) -> None:
    document = embedded_service.http.get("/openapi.json").json()
    tried = 0
    for path, operations in document["paths"].items():
        if path == "/api/v1/tail" or "{" in path or "get" not in operations:
            continue
        parameters = operations["get"].get("parameters", ())
        needed = {p["name"]: p["schema"]["examples"][0] for p in parameters if p["required"]}
        for parameter in parameters:
            schema = parameter["schema"]
            for example in [*schema.get("examples", ()), *parameter.get("examples", ())]:
                answer = embedded_service.http.get(path, params={**needed, parameter["name"]: example})
                assert answer.status_code == 200, (path, parameter["name"], answer.text)
                tried += 1
    assert tried >= 10
