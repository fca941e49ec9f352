"""Notifiers: one contract over each; the webhook against a real receiver that checks signatures."""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from logsvc.errors import ChannelGone, DeliveryFailed, SettingsError
from logsvc.notifiers import MAX_WEBHOOK_BYTES, Event, FileNotifier, Notifier, WebhookNotifier, sign, webhook_body
from logsvc.settings import Network
from logsvc.timestamps import US_PER_S
from tests.support.receiver import Receiver
from tests.support.tickets import NOON_US, FakeClock, make_ticket

SECRET = "whsec_" + base64.b64encode(b"new secret of 24 bytes or more").decode()
OLD_SECRET = "whsec_" + base64.b64encode(b"old secret of 24 bytes or more").decode()
LOOPBACK: list[Network] = [ipaddress.ip_network("127.0.0.0/8")]


def make_event(id: str = "msg_1", **changes: Any) -> Event:
    data = msgspec.to_builtins(make_ticket(**changes))
    return Event("anomaly.opened", "2026-01-31T12:00:00Z", id, data)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture
def webhook(receiver: Receiver) -> Iterator[WebhookNotifier]:
    made = WebhookNotifier(receiver.url, [SECRET, OLD_SECRET], clock=FakeClock(), allow_networks=LOOPBACK)
    yield made
    made.close()


# -------------------------------------------------------------------------------------- the contract, on each of them

Opened = tuple[Notifier, Callable[[], list[dict[str, Any]]], Callable[[], None]]


@pytest.fixture(params=["file", "webhook"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """Return a notifier, what its receiver got, and a way to take the receiver away."""
    if request.param == "file":
        path = tmp_path / "tickets" / "tickets.jsonl"

        def break_file() -> None:
            path.unlink(missing_ok=True)
            path.mkdir(parents=True)

        return FileNotifier(path), lambda: [json.loads(line) for line in path.read_text().splitlines()], break_file
    receiver: Receiver = request.getfixturevalue("receiver")
    webhook: WebhookNotifier = request.getfixturevalue("webhook")

    def break_receiver() -> None:
        receiver.answers += [(500, {})] * 10

    return webhook, lambda: [json.loads(body) for _, body in receiver.requests], break_receiver


def test_what_is_delivered_has_arrived_whole_and_in_order(opened: Opened) -> None:
    notifier, received, _ = opened
    for i in range(3):
        notifier.deliver(make_event(f"msg_{i}", title=f"ticket {i} – „ü“ \u2028"))
    assert [(event["id"], event["data"]["title"]) for event in received()] == [
        (f"msg_{i}", f"ticket {i} – „ü“ \u2028") for i in range(3)
    ]
    assert received()[0] == msgspec.to_builtins(make_event("msg_0", title="ticket 0 – „ü“ \u2028"))


def test_what_does_not_arrive_is_said_so_and_the_notifier_goes_on(opened: Opened) -> None:
    notifier, _, break_ = opened
    break_()
    for _ in range(2):
        with pytest.raises(DeliveryFailed):
            notifier.deliver(make_event())


def test_closing_twice_is_closing(opened: Opened) -> None:
    notifier, _, _ = opened
    notifier.close()
    notifier.close()
    assert notifier.name.isalpha()
    assert SECRET not in notifier.target


# ------------------------------------------------------------------------------------------------------------- file


def test_half_a_line_left_by_a_crash_is_cut_and_everything_before_it_stays(tmp_path: Path) -> None:
    path = tmp_path / "tickets.jsonl"
    path.write_bytes(b'{"id":"msg_0"}\n{"id":"' + b"x" * 200_000)
    FileNotifier(path).deliver(make_event("msg_1"))
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["msg_0", "msg_1"]


def test_the_file_may_be_moved_away_between_events(tmp_path: Path) -> None:
    path = tmp_path / "tickets.jsonl"
    notifier = FileNotifier(path)
    notifier.deliver(make_event("msg_0"))
    path.rename(tmp_path / "tickets.jsonl.1")
    notifier.deliver(make_event("msg_1"))
    assert json.loads(path.read_text())["id"] == "msg_1"


def test_a_line_is_on_the_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DeliveryFailed, match="No space left"):
        FileNotifier(tmp_path / "tickets.jsonl").deliver(make_event())


# ---------------------------------------------------------------------------------------------------------- webhook


def test_the_published_vector_is_signed_as_published() -> None:
    vectors = os.environ.get("LOGSVC_TEST_VECTORS")
    vector = {
        "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "timestamp": "1614265330",
        "body": '{"test": 2432232314}',
        "signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    if vectors:
        assert json.loads(Path(vectors).read_text())["std_webhook"] == vector
    made = sign(vector["secret"], vector["id"], int(vector["timestamp"]), vector["body"].encode())
    assert made == vector["signature"]


def test_a_receiver_can_check_the_signature_with_the_new_and_the_old_secret(
    receiver: Receiver, webhook: WebhookNotifier
) -> None:
    webhook.deliver(make_event("msg_7"))
    headers, body = receiver.requests[0]
    assert headers["content-type"] == "application/json"
    assert headers["webhook-id"] == "msg_7"
    assert headers["webhook-timestamp"] == str(NOON_US // US_PER_S)
    assert headers["host"] == f"127.0.0.1:{receiver.port}"
    assert headers["webhook-signature"].split() == [
        sign(secret, "msg_7", NOON_US // US_PER_S, body) for secret in (SECRET, OLD_SECRET)
    ]
    assert set(json.loads(body)) >= {"type", "timestamp", "data"}


def test_a_redirect_is_a_failure_and_is_not_followed(receiver: Receiver, webhook: WebhookNotifier) -> None:
    receiver.answers = [(302, {"Location": receiver.url})]
    with pytest.raises(DeliveryFailed, match="302, a redirect, which is not followed"):
        webhook.deliver(make_event())
    assert len(receiver.requests) == 1


def test_410_says_that_the_receiver_is_gone(receiver: Receiver, webhook: WebhookNotifier) -> None:
    receiver.answers = [(410, {})]
    with pytest.raises(ChannelGone, match="410"):
        webhook.deliver(make_event())


@pytest.mark.parametrize(
    ("status", "header", "retry_after_s"),
    [
        (429, "120", 120),
        (503, "7", 7),
        (429, "999999999999", 86_400),
        (429, "soon", None),
        (500, "120", None),
        (404, "", None),
    ],
)
def test_a_throttling_receiver_is_given_the_time_it_asks_for(
    receiver: Receiver, webhook: WebhookNotifier, status: int, header: str, retry_after_s: int | None
) -> None:
    receiver.answers = [(status, {"Retry-After": header})]
    with pytest.raises(DeliveryFailed, match=str(status)) as caught:
        webhook.deliver(make_event())
    assert caught.value.retry_after_s == retry_after_s


def test_a_receiver_that_is_down_is_a_failure() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        webhook = WebhookNotifier(url, [SECRET], clock=FakeClock(), allow_networks=LOOPBACK)
        with pytest.raises(DeliveryFailed, match="did not answer"):
            webhook.deliver(make_event())
        webhook.close()


def test_the_request_goes_to_the_address_that_was_checked_under_the_name_that_was_configured(
    receiver: Receiver,
) -> None:
    asked: list[str] = []

    def resolve(host: str, _port: int) -> list[str]:
        asked.append(host)
        return ["10.0.0.1", "127.0.0.1"] if len(asked) == 1 else ["10.0.0.1"]

    webhook = WebhookNotifier(
        f"http://hooks.test:{receiver.port}/x", [SECRET], clock=FakeClock(), allow_networks=LOOPBACK, resolve=resolve
    )
    webhook.deliver(make_event())
    assert asked == ["hooks.test"]
    assert receiver.requests[0][0]["host"] == f"hooks.test:{receiver.port}"
    with pytest.raises(DeliveryFailed, match=r"hooks.test is 10.0.0.1.*LOGSVC_WEBHOOK_ALLOW_NETWORKS"):
        webhook.deliver(make_event())
    assert len(receiver.requests) == 1
    webhook.close()


def make_certificate(path: Path, name: str) -> None:
    """Write a self-signed certificate for ``name`` and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path.write_bytes(
        certificate.public_bytes(encoding) + key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
    )


def test_tls_checks_the_configured_name_though_the_address_is_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = tmp_path / "cert.pem"
    make_certificate(pem, "hooks.test")
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    receiver = Receiver(context)
    try:
        for host, is_named in (("hooks.test", True), ("other.test", False)):
            webhook = WebhookNotifier(
                f"https://{host}:{receiver.port}/",
                [SECRET],
                clock=FakeClock(),
                allow_networks=LOOPBACK,
                resolve=lambda _host, _port: ["127.0.0.1"],
            )
            if is_named:
                webhook.deliver(make_event())
            else:
                with pytest.raises(DeliveryFailed, match=r"(?i)certificate"):
                    webhook.deliver(make_event())
            webhook.close()
        assert len(receiver.requests) == 1
    finally:
        receiver.close()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
    ],
)
def test_no_private_address_is_reached_by_any_name(address: str) -> None:
    webhook = WebhookNotifier("http://hooks.test/", [SECRET], clock=FakeClock(), resolve=lambda _host, _port: [address])
    with pytest.raises(DeliveryFailed, match="not on the open Internet"):
        webhook.deliver(make_event())
    webhook.close()
    literal = f"[{address}]" if ":" in address else address
    with pytest.raises(SettingsError, match="LOGSVC_WEBHOOK_ALLOW_NETWORKS"):
        WebhookNotifier(f"http://{literal}/", [SECRET], clock=FakeClock())


def test_a_name_that_does_not_resolve_is_a_failure_to_try_again() -> None:
    def resolve(_host: str, _port: int) -> list[str]:
        raise socket.gaierror(-2, "Name or service not known")

    webhook = WebhookNotifier("https://hooks.test/", [SECRET], clock=FakeClock(), resolve=resolve)
    with pytest.raises(DeliveryFailed, match=r"cannot resolve hooks\.test"):
        webhook.deliver(make_event())
    webhook.close()


def test_no_proxy_of_the_environment_is_asked(
    receiver: Receiver, webhook: WebhookNotifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    made = WebhookNotifier(receiver.url, [SECRET], clock=FakeClock(), allow_networks=LOOPBACK)
    made.deliver(make_event())
    made.close()
    assert len(receiver.requests) == 1


def test_a_long_event_loses_samples_first_and_says_so() -> None:
    event = make_event(samples=[{"message": "x" * 3_000, "n": i} for i in range(20)])
    body = webhook_body(event)
    data = json.loads(body)["data"]
    assert len(body) < MAX_WEBHOOK_BYTES
    assert [sample["n"] for sample in data["samples"]] == [0, 1, 2, 3, 4]
    assert data["trimmed"] == ["samples"]
    assert data["fingerprints"] == event.data["fingerprints"]
    assert len(event.data["samples"]) == 20
    assert json.loads(webhook_body(make_event())) == msgspec.to_builtins(make_event())


def test_what_cannot_be_cut_is_sent_all_the_same() -> None:
    body = webhook_body(make_event(title="x" * 30_000))
    assert json.loads(body)["data"]["title"] == "x" * 30_000
