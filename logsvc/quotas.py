"""Quotas: how much a key may send, on average and at once.

A key that sends more than was agreed takes from all others: CPU, the journal, the store. So each
may have a rate, in records and in bytes a second, and a burst, which is how many seconds' worth it
may send at once after it has been silent.

What always holds: over any time a key is admitted at most its rate times that time, plus the burst,
plus one body. A body of any size passes while the key is not in debt, and is then paid off, since
senders cannot know which size would be small enough; so a refusal costs no reading of the body, and
``Retry-After`` says exactly when the debt is paid. What was refused for another reason is given back.

Not here: where quotas are kept (keys.py), the answer (api/problems.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

from loguru import logger

from logsvc.errors import OverQuota

MAX_BURST_S = 3_600
"""A key may save up an hour's worth; more is no quota."""

_NOTED_EVERY_S = 60.0


class Quota(NamedTuple):
    """What a key may send; a rate of 0 is none. ``burst_s``: how many seconds' worth at once."""

    records_per_second: int = 0
    bytes_per_second: int = 0
    burst_s: int = 10  # at most MAX_BURST_S


UNLIMITED = Quota()


class _Account:
    """Until when a key has used up its rates: a bucket's level, told as a time (GCRA, ITU-T I.371)."""

    __slots__ = ("noted_at", "paid_at", "quota", "refused")

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.paid_at = [-math.inf, -math.inf]  # of records, of bytes; later than now: in debt
        self.noted_at = -math.inf
        self.refused = 0  # since it was noted in the log

    def change(self, quota: Quota, now: float) -> None:
        """Go on with another quota: a debt is of records and bytes, so it is paid off sooner at a higher rate."""
        for at in range(len(self.paid_at)):
            if self.paid_at[at] > now:
                old, new = self.quota[at], quota[at]
                self.paid_at[at] = now + (self.paid_at[at] - now) * old / new if new else -math.inf
        self.quota = quota


class Quotas:
    """The accounts of all keys; used by one event loop alone.

    Args:
        now: Seconds that never go back, such as ``time.monotonic``: a clock set back must not lock a key out.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._accounts: dict[str, _Account] = {}

    def check(self, key_id: str, quota: Quota) -> None:
        """Raise if the key is in debt; before its body is read, so that refusing costs nothing.

        Raises:
            OverQuota: With the seconds until it may send again.
        """
        account = self._accounts.get(key_id)
        if account is None:
            return
        now = self._now()
        if quota != account.quota:
            account.change(quota, now)
        for paid_at, rate, unit in zip(account.paid_at, quota, ("records", "bytes"), strict=False):
            if rate and paid_at > now:
                self._note(account, key_id, rate, unit, now)
                wait_s = max(1, math.ceil(paid_at - now))
                raise OverQuota(
                    f"the key {key_id} has used up its quota of {rate} {unit} per second; nothing was kept, send again "
                    f"in {wait_s} s, or have `logsvc keys change {key_id}` raise it",
                    wait_s,
                    reason=f"quota_{unit}",
                )

    def take(self, key_id: str, quota: Quota, records: int, size_bytes: int) -> None:
        """Charge a body that is about to be kept.

        Raises:
            OverQuota: As ``check`` does: others of the same key may have been faster.
        """
        self.check(key_id, quota)
        self._charge(key_id, quota, records, size_bytes)

    def give_back(self, key_id: str, quota: Quota, records: int, size_bytes: int) -> None:
        """Undo ``take``: nothing was kept after all, and the sender comes again."""
        self._charge(key_id, quota, -records, -size_bytes)

    def _charge(self, key_id: str, quota: Quota, records: int, size_bytes: int) -> None:
        if not (quota.records_per_second or quota.bytes_per_second):
            self._accounts.pop(key_id, None)
            return
        now = self._now()
        account = self._accounts.setdefault(key_id, _Account(quota))
        if quota != account.quota:
            account.change(quota, now)
        floor = now - quota.burst_s
        for at, (rate, amount) in enumerate(zip(quota, (records, size_bytes), strict=False)):
            if rate:
                account.paid_at[at] = max(account.paid_at[at], floor) + amount / rate

    @staticmethod
    def _note(account: _Account, key_id: str, rate: int, unit: str, now: float) -> None:
        account.refused += 1
        if now - account.noted_at >= _NOTED_EVERY_S:
            logger.warning(
                "key {} is over its quota of {} {} per second; {} requests refused", key_id, rate, unit, account.refused
            )
            account.noted_at, account.refused = now, 0
