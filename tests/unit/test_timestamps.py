"""Times: whatever the service reads, it reads exactly or refuses with what it expected."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger

from logsvc.errors import BadInput
from logsvc.timestamps import (
    MonotonicClock,
    format_duration,
    format_ns,
    format_us,
    parse_duration,
    parse_epoch,
    parse_rfc3339,
    parse_time,
    parse_timestamp,
    system_clock,
)

CHRISTMAS = 1_735_131_600  # 2024-12-25T13:00:00Z
NS = 10**9
YEARS_1_TO_9999_NS = st.integers(-62_135_596_800 * NS, 253_402_300_800 * NS - 1)


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("2024-12-25T13:00:00Z", 0),
        ("2024-12-25T13:00:00.123456789Z", 123_456_789),
        ("2024-12-25T13:00:00.1234567891234Z", 123_456_789),
        ("2024-12-25t13:00:00z", 0),
        ("2024-12-25 13:00:00", 0),
        ("2024-12-25 13:00:00,123", 123_000_000),
        ("2024-12-25 13:00:00 UTC", 0),
        ("2024-12-25T13:00Z", 0),
        ("2024-12-25T14:00:00+01:00", 0),
        ("2024-12-25T18:30:00+0530", 0),
        ("2024-12-25T11:00:00-02", 0),
        ("2024-12-25T12:59:60Z", 0),
        ("2024-12-25", -13 * 3600 * NS),
        ("2024/12/25 13:00:00.5", 500_000_000),
        ("2024-12-25 13:00:00 GMT", 0),
    ],
)
def test_rfc_3339_is_read_as_senders_write_it(text: str, ns: int) -> None:
    assert parse_rfc3339(text) == CHRISTMAS * NS + ns


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("20241225T130000Z", 0),
        ("20241225T140000.123456789+0100", 123_456_789),
        ("Wed, 25 Dec 2024 13:00:00 GMT", 0),
        ("Wed, 25 Dec 2024 14:00:00 +0100", 0),
        ("25 Dec 2024 13:00:00", 0),
        ("25/Dec/2024:14:00:00 +0100", 0),
        ("25-Dec-2024 13:00:00.250 UTC", 250_000_000),
        ("Wed Dec 25 13:00:00 2024", 0),
        ("Wed Dec 25 13:00:00 UTC 2024", 0),
        ("Sun Dec  1 13:00:00 2024", -24 * 86_400 * NS),
        ("2024-360T13:00:00Z", 0),
        ("2024360T13:00:00Z", 0),
        ("2024-360", -13 * 3_600 * NS),
        ("2024-W52-3T13:00:00Z", 0),
        ("2024-12-25T14:00:00 CET", 0),
        ("2024-12-25 08:00:00.5 EST", NS // 2),
        ("Wed Dec 25 05:00:00 PST 2024", 0),
        ("Wed, 25 Dec 2024 05:00:00 PST", 0),
        ("2024-12-25T14:00:00+01:00[Europe/Berlin]", 0),
        ("2024-12-25T13:00:00Z[UTC]", 0),
        ("2024-12-25T14:00:00[Europe/Berlin]", 0),
        ("2024-12-25 14:00:00+0100 CET", 0),
    ],
)
def test_forms_that_cannot_be_mistaken_are_read(text: str, ns: int) -> None:
    assert parse_timestamp(text) == CHRISTMAS * NS + ns


@pytest.mark.parametrize(
    ("text", "now", "meant"),
    [
        ("Dec 25 13:00:00", "2024-12-25T13:00:05Z", "2024-12-25T13:00:00Z"),
        ("Dec 31 23:59:59", "2025-01-01T00:00:01Z", "2024-12-31T23:59:59Z"),  # read just after new year
        ("Jan  1 00:00:01", "2024-12-31T23:59:59Z", "2025-01-01T00:00:01Z"),  # a clock that is ahead
        ("Wed Dec 25 14:00:00.250 CET", "2024-12-25T13:00:05Z", "2024-12-25T13:00:00.250Z"),
        ("Feb 29 12:00:00", "2025-03-01T00:00:00Z", "2024-02-29T12:00:00Z"),
        ("Dec 25 13:00:00+01:00", "2024-12-25T13:00:05Z", "2024-12-25T12:00:00Z"),
    ],
)
def test_a_time_without_a_year_is_the_one_nearest_to_when_it_came(text: str, now: str, meant: str) -> None:
    assert parse_timestamp(text, parse_rfc3339(now) // 1_000) == parse_rfc3339(meant)


@pytest.mark.parametrize("text", ["Feb 30 12:00:00", "Dez 25 13:00:00", "Dec 25 25:00:00", "Feb 29 12:00:00"])
def test_a_time_that_no_year_near_has_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parse_timestamp(text, parse_rfc3339("2022-06-01T00:00:00Z") // 1_000)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "25/12/2024",
        "2024-W54-3T13:00:00Z",
        "2024-W52-8T13:00:00Z",
        "2023-366T13:00:00Z",
        "2024-000T13:00:00Z",
        "2024-12-25T13:00+01Z",
        "2024-12-25T130000.0Z",
        "2024-12-25T13:00:00 CST",  # Chicago, Shanghai or Havana
        "2024-12-25T13:00:00 IST",
        "2024-12-25T13:00:00+01:00 IST",
        "2024-12-25T13:00:00[Europe]",
        "2024-12-25T13:00:00[../etc/passwd]",
        "2024-12-25T13:00:00[Mars/Olympus]",
        "Wed, 25 Dez 2024 13:00:00 GMT",
        "31 Feb 2024 13:00:00",
        "Dec 25 13:00:00",
        "not-a-date",
        "2024-13-01T00:00:00Z",
        "2024-02-30T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "2024-12-25T25:00:00Z",
        "2024-12-25T13:00:61Z",
        "2024-12-25T13:00:00+24:00",
        "2024-12-25T13:00:00.Z",
        "²024-12-25T13:00:00Z",
        "2024-12-25T13:00:00.²Z",
        "2024-12-25T1²:00:00Z",
        "2024-12-25T13:00:00Z x",
        "1e400",
        None,
        True,
        float("nan"),
        float("inf"),
        ["2024"],
    ],
)
def test_what_is_no_time_is_refused_with_the_value_and_an_example(value: object) -> None:
    with pytest.raises(BadInput, match=r"cannot parse timestamp .*expected RFC 3339, such as 2024-12-25T13:00:00Z"):
        parse_timestamp(value)


@pytest.mark.parametrize(
    "value",
    [
        CHRISTMAS,
        CHRISTMAS * 10**3,
        CHRISTMAS * 10**6,
        CHRISTMAS * NS,
        float(CHRISTMAS),
        str(CHRISTMAS),
        f"{CHRISTMAS}.0",
    ],
)
def test_the_unit_of_an_epoch_is_told_by_its_magnitude(value: float | str) -> None:
    assert parse_timestamp(value) == CHRISTMAS * NS


def test_an_epoch_written_as_text_keeps_its_nanoseconds() -> None:
    assert parse_timestamp(f"{CHRISTMAS}.123456789") == CHRISTMAS * NS + 123_456_789
    assert parse_timestamp(f" {CHRISTMAS * NS + 7} ") == CHRISTMAS * NS + 7


def test_a_float_of_seconds_keeps_its_microseconds() -> None:
    assert parse_epoch(CHRISTMAS + 0.123456) == CHRISTMAS * NS + 123_456_000


@given(YEARS_1_TO_9999_NS)
def test_formatting_and_parsing_are_inverse_to_the_nanosecond(ns: int) -> None:
    assert parse_rfc3339(format_ns(ns)) == ns


@given(YEARS_1_TO_9999_NS.map(lambda ns: ns // 1000))
def test_microseconds_agree_with_the_standard_library(us: int) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)
    assert datetime.fromisoformat(format_us(us)) == moment
    assert parse_rfc3339(moment.isoformat()) == us * 1000


@given(st.text(max_size=40) | st.integers() | st.floats() | st.none() | st.lists(st.none()))
def test_any_value_is_a_time_or_bad_input(value: object) -> None:
    with contextlib.suppress(BadInput):
        format_ns(parse_timestamp(value))


def test_an_integer_too_long_to_write_is_bad_input() -> None:
    with pytest.raises(BadInput, match="an integer of"):
        format_ns(parse_timestamp(10**5000))


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("5m", timedelta(minutes=5)),
        ("60s", timedelta(minutes=1)),
        ("30d", timedelta(days=30)),
        ("1h30m", timedelta(minutes=90)),
        ("250ms", timedelta(milliseconds=250)),
        ("2w", timedelta(days=14)),
        ("0s", timedelta(0)),
    ],
)
def test_durations_are_written_with_their_unit(text: str, duration: timedelta) -> None:
    assert parse_duration(text) == duration


@pytest.mark.parametrize("text", ["", "5", "m", "5 m", "-5m", "1.5h", "5y", "5m!", "999999999999w", "٥m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="duration"):
        parse_duration(text)


@given(st.timedeltas(min_value=timedelta(0)))
def test_durations_read_back_as_they_were_written(duration: timedelta) -> None:
    assert parse_duration(format_duration(duration)) == duration


def test_a_negative_duration_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="negative"):
        format_duration(timedelta(seconds=-1))


@pytest.mark.parametrize(
    ("text", "expected_s"),
    [
        ("now", CHRISTMAS + 61),
        ("now-15m", CHRISTMAS + 61 - 900),
        ("now+1h", CHRISTMAS + 61 + 3600),
        ("now/m", CHRISTMAS + 60),
        ("now-1d/d", CHRISTMAS - 13 * 3600 - 86_400),
        ("2024-12-25T13:00:00Z", CHRISTMAS),
        (str(CHRISTMAS * 1000), CHRISTMAS),
    ],
)
def test_the_api_takes_relative_and_absolute_times(text: str, expected_s: int) -> None:
    assert parse_time(text, (CHRISTMAS + 61) * 10**6) == expected_s * 10**6


@pytest.mark.parametrize("text", ["", "yesterday", "now-", "now-5", "now/y", "nowish", "now -5m"])
def test_a_time_the_api_does_not_know_is_refused_with_examples(text: str) -> None:
    with pytest.raises(BadInput, match=r"cannot parse (time .*now-15m|duration .*5m)"):
        parse_time(text, 0)


def test_the_clock_never_goes_back_even_across_a_restart() -> None:
    times = iter([50, 120, 110, 130])
    clock = MonotonicClock(lambda: next(times), floor_us=100)
    assert [clock() for _ in range(4)] == [100, 120, 120, 130]


def test_a_clock_that_was_set_back_is_told_once_until_it_has_caught_up() -> None:
    times = iter([100, 90, 85, 101, 70])
    said: list[str] = []
    handler = logger.add(said.append, format="{message}")
    try:
        clock = MonotonicClock(lambda: next(times) * 10**6)
        behind = [(clock(), clock.behind_us // 10**6)[1] for _ in range(5)]
    finally:
        logger.remove(handler)
    assert behind == [0, 10, 15, 0, 31]
    assert [line.split(";")[0].strip() for line in said] == [
        "the clock of this machine was set back: it is 10 s behind the newest record",
        "the clock of this machine has caught up with the newest record",
        "the clock of this machine was set back: it is 31 s behind the newest record",
    ]


def test_the_system_clock_counts_microseconds() -> None:
    assert 1_700_000_000 < system_clock() / 10**6 < 10_000_000_000
