"""Problems: the one shape of every HTTP error (RFC 9457, ``application/problem+json``).

A problem says the value, what was expected and the way out. It never carries a key, a path of
the server or a stack trace.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from loguru import logger
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from logsvc.errors import LogsvcError, Overloaded, QuerySyntaxError, StoreUnavailable, Unauthenticated

MEDIA_TYPE = "application/problem+json"


def problem(status: int, detail: str, *, headers: dict[str, str] | None = None, **more: object) -> Response:
    """Return a problem response; ``more`` are extension members, None is left out."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    body.update({name: value for name, value in more.items() if value is not None})
    return Response(msgspec.json.encode(body), status_code=status, media_type=MEDIA_TYPE, headers=headers)


def install(api: FastAPI) -> None:
    """Make every error of ``api`` a problem."""
    api.add_exception_handler(LogsvcError, _known)
    api.add_exception_handler(HTTPException, _http)
    api.add_exception_handler(RequestValidationError, _validation)
    api.add_exception_handler(ClientDisconnect, _hung_up)
    api.add_exception_handler(Exception, _unknown)


def render(error: LogsvcError, *, is_browser: bool = False) -> Response:
    """Return the problem that ``error`` becomes."""
    headers: dict[str, str] = {}
    if isinstance(error, (Overloaded, StoreUnavailable)):
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, Unauthenticated):
        # Bearer first for programs; a browser needs Basic to ask for the key at all.
        headers["WWW-Authenticate"] = 'Basic realm="logsvc", charset="UTF-8"' if is_browser else 'Bearer realm="logsvc"'
    if isinstance(error, QuerySyntaxError):
        return problem(error.status, str(error), headers=headers, position=error.position, hint=error.hint)
    return problem(error.status, str(error), headers=headers)


def is_browser(request: Request) -> bool:
    """Return whether a browser asks, and so a person reads the answer."""
    return "text/html" in request.headers.get("accept", "")


def _known(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, LogsvcError)
    if exc.status >= 500 and not isinstance(exc, Overloaded):
        logger.bind(**{"url.path": request.url.path}).warning("request failed: {}", exc)
    return render(exc, is_browser=is_browser(request))


def _http(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    detail = str(exc.detail)
    if exc.status_code == 404:
        detail = f"nothing is served at {request.url.path}; the API is described at /openapi.json"
    if exc.status_code == 405:
        detail = f"{request.method} is not allowed at {request.url.path}"
    return problem(exc.status_code, detail, headers=dict(exc.headers or {}))


def _validation(_request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)
    parts = []
    for error in exc.errors():
        name = ".".join(str(part) for part in error["loc"][1:]) or "body"
        if error["type"] == "missing":
            parts.append(f"the parameter {name} is missing; add {name}=…")
            continue
        parts.append(f"{name}: {error['msg']}, got {str(error.get('input'))[:100]!r}")
    return problem(400, "; ".join(parts))


def _hung_up(_request: Request, _exc: Exception) -> Response:
    # Nobody is left to read it; but the request counts as the sender's mistake, not as ours.
    return problem(400, "the connection ended before the body did; nothing of it was kept")


def _unknown(request: Request, exc: Exception) -> Response:
    logger.opt(exception=exc).bind(**{"url.path": request.url.path}).error("a request failed unexpectedly")
    return problem(500, "the service failed unexpectedly; its own log has the details")
