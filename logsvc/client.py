"""Client: what the commands use to talk to a running service, and nothing else.

Address and key come from ``LOGSVC_URL`` and ``LOGSVC_API_KEY``. Answers that are no success
become ``ClientError`` with the problem's own words.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import msgspec

DEFAULT_URL = "http://127.0.0.1:8080"


class ClientError(Exception):
    """The service did not answer as wished. ``exit_code`` is what a command ends with."""

    def __init__(self, message: str, exit_code: int = 1, problem: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.problem = dict(problem or {})


class Client:
    """Calls to one service with one key."""

    def __init__(self, url: str | None = None, api_key: str | None = None, *, timeout_s: float = 30.0) -> None:
        self.url = (url or os.environ.get("LOGSVC_URL") or DEFAULT_URL).rstrip("/")
        key = api_key or os.environ.get("LOGSVC_API_KEY") or ""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s, trust_env=False)

    def get(self, path: str, **params: str | int | None) -> dict[str, Any]:
        """Return the JSON that ``path`` answers; parameters that are None are left out."""
        response = self._send(path, params)
        body: dict[str, Any] = msgspec.json.decode(response.content)
        return body

    def text(self, path: str) -> str:
        """Return the text that ``path`` answers."""
        return self._send(path, {}).text

    @contextmanager
    def events(self, path: str, **params: str | int | None) -> Iterator[Iterator[dict[str, Any]]]:
        """Yield the records of a server-sent stream, as they come."""
        chosen = {name: value for name, value in params.items() if value is not None}
        try:
            with self._http.stream("GET", path, params=chosen, timeout=httpx.Timeout(30.0, read=60.0)) as response:
                if response.status_code != 200:
                    response.read()
                    raise _error(response)
                yield (
                    msgspec.json.decode(line[len("data: ") :])
                    for line in response.iter_lines()
                    if line.startswith("data: ")
                )
        except httpx.TransportError as exc:
            raise self._unreachable(exc) from exc

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _send(self, path: str, params: Mapping[str, str | int | None]) -> httpx.Response:
        chosen = {name: value for name, value in params.items() if value is not None}
        try:
            response = self._http.get(path, params=chosen)
        except httpx.TransportError as exc:
            raise self._unreachable(exc) from exc
        if response.status_code >= 400:
            raise _error(response)
        return response

    def _unreachable(self, exc: Exception) -> ClientError:
        return ClientError(
            f"no service answers at {self.url} ({exc}); start one with `logsvc serve`, or set LOGSVC_URL", exit_code=3
        )


def _error(response: httpx.Response) -> ClientError:
    try:
        problem = msgspec.json.decode(response.content, type=dict[str, Any])
    except msgspec.DecodeError:
        problem = {"detail": response.text[:300] or response.reason_phrase}
    exit_code = {401: 4, 403: 4, 404: 5}.get(response.status_code, 2 if response.status_code < 500 else 3)
    detail = str(problem.get("detail", response.reason_phrase))
    if response.status_code == 401:
        detail += "; the commands take the key from LOGSVC_API_KEY"
    return ClientError(detail, exit_code, problem)
