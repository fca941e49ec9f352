"""Authentication: a key becomes a principal, once per request, before the body is read.

And the other thing asked of every request: that it has no parameter which would be ignored.
"""

from __future__ import annotations

import difflib
from typing import Annotated

from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant

from logsvc.api.services import ServicesDep
from logsvc.errors import BadInput, Forbidden, Unauthenticated
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
Responder = Annotated[Principal, Depends(Needs(Scope.RESPOND))]
Admin = Annotated[Principal, Depends(Needs(Scope.ADMIN))]
Sender = Annotated[Principal, Depends(Needs(Scope.INGEST))]


async def only_known_parameters(request: Request, _who: Anyone) -> None:
    """Refuse what a route would ignore: ``limt=1`` must not quietly mean the default limit.

    Raises:
        BadInput: Naming the parameter, and the one that was probably meant.
    """
    if not request.query_params:
        return
    known = _parameters(request.scope["route"].dependant)
    for name in request.query_params:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known) or 'none'}"
            raise BadInput(f"there is no parameter {name[:100]!r}; {hint}")


def _parameters(dependant: Dependant) -> list[str]:
    """Return the query parameters of a route and of what it depends on."""
    own = [parameter.alias for parameter in dependant.query_params]
    return own + [name for inner in dependant.dependencies for name in _parameters(inner)]
