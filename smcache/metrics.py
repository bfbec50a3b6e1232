"""What the cache did, what it cost, and what it saved.

Counting is always on. A hit is counted by one C call without a lock; everything else is counted inside the
core, which its driver serialises. Reading takes the driver's lock, so a snapshot is consistent.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smcache.errors import InvalidArgument, Throttled

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from smcache.errors import SecretCacheError

__all__ = ["LATENCY_BOUNDS", "CostModel", "Metrics", "MetricsSnapshot"]

#: Upper bounds, in seconds, of the latency histogram's buckets; the last bucket has none.
LATENCY_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class CostModel:
    """Prices of Secrets Manager in US dollars.

    Attributes:
        per_10k_calls: Per 10,000 API requests.
        per_secret_month: Per secret and month; each replica is a secret.

    Source: aws.amazon.com/secrets-manager/pricing, as of 2026-09-20.
    """

    per_10k_calls: float = 0.05
    per_secret_month: float = 0.40

    def __post_init__(self) -> None:
        prices: tuple[object, ...] = (self.per_10k_calls, self.per_secret_month)
        for price in prices:
            if not isinstance(price, (int, float)) or not price >= 0:
                raise InvalidArgument(f"{self!r}: prices are numbers, 0 or more")

    def calls(self, count: int) -> float:
        """Return what so many requests cost."""
        return count * self.per_10k_calls / 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsSnapshot:
    """The counts of one cache since it was made.

    Attributes:
        hits: Reads answered from the cache by a fresh value.
        misses: Reads that waited for a request of their own.
        coalesced: Reads that waited for a request another read had sent.
        stale_served: Reads answered by a value past its TTL, because AWS was unavailable.
        api_calls: Requests sent, retries included. An upper bound of what is billed.
        api_errors: Requests that failed, throttled ones included.
        throttles: Requests that were throttled.
        retries: Requests that repeated a failed one, the client's own hidden retries included.
        backoff_seconds: Time spent waiting before retries.
        rotations_seen: How often AWSCURRENT was found on another version than before.
        auth_failures: Attempts with a credential that was rejected.
        auth_recoveries: Decorated calls that succeeded after such a failure.
        auth_unrecovered: Decorated calls that ended in such a failure.
        api_cost_usd: What the requests cost.
        api_cost_avoided_usd: What the reads that sent no request would have cost without a cache.
        calls_by_operation: Requests by operation, such as ``GetSecretValue``.
        errors_by_code: Failed requests by AWS's error code, or ours where AWS did not speak.
        latency_buckets: Requests by duration: one count per bound of ``LATENCY_BOUNDS``, and one beyond.
        latency_seconds: The time all requests took together.
    """

    hits: int
    misses: int
    coalesced: int
    stale_served: int
    api_calls: int
    api_errors: int
    throttles: int
    retries: int
    backoff_seconds: float
    rotations_seen: int
    auth_failures: int
    auth_recoveries: int
    auth_unrecovered: int
    api_cost_usd: float
    api_cost_avoided_usd: float
    calls_by_operation: Mapping[str, int]
    errors_by_code: Mapping[str, int]
    latency_buckets: tuple[int, ...]
    latency_seconds: float


class Tally:
    """A count that threads raise without a lock: one C call, which the GIL makes atomic."""

    __slots__ = ("_reads", "bump")

    def __init__(self) -> None:
        self.bump: Callable[[], int] = itertools.count().__next__
        self._reads = 0

    def value(self) -> int:
        """Return the count. Callers take turns: reading raises the count by one, which is taken off again."""
        count = self.bump() - self._reads
        self._reads += 1
        return count


class Metrics:
    """The counters of one cache; ``snapshot()`` reads them."""

    def __init__(self, guard: AbstractContextManager[object]) -> None:
        self._guard = guard
        self.hits = Tally()
        self.stale_served = Tally()
        self.misses = 0
        self.coalesced = 0
        self.stale_after_waiting = 0  # of stale_served: counted as misses or coalesced as well
        self.retries = 0
        self.throttles = 0
        self.backoff_seconds = 0.0
        self.rotations_seen = 0
        self.auth_failures = 0
        self.auth_recoveries = 0
        self.auth_unrecovered = 0
        self.calls_by_operation: Counter[str] = Counter()
        self.errors_by_code: Counter[str] = Counter()
        self._latency_buckets = [0] * (len(LATENCY_BOUNDS) + 1)
        self._latency_seconds = 0.0

    def request(self, operation: str, requests: int, seconds: float, error: SecretCacheError | None) -> None:
        """Count one call of an operation, which took so many requests (hidden retries included)."""
        if not requests:
            return  # it failed before anything was sent
        self.calls_by_operation[operation] += requests
        self.retries += requests - 1
        self._latency_buckets[bisect_left(LATENCY_BOUNDS, seconds)] += 1
        self._latency_seconds += seconds
        if error is not None:
            self.errors_by_code[error.code] += 1
            self.throttles += isinstance(error, Throttled)

    def snapshot(self, prices: CostModel | None = None) -> MetricsSnapshot:
        """Return all counts at one moment, priced by ``prices`` (AWS's list price by default)."""
        prices = prices or CostModel()
        with self._guard:
            # Copied first: an event loop in another thread counts on meanwhile.
            calls_by_operation, errors_by_code = dict(self.calls_by_operation), dict(self.errors_by_code)
            hits, stale_served = self.hits.value(), self.stale_served.value()
            api_calls = sum(calls_by_operation.values())
            avoided = hits + self.coalesced + stale_served - self.stale_after_waiting
            return MetricsSnapshot(
                hits=hits,
                misses=self.misses,
                coalesced=self.coalesced,
                stale_served=stale_served,
                api_calls=api_calls,
                api_errors=sum(errors_by_code.values()),
                throttles=self.throttles,
                retries=self.retries,
                backoff_seconds=self.backoff_seconds,
                rotations_seen=self.rotations_seen,
                auth_failures=self.auth_failures,
                auth_recoveries=self.auth_recoveries,
                auth_unrecovered=self.auth_unrecovered,
                api_cost_usd=prices.calls(api_calls),
                api_cost_avoided_usd=prices.calls(avoided),
                calls_by_operation=calls_by_operation,
                errors_by_code=errors_by_code,
                latency_buckets=tuple(self._latency_buckets),
                latency_seconds=self._latency_seconds,
            )
