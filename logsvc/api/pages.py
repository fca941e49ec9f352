"""Pages: what a browser gets of tickets and tasks, rendered here, without scripts.

Every text of a log is escaped by the template.
"""

from __future__ import annotations

import shlex
from functools import cache

import jinja2
from fastapi.responses import HTMLResponse

from logsvc.terminal import few, moment, step_s

_HEADERS = {
    # Nothing of a log may run or load anything.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("logsvc.api"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["moment"] = moment
    environment.globals["step_s"] = step_s
    environment.filters["few"] = few
    environment.filters["shellquote"] = shlex.quote
    return environment


def page(template: str, **values: object) -> HTMLResponse:
    """Return the page that ``template`` makes of ``values``."""
    return HTMLResponse(_templates().get_template(template).render(values), headers=_HEADERS)
