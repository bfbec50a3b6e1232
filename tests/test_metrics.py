"""Counts are exact under threads, snapshots stay as they were taken, and costs follow from them."""

from __future__ import annotations

import contextvars
import copy
import dataclasses
import json
import math
import pickle
import threading
from collections import deque
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from smcache import CostModel, InvalidArgument, MetricsSnapshot, Secret
from smcache._core import MAX_BACKOFF, Entry, Key
from smcache._listeners import Listeners
from smcache.errors import AccessDenied, Throttled, Unavailable
from smcache.events import AuthFailed
from smcache.metrics import LATENCY_BOUNDS, Metrics, Tally

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smcache.errors import SecretCacheError


def metrics(*entries: Entry) -> Metrics:
    counted = Metrics(nullcontext(), lambda: 100.0)
    counted.entries = list(entries)
    return counted


def entry_of(name: str = "prod/db") -> Entry:
    return Entry(Key(name), Secret("x", name=name, version_id="v1"))


def test_a_tally_counts_and_reading_it_changes_nothing() -> None:
    tally = Tally()
    assert [tally.value(), tally.value()] == [0, 0]
    for expected in range(1, 5):
        next(tally.counter)
        assert [tally.value(), tally.value(), tally.value()] == [expected] * 3


def test_a_tally_is_exact_under_16_threads_even_while_it_is_read() -> None:
    tally, barrier, rounds = Tally(), threading.Barrier(17), 20_000

    def count() -> None:
        barrier.wait()
        for _ in range(rounds):
            next(tally.counter)

    threads = [threading.Thread(target=count) for _ in range(16)]
    for thread in threads:
        thread.start()
    barrier.wait()
    seen = [tally.value() for _ in range(1000)]
    for thread in threads:
        thread.join()
    assert seen == sorted(seen)
    assert tally.value() == 16 * rounds


def test_a_new_cache_has_counted_nothing() -> None:
    snapshot = dataclasses.asdict(metrics().snapshot())
    assert snapshot.pop("calls_by_operation") == {}
    assert snapshot.pop("errors_by_code") == {}
    assert snapshot.pop("answers_by_region") == {}
    assert snapshot.pop("latency_buckets") == (0,) * (len(LATENCY_BOUNDS) + 1)
    assert set(snapshot.values()) == {0}


def test_the_snapshot_has_the_names_of_the_design() -> None:
    names = (
        "hits misses stale_served coalesced api_calls api_errors throttles retries backoff_seconds rotations_seen "
        "auth_failures auth_recoveries auth_unrecovered api_cost_usd api_cost_avoided_usd"
    )
    assert set(names.split()) <= {field.name for field in dataclasses.fields(MetricsSnapshot)}


@pytest.mark.parametrize(
    "name",
    [
        "misses",
        "coalesced",
        "retries",
        "throttles",
        "backoff_seconds",
        "rotations_seen",
        "auth_failures",
        "auth_recoveries",
        "auth_unrecovered",
    ],
)
def test_each_count_is_reported_under_its_own_name(name: str) -> None:
    counted = metrics()
    setattr(counted, name, 7)
    assert getattr(counted.snapshot(), name) == 7


def test_hits_and_stale_reads_are_reported() -> None:
    entry, other = entry_of(), entry_of("prod/api")
    counted = metrics(entry, other)
    next(entry.counter)
    next(other.counter)
    counted.stale_served.counter.__next__()
    first, second = counted.snapshot(), counted.snapshot()
    assert (first.hits, first.stale_served) == (second.hits, second.stale_served) == (2, 1)


REQUESTS: list[tuple[int, SecretCacheError | None, dict[str, int], tuple[int, int, int]]] = [
    # requests, error, errors by code, (api calls, retries, throttles)
    (1, None, {}, (1, 0, 0)),
    (3, None, {}, (3, 2, 0)),
    (1, AccessDenied("no", code="AccessDeniedException"), {"AccessDeniedException": 1}, (1, 0, 0)),
    (1, Unavailable("down"), {"Unavailable": 1}, (1, 0, 0)),
    (2, Throttled("slow", code="ThrottlingException"), {"ThrottlingException": 1}, (2, 1, 1)),
    (0, Unavailable("no connection was made"), {}, (0, 0, 0)),
]


@pytest.mark.parametrize(("requests", "error", "codes", "counts"), REQUESTS)
def test_requests_are_counted_with_the_hidden_ones(
    requests: int, error: SecretCacheError | None, codes: dict[str, int], counts: tuple[int, int, int]
) -> None:
    counted, (calls, retries, throttles) = metrics(), counts
    counted.request("GetSecretValue", requests, 0.1, error)
    snapshot = counted.snapshot()
    assert snapshot.api_calls == sum(snapshot.calls_by_operation.values()) == calls
    assert set(snapshot.calls_by_operation) == ({"GetSecretValue"} if calls else set())
    assert snapshot.errors_by_code == codes
    assert snapshot.api_errors == sum(codes.values())
    assert (snapshot.retries, snapshot.throttles) == (retries, throttles)


def test_operations_and_codes_are_counted_apart() -> None:
    counted = metrics()
    counted.request("GetSecretValue", 1, 0, None)
    counted.request("GetSecretValue", 1, 0, Unavailable("a"))
    counted.request("DescribeSecret", 2, 0, AccessDenied("b"))
    snapshot = counted.snapshot()
    assert snapshot.calls_by_operation == {"GetSecretValue": 2, "DescribeSecret": 2}
    assert snapshot.errors_by_code == {"Unavailable": 1, "AccessDenied": 1}


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0, 0), (0.005, 0), (0.0051, 1), *((bound, number) for number, bound in enumerate(LATENCY_BOUNDS)), (10.1, 11)],
)
def test_a_duration_falls_into_the_bucket_whose_bound_it_does_not_exceed(seconds: float, bucket: int) -> None:
    counted = metrics()
    counted.request("GetSecretValue", 1, seconds, None)
    snapshot = counted.snapshot()
    assert [number for number, count in enumerate(snapshot.latency_buckets) if count] == [bucket]
    assert snapshot.latency_seconds == seconds


def test_costs_follow_from_the_counts() -> None:
    entry = entry_of()
    counted = metrics(entry)
    counted.request("GetSecretValue", 20_000, 0, None)
    counted.coalesced = 10_000
    for _ in range(30_000):
        next(entry.counter)
    for _ in range(10_000):
        counted.stale_served.counter.__next__()
    snapshot = counted.snapshot()
    assert snapshot.api_cost_usd == pytest.approx(0.10)
    assert snapshot.api_cost_avoided_usd == pytest.approx(0.25)
    dear = counted.snapshot(CostModel(per_10k_calls=1))
    assert dear.api_cost_usd == pytest.approx(2)
    assert dear.api_cost_avoided_usd == pytest.approx(5)


def test_the_list_prices_are_those_of_aws() -> None:
    prices = CostModel()
    assert prices.calls(10_000) == pytest.approx(0.05)
    assert prices.per_secret_month == 0.40


@pytest.mark.parametrize("price", [-1, -0.01, math.nan, math.inf, "5", None])
@pytest.mark.parametrize("name", ["per_10k_calls", "per_secret_month"])
def test_a_price_is_a_number_from_0(name: str, price: object) -> None:
    prices: dict[str, Any] = {name: price}
    with pytest.raises(InvalidArgument, match="0 or more"):
        CostModel(**prices)


def test_a_snapshot_stays_as_it_was_taken() -> None:
    entry = entry_of()
    counted = metrics(entry)
    counted.request("GetSecretValue", 1, 0.1, Unavailable("down"))
    snapshot = counted.snapshot()
    before = dataclasses.asdict(snapshot)
    counted.request("GetSecretValue", 1, 0.1, Unavailable("down"))
    next(entry.counter)
    with pytest.raises(TypeError, match="read-only"):
        snapshot.errors_by_code["Unavailable"] = 0  # type: ignore[index]
    assert dataclasses.asdict(snapshot) == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        snapshot.hits = 1  # type: ignore[misc]


def test_a_snapshot_can_be_exported() -> None:
    counted = metrics()
    counted.request("GetSecretValue", 1, 0.1, None)
    exported = json.loads(json.dumps(dataclasses.asdict(counted.snapshot())))
    assert exported["calls_by_operation"] == {"GetSecretValue": 1}


def test_a_snapshot_is_taken_under_the_drivers_lock() -> None:
    lock = threading.Lock()
    counted = Metrics(lock)
    taken: list[MetricsSnapshot] = []
    with lock:
        thread = threading.Thread(target=lambda: taken.append(counted.snapshot()))
        thread.start()
        counted.misses = 1
        assert not taken
        counted.coalesced = 1
    thread.join()
    assert (taken[0].misses, taken[0].coalesced) == (1, 1)


def test_hits_of_an_entry_that_has_left_the_table_go_on_being_counted_while_a_reader_holds_it() -> None:
    entry = entry_of()
    counted = metrics(entry)
    next(entry.counter)
    counted.retire(entry)
    assert counted.snapshot().hits == 1  # found twice, counted once
    counted.entries = []
    next(entry.counter)
    assert counted.snapshot().hits == 2
    del entry
    assert counted.snapshot().hits == 2
    assert counted._retired == []


def test_the_difference_of_two_snapshots_is_what_was_counted_in_between() -> None:
    entry = entry_of()
    counted = metrics(entry)
    counted.request("GetSecretValue", 2, 0.1, Throttled("slow down", code="ThrottlingException"))
    before = counted.snapshot()
    next(entry.counter)
    counted.request("GetSecretValue", 1, 0.1, None)
    counted.request("DescribeSecret", 1, 3, None)
    change = counted.snapshot() - before
    assert (change.hits, change.api_calls, change.throttles) == (1, 2, 0)
    assert change.calls_by_operation == {"GetSecretValue": 1, "DescribeSecret": 1}
    assert change.errors_by_code == {}
    assert sum(change.latency_buckets) == 2
    assert change.latency_seconds == pytest.approx(3.1)
    assert change.api_cost_usd == pytest.approx(2 * 0.05 / 10_000)
    with pytest.raises(TypeError):
        _ = change - 1  # type: ignore[operator]


def test_figures_by_secret_have_names_only_when_asked_for() -> None:
    entry = entry_of()
    entry.confirmed_at, entry.rotated_at = 90, 70
    counted = metrics(entry, entry_of("prod/api"))
    next(entry.counter)
    first, second = counted.secrets()
    assert (first.secret_id, first.hits, first.age_seconds, first.rotated_seconds_ago) == (None, 1, 10, 30)
    assert (second.rotated_seconds_ago, second.is_stale) == (None, False)
    assert [figures.secret_id for figures in counted.secrets(names=True)] == ["prod/db", "prod/api"]


def test_a_forked_child_counts_from_zero_and_its_values_stay_what_they_are() -> None:
    fresh, stale = entry_of(), entry_of("prod/api")
    counted = metrics(fresh, stale)
    stale.counter = counted.stale_served.counter
    stale.failures, stale.retry_at = 1, 101.0
    retired = entry_of("prod/mail")
    for entry in (fresh, stale, retired):
        next(entry.hits.counter)
        next(entry.counter)
    counted.retire(retired)
    counted.request("GetSecretValue", 2, 0.1, Throttled("slow down", code="ThrottlingException"))
    counted.misses = counted.auth_unrecovered = counted.answers_by_region["us-east-1"] = 1
    counted.start_anew_in_child()
    assert counted.snapshot() == metrics().snapshot()
    assert [(figures.hits, figures.is_stale) for figures in counted.secrets()] == [(0, False), (0, True)]
    for entry in (fresh, fresh, stale):
        next(entry.counter)
    assert (counted.snapshot().hits, counted.snapshot().stale_served) == (2, 1)


def test_a_signal_handler_that_reads_the_counts_while_they_are_read_does_not_wait_for_itself() -> None:
    """A fake: only a table of ours is interrupted on order."""
    entry, seen = entry_of(), list[int]()
    counted = metrics()

    class Interrupted(list[Entry]):
        def __iter__(self) -> Iterator[Entry]:
            counted.entries = [entry]
            seen.append(counted.snapshot().hits)
            return iter([entry])

    next(entry.counter)
    counted.entries = Interrupted()
    thread = threading.Thread(target=lambda: seen.append(counted.snapshot().hits), daemon=True)
    thread.start()
    thread.join(10)
    assert seen == [1, 1]


def test_a_finaliser_that_cancels_a_listener_while_events_are_handed_over_does_not_wait_for_itself() -> None:
    """A fake: only a queue of ours is interrupted on order."""
    listeners = Listeners()
    cancel = listeners.add(print)

    class Interrupted(deque[Any]):
        def popleft(self) -> Any:
            cancel()
            return super().popleft()

    happened = Interrupted([(AuthFailed("prod/db", "v1"), contextvars.copy_context())])
    thread = threading.Thread(target=lambda: listeners.take(happened), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def test_a_value_that_nobody_reads_is_stale_as_long_as_trouble_is_known() -> None:
    entry = entry_of()
    counted = metrics(entry)
    entry.counter = counted.stale_served.counter
    for failures, retry_at, is_stale in (
        (1, 101.0, True),
        (1, 100 - MAX_BACKOFF + 1, True),
        (1, 100 - MAX_BACKOFF, False),
        (0, 101.0, False),
    ):
        entry.failures, entry.retry_at = failures, retry_at
        assert counted.secrets()[0].is_stale is is_stale


def test_a_snapshot_survives_pickling_and_copying() -> None:
    counted = metrics()
    counted.request("GetSecretValue", 1, 0.1, None)
    snapshot = counted.snapshot()
    assert pickle.loads(pickle.dumps(snapshot)) == snapshot  # noqa: S301 - our own
    assert copy.deepcopy(snapshot) == snapshot
