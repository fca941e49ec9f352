"""Authentication: a key becomes a principal, once per request, before the body is read."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from logsvc.api.services import ServicesDep
from logsvc.errors import Forbidden, Unauthenticated
from logsvc.keys import Principal, Scope, key_from_headers


def authenticate(request: Request, services: ServicesDep) -> Principal:
    """Return whose request this is.

    Raises:
        Unauthenticated: Without a key, or with one that is unknown, revoked or expired.
    """
    key = key_from_headers(request.headers)
    if key is None:
        raise Unauthenticated("no key; send `Authorization: Bearer KEY`, or Basic with the key as the password")
    principal = services.keys.verify(key)
    if principal is None:
        raise Unauthenticated("the key is unknown, revoked or expired; make one with `logsvc keys create`")
    return principal


class Needs:
    """Dependency: a principal whose key has ``scope``."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def __call__(self, principal: Annotated[Principal, Depends(authenticate)]) -> Principal:
        if not principal.allows(self.scope):
            raise Forbidden(
                f"the key has the scopes {', '.join(sorted(s.value for s in principal.scopes))}; "
                f"this needs {self.scope.value}"
            )
        return principal


Anyone = Annotated[Principal, Depends(authenticate)]
Reader = Annotated[Principal, Depends(Needs(Scope.READ))]
Sender = Annotated[Principal, Depends(Needs(Scope.INGEST))]
