"""Names: what a tenant and a key look like, for whoever makes, takes or sends one.

Not here: which exist (keys.py).
"""

from __future__ import annotations

import re

TENANT_RULE = "at most 63 of a-z, 0-9, _ and -, beginning with a letter or digit, and not logsvc-canary"
KEY_RULE = "32 to 64 of A-Z, a-z, 0-9 and _"

SHADOW_TENANT = "logsvc-canary"
"""The tenant of the canary (canary.py); nobody else may have its name."""

_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")
_KEY = re.compile(r"[A-Za-z0-9_]{32,64}\Z")


def is_tenant(text: str) -> bool:
    """Return whether ``text`` can name a tenant; ``TENANT_RULE`` says so in words.

    >>> is_tenant("acme-2"), is_tenant("Acme"), is_tenant("")
    (True, False, False)
    """
    return _TENANT.match(text) is not None and text != SHADOW_TENANT


def is_key(text: str) -> bool:
    """Return whether ``text`` has the shape of a key; ``KEY_RULE`` says so in words."""
    return _KEY.match(text) is not None
