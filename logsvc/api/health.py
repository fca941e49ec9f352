"""Health, metrics and the API's own description."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from logsvc.api.auth import Anyone, Reader
from logsvc.api.parameters import json_response
from logsvc.api.problems import problem
from logsvc.api.services import ServicesDep
from logsvc.errors import Forbidden
from logsvc.keys import Scope

router = APIRouter(tags=["service"])


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="Is the process alive?", responses={200: {"description": "It is."}})
async def healthz() -> Response:
    """Answer as long as the process serves; needs no key."""
    return json_response({"status": "ok"})


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    summary="Can it take and find records?",
    responses={200: {"description": "It can."}, 503: {"description": "It can't; the problem says why."}},
)
def readyz(services: ServicesDep) -> Response:
    """Answer 200 when records are accepted and the store answers; needs no key."""
    reasons = services.why_not_ready()
    if reasons:
        return problem(503, "; ".join(reasons), headers={"Retry-After": "5"})
    return json_response({"status": "ready"})


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    responses={200: {"content": {"text/plain": {"example": "store_up 1.0\n"}}}},
)
def metrics(services: ServicesDep, reader: Reader) -> Response:
    """Return the metrics of the whole service in Prometheus' text format, to its own tenant only."""
    if reader.tenant != services.tenant and not reader.allows(Scope.ADMIN):
        raise Forbidden(
            f"metrics are about all tenants; they need a key of the tenant {services.tenant}, or an admin's"
        )
    body, media_type = services.telemetry.render()
    return Response(body, headers={"Content-Type": media_type})


@router.get("/openapi.json", summary="Description of this API")
def openapi(request: Request, _anyone: Anyone) -> Response:
    """Return the OpenAPI document."""
    return json_response(request.app.openapi())
