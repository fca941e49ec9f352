"""Outbox: at least once, in order per ticket, visible, replayable; a slow channel holds up no other."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from logsvc.errors import ChannelGone, DeliveryFailed, NotFound
from logsvc.notifiers import Event, WebhookNotifier, sign
from logsvc.outbox import SCHEDULE_S, Outbox
from logsvc.state import Delivery, DeliveryState, State, open_state
from logsvc.timestamps import parse_rfc3339
from tests.support.receiver import Receiver
from tests.support.tickets import NOON_US, FakeClock, make_ticket

URL = "https://logs.example.org"


class FakeNotifier:
    """Keeps what it is given; fails as it is told."""

    def __init__(self, name: str, target: str = "here") -> None:
        self.name = name
        self.target = target
        self.events: list[Event] = []
        self.failures: list[Exception] = []
        self.is_closed = False
        self.before: Callable[[], object] = lambda: None

    def deliver(self, event: Event) -> None:
        self.before()
        if self.failures:
            raise self.failures.pop(0)
        self.events.append(event)

    def close(self) -> None:
        self.is_closed = True

    def got(self) -> list[tuple[str, str]]:
        return [(event.type, event.data.get("id", "")) for event in self.events]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    opened = open_state(f"sqlite:///{tmp_path / 'state.db'}", channels=("file", "webhook"))
    yield opened
    opened.close()


@pytest.fixture
def notifiers() -> list[FakeNotifier]:
    return [FakeNotifier("file"), FakeNotifier("webhook")]


@pytest.fixture
def outbox(state: State, notifiers: list[FakeNotifier], clock: FakeClock) -> Iterator[Outbox]:
    made = Outbox(state, notifiers, clock=clock, public_url=URL, rng=random.Random(1))
    yield made
    made.close()


def announce(state: State, *events: tuple[str, str]) -> None:
    cursor_us = (state.checkpoint("default") or 0) + 1
    tickets = [(type_, make_ticket(id)) for type_, id in events]
    state.commit_tick("default", cursor_us, now_us=NOON_US, events=tickets)


def drain(outbox: Outbox, *channels: str) -> int:
    count = 0
    for channel in channels or ("file", "webhook"):
        while outbox.deliver_next(channel):
            count += 1
    return count


def deliveries_of(state: State, ticket_id: str, channel: str) -> list[Delivery]:
    return [delivery for delivery in state.deliveries("default", ticket_id) if delivery.channel == channel]


def test_every_channel_gets_every_event_once_in_order_with_the_tickets_address(
    outbox: Outbox, state: State, notifiers: list[FakeNotifier]
) -> None:
    announce(state, ("anomaly.opened", "a"), ("anomaly.opened", "b"), ("anomaly.resolved", "a"))
    assert drain(outbox) == 6
    for notifier in notifiers:
        assert notifier.got() == [("anomaly.opened", "a"), ("anomaly.opened", "b"), ("anomaly.resolved", "a")]
        assert notifier.events[0].data["url"] == f"{URL}/api/v1/tickets/a"
        assert notifier.events[0].timestamp == make_ticket().updated_at
    assert {delivery.state for delivery in state.deliveries("default", "a")} == {DeliveryState.DELIVERED}
    assert drain(outbox) == 0


def test_a_failed_attempt_is_on_the_ticket_and_repeated_with_the_same_id(
    outbox: Outbox, state: State, notifiers: list[FakeNotifier], clock: FakeClock
) -> None:
    _, webhook = notifiers
    webhook.failures = [DeliveryFailed("answered 500\r\n\x1b[31m")]
    announce(state, ("anomaly.opened", "a"))
    drain(outbox)
    (shown,) = deliveries_of(state, "a", "webhook")
    assert (shown.state, shown.attempts, shown.last_error) == (DeliveryState.PENDING, 1, "answered 500   [31m")
    assert shown.next_attempt_at is not None
    clock.advance(4)
    assert drain(outbox) == 0
    clock.advance(2)
    assert drain(outbox) == 1
    (shown,) = deliveries_of(state, "a", "webhook")
    assert (shown.state, shown.attempts, shown.last_error) == (DeliveryState.DELIVERED, 2, None)
    assert webhook.events[0].id == shown.id


def test_the_schedule_is_that_of_standard_webhooks_and_then_the_other_channel_says_so(
    outbox: Outbox, state: State, notifiers: list[FakeNotifier], clock: FakeClock
) -> None:
    file, webhook = notifiers
    webhook.failures = [DeliveryFailed("no")] * 20
    announce(state, ("anomaly.opened", "a"))
    pauses = []
    while (next_attempt_at := deliveries_of(state, "a", "webhook")[0].next_attempt_at) is not None:
        due_us = parse_rfc3339(next_attempt_at) // 1_000
        pauses.append((due_us - clock.now_us) / 1_000_000)
        clock.now_us = due_us - 1
        assert drain(outbox) == 0
        clock.now_us = due_us
        drain(outbox)
    assert pauses == [pytest.approx(pause, rel=0.1) for pause in SCHEDULE_S]
    assert SCHEDULE_S == (0, 5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
    drain(outbox)
    assert file.got() == [("anomaly.opened", "a"), ("notification.failed", "")]
    assert file.events[1].data["channel"] == "webhook"
    assert file.events[1].data["ticket"] == "a"
    assert file.events[1].data["event"]["id"] == file.events[0].id
    assert webhook.got() == []


def test_a_failed_notice_about_a_failure_makes_no_further_notice(
    outbox: Outbox, state: State, notifiers: list[FakeNotifier], clock: FakeClock
) -> None:
    for notifier in notifiers:
        notifier.failures = [DeliveryFailed("no")] * 100
    announce(state, ("anomaly.opened", "a"))
    for _ in range(3 * len(SCHEDULE_S)):
        drain(outbox)
        clock.advance(100_000)
    counts = state.count_outbox()
    assert counts == {("file", DeliveryState.FAILED): 2, ("webhook", DeliveryState.FAILED): 2}


def test_a_receiver_that_asks_for_time_gets_it(
    outbox: Outbox, state: State, notifiers: list[FakeNotifier], clock: FakeClock
) -> None:
    notifiers[1].failures = [DeliveryFailed("slow down", retry_after_s=900)]
    announce(state, ("anomaly.opened", "a"))
    drain(outbox)
    clock.advance(899)
    assert drain(outbox) == 0
    clock.advance(1)
    assert drain(outbox) == 1


def test_resolved_never_overtakes_opened_and_other_tickets_do_not_wait(
    outbox: Outbox, state: State, notifiers: list[FakeNotifier], clock: FakeClock
) -> None:
    _, webhook = notifiers
    webhook.failures = [DeliveryFailed("no")]
    announce(state, ("anomaly.opened", "a"), ("anomaly.resolved", "a"), ("anomaly.opened", "b"))
    drain(outbox)
    assert webhook.got() == [("anomaly.opened", "b")]
    clock.advance(6)
    drain(outbox)
    assert webhook.got()[1:] == [("anomaly.opened", "a"), ("anomaly.resolved", "a")]


def test_a_gone_receiver_is_left_alone_until_its_address_changes(
    outbox: Outbox, state: State, notifiers: list[FakeNotifier], clock: FakeClock
) -> None:
    file, webhook = notifiers
    webhook.failures = [ChannelGone("410 Gone")]
    announce(state, ("anomaly.opened", "a"), ("anomaly.opened", "b"))
    drain(outbox)
    announce(state, ("anomaly.opened", "c"))
    drain(outbox)
    assert webhook.got() == []
    for ticket in "abc":
        (shown,) = deliveries_of(state, ticket, "webhook")
        assert (shown.state, shown.last_error) == (DeliveryState.FAILED, "410 Gone")
    assert ("notification.failed", "") in file.got()

    again = Outbox(state, [FakeNotifier("webhook")], clock=clock, public_url=URL)
    again.recover()
    announce(state, ("anomaly.opened", "d"))
    assert deliveries_of(state, "d", "webhook")[0].state is DeliveryState.FAILED

    moved = FakeNotifier("webhook", target="elsewhere")
    again = Outbox(state, [moved], clock=clock, public_url=URL)
    again.recover()
    announce(state, ("anomaly.opened", "e"))
    assert again.deliver_next("webhook")
    assert moved.got() == [("anomaly.opened", "e")]


def test_an_event_can_be_replayed_and_a_receiver_that_takes_it_is_back(
    outbox: Outbox, state: State, notifiers: list[FakeNotifier], clock: FakeClock
) -> None:
    _, webhook = notifiers
    webhook.failures = [ChannelGone("410 Gone")]
    announce(state, ("anomaly.opened", "a"))
    drain(outbox)
    (failed,) = deliveries_of(state, "a", "webhook")
    assert state.replay(failed.id, now_us=clock(), channel="webhook") == 1
    drain(outbox)
    assert webhook.got() == [("anomaly.opened", "a")]
    assert webhook.events[0].id == failed.id
    announce(state, ("anomaly.resolved", "a"))
    drain(outbox)
    assert webhook.got()[-1] == ("anomaly.resolved", "a")
    with pytest.raises(NotFound, match="msg_0"):
        state.replay("msg_0", now_us=clock())


def test_a_crash_between_delivery_and_note_delivers_again_under_the_same_id(
    outbox: Outbox, state: State, notifiers: list[FakeNotifier], clock: FakeClock
) -> None:
    class PowerCut(BaseException):
        pass

    def cut() -> None:
        raise PowerCut

    file, _ = notifiers
    announce(state, ("anomaly.opened", "a"))
    file.before = cut
    with pytest.raises(PowerCut):
        outbox.deliver_next("file")
    file.before = lambda: None
    assert not outbox.deliver_next("file")  # claimed by whoever died
    restarted = Outbox(state, notifiers, clock=clock, public_url=URL)
    restarted.recover()
    assert restarted.deliver_next("file")
    assert file.got() == [("anomaly.opened", "a")]


def test_a_mistake_in_a_notifier_silences_neither_its_channel_nor_its_ticket(
    outbox: Outbox, state: State, notifiers: list[FakeNotifier]
) -> None:
    file, _ = notifiers
    file.failures = [KeyError("oops")]
    announce(state, ("anomaly.opened", "a"), ("anomaly.opened", "b"))
    drain(outbox, "file")
    assert file.got() == [("anomaly.opened", "b")]
    assert deliveries_of(state, "a", "file")[0].last_error == "'oops'"


def test_attempts_are_counted_by_outcome(state: State, notifiers: list[FakeNotifier], clock: FakeClock) -> None:
    counted: list[tuple[str, str]] = []
    outbox = Outbox(
        state,
        notifiers,
        clock=clock,
        public_url=URL,
        on_attempt=lambda channel, outcome: counted.append((channel, outcome)),
    )
    notifiers[1].failures = [DeliveryFailed("no"), ChannelGone("gone")]
    announce(state, ("anomaly.opened", "a"))
    drain(outbox)
    clock.advance(6)
    drain(outbox, "webhook")
    assert counted == [("file", "delivered"), ("webhook", "retry"), ("webhook", "failed")]


def test_threads_deliver_and_a_stuck_channel_holds_up_no_other(
    state: State, notifiers: list[FakeNotifier], clock: FakeClock
) -> None:
    file, webhook = notifiers
    arrived, release = threading.Event(), threading.Event()
    webhook.before = lambda: release.wait(30)
    file.before = arrived.set
    outbox = Outbox(state, notifiers, clock=clock, public_url=URL)
    outbox.open()
    announce(state, ("anomaly.opened", "a"))
    outbox.wake()
    assert arrived.wait(30)
    assert webhook.events == []
    release.set()
    assert outbox.flush(30)
    assert file.got() == webhook.got() == [("anomaly.opened", "a")]
    outbox.close()
    outbox.close()
    assert file.is_closed
    assert webhook.is_closed


def test_what_was_not_delivered_at_the_end_is_delivered_after_the_next_start(
    state: State, notifiers: list[FakeNotifier], clock: FakeClock
) -> None:
    file, _ = notifiers
    Outbox(state, notifiers, clock=clock, public_url=URL).close()
    announce(state, ("anomaly.opened", "a"))
    outbox = Outbox(state, notifiers, clock=clock, public_url=URL)
    outbox.open()
    assert outbox.flush(30)
    outbox.close()
    assert file.got() == [("anomaly.opened", "a")]


def test_a_real_receiver_sees_one_id_and_a_new_timestamp_at_each_attempt(state: State, clock: FakeClock) -> None:
    secret = "whsec_" + base64.b64encode(b"x" * 32).decode()
    with contextlib.closing(Receiver()) as receiver:
        receiver.answers = [(500, {}), (204, {}), (410, {})]
        webhook = WebhookNotifier(
            receiver.url, [secret], clock=clock, allow_networks=[ipaddress.ip_network("127.0.0.0/8")]
        )
        outbox = Outbox(state, [webhook], clock=clock, public_url=URL)
        announce(state, ("anomaly.opened", "a"))
        drain(outbox, "webhook")
        clock.advance(6)
        drain(outbox, "webhook")
        (first, body), (second, again) = receiver.requests
        assert body == again
        assert first["webhook-id"] == second["webhook-id"] == deliveries_of(state, "a", "webhook")[0].id
        assert int(second["webhook-timestamp"]) - int(first["webhook-timestamp"]) == 6
        for headers in (first, second):
            signed = sign(secret, headers["webhook-id"], int(headers["webhook-timestamp"]), body)
            assert headers["webhook-signature"] == signed

        announce(state, ("anomaly.opened", "b"))
        drain(outbox, "webhook")
        announce(state, ("anomaly.opened", "c"))
        drain(outbox, "webhook")
        assert len(receiver.requests) == 3
        assert [deliveries_of(state, ticket, "webhook")[0].state for ticket in "abc"] == [
            DeliveryState.DELIVERED,
            DeliveryState.FAILED,
            DeliveryState.FAILED,
        ]
        outbox.close()
