"""Quotas: rates with a burst, debts that are paid off, waits that are true."""

from __future__ import annotations

import pytest

from logsvc.errors import OverQuota
from logsvc.quotas import Quota, Quotas


class _Seconds:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> _Seconds:
    return _Seconds()


@pytest.fixture
def quotas(seconds: _Seconds) -> Quotas:
    return Quotas(seconds)


TEN = Quota(records_per_second=10, burst_s=5)


def _take(quotas: Quotas, records: int, *, key: str = "key_a", quota: Quota = TEN, size_bytes: int = 0) -> int:
    """Return 0 if taken, else the seconds to wait."""
    try:
        quotas.take(key, quota, records, size_bytes)
    except OverQuota as exc:
        return exc.retry_after_s
    return 0


def test_a_burst_is_admitted_at_once_and_then_no_more_than_the_rate(quotas: Quotas, seconds: _Seconds) -> None:
    admitted = 0
    for _ in range(600):
        admitted += _take(quotas, 1) == 0
        seconds.now += 0.05
    # 30 s at 10 a second, a burst of 50, and one.
    assert 350 <= admitted <= 351


def test_after_the_wait_that_was_told_the_same_body_is_taken_and_not_before(quotas: Quotas, seconds: _Seconds) -> None:
    assert _take(quotas, 173) == 0
    wait_s = _take(quotas, 173)
    assert wait_s == 13  # 123 in debt
    seconds.now += wait_s - 1
    assert _take(quotas, 1) == 1
    seconds.now += 1
    assert _take(quotas, 173) == 0


def test_a_debt_is_paid_off_at_the_rate_of_a_changed_quota(quotas: Quotas, seconds: _Seconds) -> None:
    assert _take(quotas, 20_000) == 0
    assert _take(quotas, 1) == 1_995
    assert _take(quotas, 1, quota=Quota(records_per_second=1_000, burst_s=5)) == 20
    assert _take(quotas, 1, quota=TEN) in (1_995, 1_996)  # rounded up
    seconds.now += 995
    assert _take(quotas, 1, quota=Quota(records_per_second=1_000, burst_s=5)) in (10, 11)
    assert _take(quotas, 1, quota=Quota(bytes_per_second=1_000, burst_s=5), size_bytes=1) == 0


def test_a_body_larger_than_the_burst_passes_and_is_paid_off(quotas: Quotas, seconds: _Seconds) -> None:
    for _ in range(10):
        assert _take(quotas, 1_000) == 0
        seconds.now += _take(quotas, 1)
    assert seconds.now - 1_000.0 == pytest.approx(10 * 1_000 / 10, abs=6)


def test_bytes_count_beside_records_and_the_error_says_which(quotas: Quotas) -> None:
    quota = Quota(records_per_second=1_000, bytes_per_second=100, burst_s=1)
    quotas.take("key_a", quota, 1, 101)
    with pytest.raises(OverQuota, match="100 bytes per second") as caught:
        quotas.check("key_a", quota)
    assert caught.value.reason == "quota_bytes"
    assert caught.value.status == 429


def test_keys_do_not_pay_for_each_other(quotas: Quotas) -> None:
    assert _take(quotas, 1_000) == 0
    assert _take(quotas, 1) > 0
    assert _take(quotas, 1, key="key_b") == 0


def test_what_was_not_kept_is_given_back(quotas: Quotas) -> None:
    for _ in range(100):
        assert _take(quotas, 60) == 0
        quotas.give_back("key_a", TEN, 60, 0)


def test_a_raised_or_lifted_quota_holds_from_the_next_request(quotas: Quotas) -> None:
    assert _take(quotas, 1_000) == 0
    assert _take(quotas, 1) > 0
    assert _take(quotas, 1_000, quota=Quota()) == 0
    assert _take(quotas, 1) == 0  # the debt was forgotten with the quota
