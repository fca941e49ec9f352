"""The HTTP API: one application over the service's parts.

Every answer about something wrong is one RFC 9457 problem (problems.py); every route but
``/healthz`` and ``/readyz`` needs a key (auth.py); the key's tenant is the only tenant that a
request can reach.

Not here: how records are accepted (ingest.py), found (store/) or judged (detection.py).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import RedirectResponse, Response
from fastapi.security import HTTPBasic, HTTPBearer

from logsvc import __version__
from logsvc.api import erasures, explore, health, ingest, loss, problems, records, tasks, tickets
from logsvc.api.auth import only_known_parameters
from logsvc.api.services import Services
from logsvc.errors import NotFound

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

DESCRIPTION = """\
Ship logs, search them, read the tickets that anomalies became.

Every request carries a key: `Authorization: Bearer KEY`, or Basic with the key as the password.
Errors are `application/problem+json` (RFC 9457). Times are RFC 3339 in UTC; `from` and `to` also
take relative times such as `now-15m`.
"""


# For the description only: auth.py finds the key itself, and answers with problems.
_KEY_SCHEMES = [
    Depends(HTTPBearer(auto_error=False, description="The key.")),
    Depends(HTTPBasic(auto_error=False, description="Any name, and the key as the password.")),
]


def create_api(services: Services, lifespan: Lifespan | None = None) -> FastAPI:
    """Return the application over ``services``; ``lifespan`` opens and closes them around it."""
    api = FastAPI(
        title="logsvc",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere; the schema is at /openapi.json
        redoc_url=None,
        openapi_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    api.state.services = services
    problems.install(api)
    # explore before records: its paths are the longer ones
    for module in (ingest, explore, loss, records, tasks, tickets, erasures):
        api.include_router(module.router, dependencies=[Depends(only_known_parameters), *_KEY_SCHEMES])
    api.include_router(health.router)

    @api.get("/", include_in_schema=False)
    def root(request: Request) -> Response:
        """Send a browser to the tickets; tell everyone else where the API is."""
        if problems.is_browser(request):
            return RedirectResponse("/api/v1/tickets", status_code=307)
        raise NotFound("nothing is served at /; the API is at /api/v1, its description at /openapi.json")

    describe = api.openapi

    def openapi() -> dict[str, Any]:
        """Return the OpenAPI document, without the answer to wrong parameters that FastAPI would give."""
        document = describe()
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)  # ours is a problem, and 400
        return document

    api.openapi = openapi  # type: ignore[method-assign]  # as FastAPI says to
    return api
