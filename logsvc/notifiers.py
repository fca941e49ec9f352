"""Notifiers: ways of telling people and programs about a ticket: a file, a signed webhook.

A notifier delivers one event once and says plainly whether it arrived; it keeps nothing and
retries nothing. The contract is ``Notifier``.

Not here: which events there are (detection.py), retries and order (outbox.py).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import msgspec

from logsvc import __version__
from logsvc.durable import sync_directory
from logsvc.errors import ChannelGone, DeliveryFailed, SettingsError
from logsvc.settings import Network, NotifySettings
from logsvc.timestamps import US_PER_S, Clock

MAX_WEBHOOK_BYTES = 20_000
"""What a receiver is sent at most, about: longer events lose samples first, then other lists."""

_TRIMMED_IN_ORDER = ("samples", "series", "fingerprints", "evidence", "tasks", "releases")
_TIMEOUT = httpx.Timeout(20.0, connect=10.0)
_MAX_RETRY_AFTER_S = 86_400
_THROTTLED = {429, 502, 503, 504}

Resolver = Callable[[str, int], Sequence[str]]
"""Returns the addresses of a host, the preferred first; raises OSError."""


class Event(msgspec.Struct, frozen=True):
    """What is delivered, field by field: ``data`` is the ticket as it was, with its address."""

    type: str
    timestamp: str
    id: str
    data: dict[str, Any]


class Notifier(Protocol):
    """Delivers events to one receiver.

    ``deliver`` returns when the receiver has the event; it may be called again with the same event,
    and then sends the same ``event.id``, by which receivers tell repeats. It is called by one
    thread at a time and returns within a minute.

    Attributes:
        name: The channel, one word; the outbox keeps events under it.
        target: Tells one receiver from another and holds no secret. A channel disabled by
            ``ChannelGone`` stays so until its target changes.

    Raises:
        DeliveryFailed: If the event did not arrive, or may not have; try again later.
        ChannelGone: If the receiver wants nothing more.
    """

    @property
    def name(self) -> str: ...

    @property
    def target(self) -> str: ...

    def deliver(self, event: Event) -> None:
        """Deliver one event."""
        ...

    def close(self) -> None:
        """Release everything; idempotent."""
        ...


def make_notifiers(settings: NotifySettings, clock: Clock) -> list[Notifier]:
    """Return the notifiers that are configured: the file always, the webhook if it has an address."""
    notifiers: list[Notifier] = [FileNotifier(settings.tickets_file)]
    if settings.webhook_url is not None:
        notifiers.append(
            WebhookNotifier(
                settings.webhook_url,
                settings.webhook_secret,
                clock=clock,
                allow_networks=settings.webhook_allow_networks,
            )
        )
    return notifiers


class FileNotifier:
    """Appends each event to a file as one line of JSON, synced before it counts as delivered.

    The file is opened anew for each event, so it may be moved away at any time. Half a line that a
    crash left behind is cut; its event was not counted as delivered and comes again.
    """

    name = "file"

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def target(self) -> str:
        """The path."""
        return str(self._path)

    def deliver(self, event: Event) -> None:
        """Append one line."""
        try:
            is_new = not self._path.exists()
            if is_new:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            with os.fdopen(fd, "r+b") as file:
                file.seek(_end_of_last_line(fd))
                file.truncate()
                file.write(_line(event))
                file.flush()
                os.fsync(fd)
            if is_new:
                sync_directory(self._path.parent)
        except OSError as exc:
            raise DeliveryFailed(f"cannot write {self._path}: {exc.strerror}") from exc

    def close(self) -> None:
        """Nothing is held."""


def _line(event: Event) -> bytes:
    """Return one line also for readers that split where Unicode says that lines end."""
    line = msgspec.json.encode(event)
    for char in ("\u0085", "\u2028", "\u2029"):
        line = line.replace(char.encode(), f"\\u{ord(char):04x}".encode())
    return line + b"\n"


def _end_of_last_line(fd: int) -> int:
    end = os.fstat(fd).st_size
    while end:
        start = max(0, end - 65_536)
        at = os.pread(fd, end - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def sign(secret: str, id: str, timestamp_s: int, body: bytes) -> str:
    """Return the signature of a delivery, ``v1,`` and base64.

    Source: Standard Webhooks 1.0, "Signature scheme".

    >>> sign(
    ...     "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    ...     "msg_p5jXN8AQM9LWM0D4loKWxJek",
    ...     1614265330,
    ...     b'{"test": 2432232314}',
    ... )
    'v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE='
    """
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"{id}.{timestamp_s}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


@dataclass(frozen=True, slots=True)
class _Address:
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address

    def is_allowed(self, networks: Sequence[Network]) -> bool:
        """Return whether a request may go there: to the open Internet, or where the operator said."""
        return all(_is_public(ip) or any(ip in network for network in networks) for ip in self._meanings())

    def _meanings(self) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
        """An IPv6 address may carry an IPv4 one; what counts is where packets end."""
        if isinstance(self.ip, ipaddress.IPv6Address):
            inner = self.ip.ipv4_mapped or self.ip.sixtofour
            if inner is None and self.ip in _NAT64:
                inner = ipaddress.IPv4Address(int(self.ip) & 0xFFFF_FFFF)
            if inner is not None:
                return [inner]
        return [self.ip]


_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def _is_public(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    # Cloud metadata (169.254.169.254, fd00:ec2::254) is link-local or private, so not global.
    return ip.is_global and not ip.is_multicast


def _resolve(host: str, port: int) -> list[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class WebhookNotifier:
    """Posts each event, signed, to an address: Standard Webhooks 1.0.

    The host is resolved once per delivery and the request goes to that very address, so a name
    that changes its mind between check and connection gains nothing. Redirects are failures.

    Args:
        url: Where to post.
        secrets: ``whsec_…``; while a secret is changed, the new and the old one: both sign.
        clock: For the timestamp that is signed.
        allow_networks: Private networks in which the receiver may be.
        resolve: Resolver of host names.

    Raises:
        SettingsError: If the address is an IP address that is refused.
    """

    name = "webhook"

    def __init__(
        self,
        url: str,
        secrets: Sequence[str],
        *,
        clock: Clock,
        allow_networks: Sequence[Network] = (),
        resolve: Resolver = _resolve,
    ) -> None:
        self._url = httpx.URL(url)
        self._secrets = tuple(secrets)
        self._clock = clock
        self._networks = tuple(allow_networks)
        self._resolve = resolve
        # No proxy from the environment: it would resolve the name again. Nor kept connections:
        # events are rare, and a stale connection looks like a receiver that is down.
        self._client = httpx.Client(
            trust_env=False,
            verify=ssl.create_default_context(),
            timeout=_TIMEOUT,
            follow_redirects=False,
            limits=httpx.Limits(max_keepalive_connections=0),
        )
        try:
            literal = ipaddress.ip_address(self._url.host)
        except ValueError:
            return
        if not _Address(literal).is_allowed(self._networks):
            self.close()
            raise SettingsError(_refusal(self._url.host, [str(literal)]))

    @property
    def target(self) -> str:
        """A hash of the address, which may hold a secret."""
        return hashlib.sha256(str(self._url).encode()).hexdigest()[:16]

    def deliver(self, event: Event) -> None:
        """Post one event."""
        address = self._pinned_address()
        body = webhook_body(event)
        timestamp_s = self._clock() // US_PER_S
        host = self._url.host
        headers = {
            "Host": self._url.netloc.decode("ascii"),
            "Content-Type": "application/json",
            "User-Agent": f"logsvc/{__version__}",
            "webhook-id": event.id,
            "webhook-timestamp": str(timestamp_s),
            "webhook-signature": " ".join(sign(secret, event.id, timestamp_s, body) for secret in self._secrets),
        }
        try:
            # Streamed, since the status is all that matters: an endless reply is not read.
            with self._client.stream(
                "POST",
                self._url.copy_with(host=address),
                content=body,
                headers=headers,
                extensions={"sni_hostname": host},
            ) as response:
                status, asked = response.status_code, response.headers.get("retry-after", "")
        except httpx.HTTPError as exc:
            raise DeliveryFailed(f"{host} did not answer: {type(exc).__name__}: {exc}") from exc
        if 200 <= status < 300:
            return
        if status == 410:
            raise ChannelGone(f"{host} answered 410 Gone and gets nothing more; change its address, or replay an event")
        if 300 <= status < 400:
            raise DeliveryFailed(f"{host} answered {status}, a redirect, which is not followed; set the final address")
        is_asked = status in _THROTTLED and asked.isascii() and asked.isdigit()
        raise DeliveryFailed(f"{host} answered {status}", min(int(asked[:9]), _MAX_RETRY_AFTER_S) if is_asked else None)

    def close(self) -> None:
        """Close the client."""
        self._client.close()

    def _pinned_address(self) -> str:
        host, port = self._url.host, self._url.port or (443 if self._url.scheme == "https" else 80)
        try:
            found = self._resolve(host, port)
        except (OSError, UnicodeError) as exc:
            raise DeliveryFailed(f"cannot resolve {host}: {exc}") from exc
        for address in found:
            if _Address(ipaddress.ip_address(address)).is_allowed(self._networks):
                return address
        raise DeliveryFailed(_refusal(host, found))


def _refusal(host: str, addresses: Sequence[str]) -> str:
    return (
        f"the webhook's host {host} is {', '.join(addresses) or 'nowhere'}, which is not on the open Internet; "
        "if it is yours, add its network to LOGSVC_WEBHOOK_ALLOW_NETWORKS"
    )


def webhook_body(event: Event, max_bytes: int = MAX_WEBHOOK_BYTES) -> bytes:
    """Return the JSON of an event, its longest lists cut until it fits; ``data.trimmed`` names those cut.

    What cannot be cut is sent as it is.
    """
    body = msgspec.json.encode(event)
    data = dict(event.data)
    for key in _TRIMMED_IN_ORDER:
        while len(body) >= max_bytes and isinstance(items := data.get(key), list) and items:
            data[key] = items[: len(items) // 2]
            data["trimmed"] = sorted({*data.get("trimmed", ()), key})
            body = msgspec.json.encode(msgspec.structs.replace(event, data=data))
    return body
