"""Errors of the service, in one tree.

::

    LogsvcError
    ├── SettingsError            a setting is unknown, missing or unsafe; the start stops
    ├── BadInput                 what was sent cannot be used (400)
    │   ├── QuerySyntaxError     carries .position (0-based column) and .hint
    │   ├── BodyTooLarge         413
    │   └── UnsupportedEncoding  415
    ├── NotFound                 404
    ├── Unauthenticated          401
    ├── Forbidden                403: the key lacks the scope
    ├── Overloaded               503, carries .retry_after_s and .reason
    │   ├── JournalFull          the journal or its disk is full, or the store is far behind
    │   └── OverQuota            429: the key sends more than its quota
    ├── StoreUnavailable         503: the store does not answer; try again
    ├── StateUnavailable         503: the state database does not answer; try again
    ├── QueryTooExpensive        a query ran into its bound in time or buckets
    ├── SchemaMismatch           the state's schema or the store's mapping differs; .differences
    ├── DataDirectoryLocked      another serve runs on the data directory; .holder
    ├── Conflict                 409: what was to be changed is not as it was said to be
    ├── TicketConflict           the ticket's state does not allow the change
    └── DeliveryFailed           a notifier could not deliver now, carries .retry_after_s
        └── ChannelGone          its receiver is gone for good
"""

from __future__ import annotations

from collections.abc import Sequence


class LogsvcError(Exception):
    """Base of all; ``status`` is the HTTP status that it becomes."""

    status = 500


class SettingsError(LogsvcError):
    """A setting is unknown, missing or unsafe."""


class BadInput(LogsvcError):
    """What was sent cannot be used; the message says what was expected."""

    status = 400


class QuerySyntaxError(BadInput):
    """The query cannot be parsed. ``position`` is the 0-based column of the trouble."""

    def __init__(self, message: str, position: int, hint: str | None = None) -> None:
        super().__init__(message)
        self.position = position
        self.hint = hint


class BodyTooLarge(BadInput):
    """The body, compressed or not, is over its bound."""

    status = 413


class UnsupportedEncoding(BadInput):
    """The Content-Encoding is none that we decode."""

    status = 415


class NotFound(LogsvcError):
    """There is no such thing for this tenant."""

    status = 404


class Unauthenticated(LogsvcError):
    """No key, or none that we know."""

    status = 401


class Forbidden(LogsvcError):
    """The key lacks the scope."""

    status = 403


class Overloaded(LogsvcError):
    """Nothing was kept; send it again after ``retry_after_s``. ``reason`` is one word, for counting."""

    status = 503

    def __init__(self, message: str, retry_after_s: int = 5, *, reason: str = "other") -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.reason = reason


class JournalFull(Overloaded):
    """The journal reached a bound, or its disk is full; nothing of the batch was written."""


class OverQuota(Overloaded):
    """The key has sent more than its quota; nothing of the batch was kept."""

    status = 429


class StoreUnavailable(LogsvcError):
    """The store does not answer now; the same call may succeed later."""

    status = 503

    def __init__(self, message: str, retry_after_s: int = 5) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StateUnavailable(LogsvcError):
    """The state database does not answer now, or cannot be opened."""

    status = 503


class QueryTooExpensive(LogsvcError):
    """The query ran into its bound; narrow it."""

    status = 422


class SchemaMismatch(LogsvcError):
    """What stands on disk is not what the code expects; ``differences`` names each item."""

    def __init__(self, what: str, differences: Sequence[str]) -> None:
        super().__init__(f"{what} differs from what this version expects: " + "; ".join(differences))
        self.differences = tuple(differences)


class DataDirectoryLocked(LogsvcError):
    """Another process serves this data directory; ``holder`` names it."""

    def __init__(self, path: str, holder: str) -> None:
        super().__init__(f"data directory {path} is in use by {holder}; stop it first or choose another directory")
        self.holder = holder


class Conflict(LogsvcError):
    """What was to be changed is not as it was said to be; nothing was done."""

    status = 409


class TicketConflict(LogsvcError):
    """The ticket's state does not allow the change."""

    status = 409


class DeliveryFailed(LogsvcError):
    """A notifier could not deliver; the same event may be delivered later.

    ``retry_after_s`` is what the receiver asked for, None if it did not.
    """

    def __init__(self, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ChannelGone(DeliveryFailed):
    """The receiver wants nothing more, ever."""
