"""What the cache did, what it cost, and what it saved.

Counting is always on. A hit is counted by one C call without a lock; everything else is counted inside the
core, which its driver serialises. Reading takes the driver's lock, so a snapshot is consistent.
"""

from __future__ import annotations

import itertools
import math
import threading
import weakref
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NoReturn, final

from smcache.errors import InvalidArgument, Throttled

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from contextlib import AbstractContextManager

    from smcache._core import Entry
    from smcache.errors import SecretCacheError

__all__ = ["LATENCY_BOUNDS", "CostModel", "Counts", "Metrics", "MetricsSnapshot", "SecretFigures"]

#: Upper bounds, in seconds, of the latency histogram's buckets; the last bucket has none.
LATENCY_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class CostModel:
    """Prices of Secrets Manager, and of the KMS keys behind it, in US dollars.

    Attributes:
        per_10k_calls: Per 10,000 API requests.
        per_secret_month: Per secret and month; each replica is a secret.
        per_10k_kms_calls: Per 10,000 requests to KMS with a customer-managed key; those with the AWS-managed key
            aws/secretsmanager are free. The 20,000 that AWS gives each account and month are not taken off.
        per_kms_key_month: Per customer-managed key and month.

    Raises:
        InvalidArgument: A price is no finite number, 0 or more.

    Sources: aws.amazon.com/secrets-manager/pricing as of 2026-09-20, and aws.amazon.com/kms/pricing.
    """

    per_10k_calls: float = 0.05
    per_secret_month: float = 0.40
    per_10k_kms_calls: float = 0.03
    per_kms_key_month: float = 1.00

    def __post_init__(self) -> None:
        prices: tuple[object, ...] = (
            self.per_10k_calls,
            self.per_secret_month,
            self.per_10k_kms_calls,
            self.per_kms_key_month,
        )
        for price in prices:
            if not isinstance(price, (int, float)) or not 0 <= price < math.inf:
                raise InvalidArgument(f"{self!r}: prices are finite numbers, 0 or more")

    def calls(self, count: int) -> float:
        """Return what so many requests cost."""
        return count * self.per_10k_calls / 10_000

    def kms(self, *, keys: int, calls: int) -> float:
        """Return what a month of so many customer-managed keys and requests with them costs."""
        return keys * self.per_kms_key_month + calls * self.per_10k_kms_calls / 10_000

    def month(self, *, secrets: int, calls: int, kms_keys: int = 0, kms_calls: int = 0) -> float:
        """Return what a month costs in all.

        Args:
            secrets: How many secrets there are, replicas included.
            calls: The requests to Secrets Manager in that month.
            kms_keys: How many customer-managed keys encrypt them.
            kms_calls: The requests to KMS with those keys in that month: a Decrypt for each value that is fetched.
        """
        return secrets * self.per_secret_month + self.calls(calls) + self.kms(keys=kms_keys, calls=kms_calls)


@final
class Counts(dict[str, int]):
    """Counts by name: a read-only dict."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a snapshot's counts are read-only; copy them with dict(...)")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[Counts], tuple[dict[str, int]]]:
        return Counts, (dict(self),)


@dataclass(frozen=True, kw_only=True, slots=True)
class SecretFigures:
    """What is known of one cached value, besides the value.

    Attributes:
        secret_id: The secret as the caller named it; None unless names were asked for.
        stage: The staging label it is cached for; empty for a pinned version, whose labels may change.
        version_id: The version in the cache.
        hits: Reads it has answered while fresh.
        age_seconds: The time since AWS last confirmed it.
        rotated_seconds_ago: The time since this cache saw it rotate; None if it has not.
        is_stale: Whether it is past its TTL and would be served, because AWS is known to be unavailable. Where nobody
            reads it, that is known for a minute or two after the last attempt.
    """

    secret_id: str | None
    stage: str
    version_id: str
    hits: int
    age_seconds: float
    rotated_seconds_ago: float | None
    is_stale: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsSnapshot:
    """The counts of one cache since it was made, or its process forked. ``after - before`` has those in between.

    A forked child counts from zero, so that a sum over processes counts nothing twice. ``before`` is one of the same
    process. Reads that are answered by a remembered error (``negative_ttl``) are counted nowhere.

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
        answers_by_region: Answers by region, if the cache was given ``regions``.
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
    answers_by_region: Mapping[str, int]
    latency_buckets: tuple[int, ...]
    latency_seconds: float

    def __sub__(self, before: MetricsSnapshot) -> MetricsSnapshot:
        """Return what has been counted since an earlier snapshot of the same cache, taken with the same prices."""
        if not isinstance(before, MetricsSnapshot):
            return NotImplemented
        names = [field.name for field in fields(self)]
        return MetricsSnapshot(**{name: _difference(getattr(self, name), getattr(before, name)) for name in names})


class Tally:
    """A count that threads raise without a lock by ``next(tally.counter)``: one C call, which the GIL makes atomic."""

    __slots__ = ("_reads", "counter")

    def __init__(self) -> None:
        self.counter = itertools.count()
        self._reads = 0

    def value(self) -> int:
        """Return the count. Callers take turns: reading raises the count by one, which is taken off again."""
        count = next(self.counter) - self._reads
        self._reads += 1
        return count

    def start_anew(self) -> None:
        """Count from zero. The counter stays the same object: who holds it goes on."""
        count = self.value()  # which changes _reads as well
        self._reads += count


class Metrics:
    """The counters of one cache in one process; ``snapshot()`` reads them. A forked child starts at zero."""

    def __init__(self, guard: AbstractContextManager[object], clock: Callable[[], float] = lambda: 0.0) -> None:
        self._guard = guard
        self._clock = clock
        self.entries: Collection[Entry] = ()  # a view of the core's table
        self.stale_served = Tally()
        self._start_at_zero()

    def _start_at_zero(self) -> None:
        self._adding_up = threading.RLock()  # a signal handler or a finaliser may call the cache while we are inside
        self._retired: list[tuple[weakref.ref[Entry], Tally]] = []
        self._retired_hits = 0
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
        self.answers_by_region: Counter[str] = Counter()
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

    def retire(self, entry: Entry) -> None:
        """Go on counting the hits of an entry that is about to leave the table: readers may still hold it."""
        with self._adding_up:
            self._retired.append((weakref.ref(entry), entry.hits))
            self._settle_retired()

    def _settle_retired(self) -> None:
        gone = [tally for entry, tally in self._retired if entry() is None]
        self._retired_hits += sum(tally.value() for tally in gone)
        self._retired = [(entry, tally) for entry, tally in self._retired if tally not in gone]

    def _hits(self) -> int:
        with self._adding_up:
            self._settle_retired()
            # In this order: an entry that leaves the table meanwhile is found in both, and counted once.
            tallies = {entry.hits for entry in list(self.entries)}
            tallies.update(tally for _, tally in self._retired)
            return self._retired_hits + sum(tally.value() for tally in tallies)

    def start_anew_in_child(self) -> None:
        """Count from zero after a fork, in which another thread may have held the lock."""
        self.stale_served.start_anew()
        for entry in list(self.entries):
            entry.hits.start_anew()
        self._start_at_zero()

    def secrets(self, *, names: bool = False) -> list[SecretFigures]:
        """Return figures of each cached value, with the secrets' names only if asked for."""
        with self._guard, self._adding_up:
            now = self._clock()
            return [self._figures(entry, now, names) for entry in list(self.entries)]

    def _figures(self, entry: Entry, now: float, names: bool) -> SecretFigures:  # noqa: FBT001 - passed on
        return SecretFigures(
            secret_id=entry.key.secret_id if names else None,
            stage=entry.key.stage if entry.key.version_id is None else "",
            version_id=entry.secret.version_id,
            hits=entry.hits.value(),
            age_seconds=now - entry.confirmed_at,
            rotated_seconds_ago=None if entry.rotated_at is None else now - entry.rotated_at,
            is_stale=entry.counter is self.stale_served.counter and entry.is_in_trouble(now),
        )

    def snapshot(self, prices: CostModel | None = None) -> MetricsSnapshot:
        """Return all counts at one moment, priced by ``prices`` (AWS's list price by default)."""
        prices = prices or CostModel()
        with self._guard:
            # Copied first: an event loop in another thread counts on meanwhile.
            calls_by_operation, errors_by_code = Counts(self.calls_by_operation), Counts(self.errors_by_code)
            hits, stale_served = self._hits(), self.stale_served.value()
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
                answers_by_region=Counts(self.answers_by_region),
                latency_buckets=tuple(self._latency_buckets),
                latency_seconds=self._latency_seconds,
            )


def _difference(after: Any, before: Any) -> Any:
    if isinstance(after, dict):
        changes = {name: count - before.get(name, 0) for name, count in after.items()}
        return Counts({name: change for name, change in changes.items() if change})
    if isinstance(after, tuple):
        return tuple(now - then for now, then in zip(after, before, strict=True))
    return after - before
