"""Every caching decision, with the time given in: no clock, no thread, no I/O."""

from __future__ import annotations

import math
import random
from collections import deque
from contextlib import nullcontext
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest

from smcache import CacheConfig, Secret
from smcache._core import (
    BUSY_PAUSE,
    FIRST_BACKOFF,
    MAX_BACKGROUND,
    MAX_BACKOFF,
    PATIENCE,
    Core,
    Flight,
    Join,
    Key,
    Lead,
    Refresh,
    Refuse,
    Serve,
    check_key,
)
from smcache.errors import AccessDenied, FetchTimeout, InvalidArgument, SecretNotFound, Throttled, Unavailable
from smcache.events import Denied, Recovered, Rotated, ServedStale
from smcache.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from smcache._core import Entry, Step
    from smcache.errors import SecretCacheError

ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:prod/db-AbCdEf"
DB = Key("prod/db")
BY_ARN = Key(ARN)
API = Key("prod/api")
PINNED = Key("prod/db", version_id="v" * 32)


def secret(version: str, name: str = "prod/db") -> Secret:
    """Return a new object each time, as a source does."""
    arn = ARN if name == "prod/db" else f"arn:of:{name}"
    return Secret(f"value {version}", name=name, arn=arn, version_id=version)


def made(version: str, at: float) -> Secret:
    """Return a version of prod/db made at that time."""
    created_at = datetime.fromtimestamp(at, timezone.utc)
    return Secret("value", name="prod/db", arn=ARN, version_id=version, created_at=created_at)


def core(draw: Callable[[], float] = lambda: 0.0, **settings: Any) -> Core[object]:
    return Core(CacheConfig(**settings), Metrics(nullcontext()), draw, object, deque())


def led(step: Step) -> Flight[object]:
    assert isinstance(step, (Lead, Refresh)), step
    return step.flight


def served(step: Step) -> Secret:
    assert isinstance(step, Serve), step
    return step.secret


def refused(step: Step) -> SecretCacheError:
    assert isinstance(step, Refuse), step
    return step.error


def load(cache: Core[object], key: Key = DB, version: str = "v1", now: float = 0.0) -> Secret:
    """Have AWS asked for the key, and answer; return what the waiters get."""
    flight = led(cache.ask(key, now, cache.departed))
    cache.landed(flight, secret(version, "prod/db" if key.secret_id == ARN else key.secret_id), now)
    assert flight.secret is not None
    return flight.secret


def fail(cache: Core[object], error: SecretCacheError, key: Key = DB, now: float = 0.0) -> None:
    cache.failed(led(cache.ask(key, now, cache.departed)), error, now)


def hot(cache: Core[object], key: Key = DB) -> Entry:
    return cache.hot[key.secret_id if key == Key(key.secret_id) else key]


def rotations(cache: Core[object]) -> list[Rotated]:
    return [event for event in cache.events if isinstance(event, Rotated)]


def joined(step: Step) -> Flight[object]:
    """Return the flight that a step waits for."""
    assert isinstance(step, Join)
    return step.flight


def troubles(cache: Core[object]) -> list[type[object]]:
    """Return the kinds of what was told of trouble and of its end."""
    return [type(event) for event in cache.events if isinstance(event, (Denied, ServedStale, Recovered))]


def counts(cache: Core[object]) -> tuple[int, int, int, int]:
    """Return hits, misses, coalesced and stale_served."""
    snapshot = cache.metrics.snapshot()
    return snapshot.hits, snapshot.misses, snapshot.coalesced, snapshot.stale_served


def is_consistent(cache: Core[object]) -> bool:
    """Tell whether the table, what the hit path reads and the index by ARN hold the same entries."""
    table = dict(cache._table.items())
    by_arn = [(arn, entry) for arn, entries in cache._entries_by_arn.items() for entry in entries]
    return (
        len(table) <= cache.config.max_size
        and {id(entry) for entry in cache.hot.values()} == {id(entry) for entry in table.values()}
        and all(hot(cache, key) is entry and entry.key == key for key, entry in table.items())
        and sorted(id(entry) for _, entry in by_arn) == sorted(id(entry) for entry in table.values())
        and all(arn == entry.arn for arn, entry in by_arn)
        and all(cache._entries_by_arn.values())
        and sum(flight.background for flight in cache._flights.values()) <= MAX_BACKGROUND
    )


# --- fresh ------------------------------------------------------------------------------------------------


def test_a_value_is_fresh_for_its_ttl_and_the_hit_path_may_serve_it_until_its_refresh_is_due() -> None:
    cache = core(ttl=100, refresh_after=0.8)
    value = load(cache, now=10)
    entry = hot(cache)
    assert entry.secret is value
    assert entry.deadline == pytest.approx(90)
    assert entry.fresh_until == pytest.approx(110)
    assert served(cache.read(DB, 89.9)) is value  # another reader has decided meanwhile
    assert counts(cache) == (1, 0, 0, 0)


@pytest.mark.parametrize("draw", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("jitter", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("refresh_after", [0.0, 0.8, 1.0])
def test_the_ttl_is_shortened_per_fetch_by_up_to_the_jitter(jitter: float, draw: float, refresh_after: float) -> None:
    cache = core(lambda: draw, ttl=100, jitter=jitter, refresh_after=refresh_after, max_stale=7)
    load(cache, now=1000)
    entry = hot(cache)
    ttl = 100 * (1 - jitter * draw)
    assert entry.fresh_until == pytest.approx(1000 + ttl)
    assert entry.deadline == pytest.approx(1000 + ttl * refresh_after)
    assert cache._stale_until(entry) == pytest.approx(1000 + ttl + 7)


def test_each_fetch_draws_its_own_jitter() -> None:
    draws = iter([0.0, 1.0])
    cache = core(lambda: next(draws), ttl=100, jitter=0.5)
    load(cache, now=0)
    assert hot(cache).fresh_until == pytest.approx(100)
    load(cache, now=0)
    assert hot(cache).fresh_until == pytest.approx(50)


def test_a_ttl_of_0_asks_aws_at_every_read_and_still_keeps_one_object_per_version() -> None:
    cache = core(ttl=0)
    value = load(cache, now=5)
    for _ in range(3):
        flight = led(cache.read(DB, 5))
        assert isinstance(cache.read(DB, 5), Join)
        cache.landed(flight, secret("v1"), 5)
        assert served(cache.settle(flight, 5, 15)) is value
    assert counts(cache) == (0, 3, 3, 0)


def test_an_infinite_ttl_never_asks_again() -> None:
    cache = core(lambda: 1.0, ttl=math.inf, jitter=1, refresh_after=0, max_stale=math.inf)
    value = load(cache)
    assert hot(cache).deadline == math.inf
    assert served(cache.read(DB, 1e12)) is value


def test_a_pinned_version_is_immutable_and_fetched_once() -> None:
    cache = core(ttl=1, max_stale=0)
    value = load(cache, PINNED, "v" * 32)
    assert served(cache.read(PINNED, 1e12)) is value
    assert hot(cache, PINNED).deadline == math.inf


def test_a_pinned_version_announces_no_rotation_and_leaves_the_others_alone() -> None:
    cache = core()
    current = load(cache)
    flight = led(cache.read(PINNED, 0))
    cache.landed(flight, secret("v" * 32), 0)
    assert rotations(cache) == []
    assert cache.peek(DB) is current
    assert cache.metrics.rotations_seen == 0


# --- refresh ahead ------------------------------------------------------------------------------------------


def test_past_refresh_after_the_first_reader_alone_starts_a_refresh_and_all_get_the_value_at_once() -> None:
    cache = core(ttl=100)
    value = load(cache)
    step = cache.read(DB, 80)
    assert isinstance(step, Refresh)
    assert step.secret is value
    assert step.flight.background
    for now in (80, 81, 89.9):
        assert served(cache.read(DB, now)) is value
    assert hot(cache).deadline == 90  # of the flight: the hit path serves until then
    assert counts(cache) == (4, 0, 0, 0)


def test_a_refresh_that_lands_gives_the_value_a_new_ttl_from_its_landing() -> None:
    cache = core(ttl=100)
    value = load(cache)
    flight = led(cache.read(DB, 80))
    cache.landed(flight, secret("v1"), 85)
    assert rotations(cache) == []
    assert hot(cache).secret is value
    assert hot(cache).fresh_until == 185
    assert not cache._flights


def test_refresh_after_1_refreshes_only_what_has_expired_and_readers_wait() -> None:
    cache = core(ttl=100, refresh_after=1)
    load(cache)
    assert isinstance(cache.read(DB, 99.9), Serve)
    assert isinstance(cache.read(DB, 100), Lead)


def test_refresh_after_0_refreshes_at_the_first_read() -> None:
    cache = core(ttl=100, refresh_after=0)
    load(cache)
    assert isinstance(cache.read(DB, 0), Refresh)
    assert isinstance(cache.read(DB, 0), Serve)


def test_an_expired_value_is_waited_for() -> None:
    cache = core(ttl=100)
    load(cache)
    flight = led(cache.read(DB, 100))
    assert not flight.background
    assert joined(cache.read(DB, 100.5)) is flight
    assert counts(cache) == (0, 1, 1, 0)


def test_a_refresh_under_way_when_the_value_expires_is_waited_for() -> None:
    cache = core(ttl=100)
    load(cache)
    flight = led(cache.read(DB, 99.5))
    assert hot(cache).deadline == 100  # the hit path does not serve what has expired
    assert joined(cache.read(DB, 100)) is flight


def test_a_reader_with_an_old_value_waits_for_aws_a_second_at_most_and_those_after_not_at_all() -> None:
    cache = core(ttl=100, max_stale=1000)
    value = load(cache)
    first, second = cache.read(DB, 100), cache.read(DB, 100.5)
    assert isinstance(first, Lead)
    assert second == Join(first.flight, first.until)
    assert first.until == 100 + PATIENCE
    assert served(cache.settle(first.flight, first.until, first.until)) is value
    assert served(cache.settle(first.flight, first.until, first.until)) is value
    assert served(cache.read(DB, 102)) is value
    assert hot(cache).deadline == first.flight.overdue_at  # at hit speed
    assert troubles(cache) == [ServedStale]
    assert counts(cache) == (0, 1, 1, 3)
    cache.landed(first.flight, secret("v2"), 103)
    assert served(cache.read(DB, 103)).version_id == "v2"
    assert troubles(cache) == [ServedStale, Recovered]


def test_a_refresh_that_has_not_come_back_when_the_value_expires_keeps_nobody_waiting() -> None:
    cache = core(ttl=100)
    value = load(cache)
    led(cache.read(DB, 95))
    assert served(cache.read(DB, 100)) is value
    assert counts(cache) == (1, 0, 0, 1)


def test_a_reader_whose_old_value_is_gone_meanwhile_waits_on_to_the_deadline() -> None:
    cache = core(ttl=100, fetch_timeout=10)
    load(cache)
    step = cache.read(DB, 100)
    assert isinstance(step, Lead)
    needed = [step.flight.is_needed]
    cache.invalidate()
    assert cache.settle(step.flight, step.until, step.until) == Join(step.flight, 110)
    assert [*needed, step.flight.is_needed] == [False, True]


def test_a_request_is_worth_repeating_only_for_somebody_without_a_value() -> None:
    cache = core(ttl=100)
    cold = led(cache.read(DB, 0))
    assert cold.is_needed
    cache.landed(cold, secret("v1"), 0)
    refresh = led(cache.read(DB, 80))
    needed = [refresh.is_needed]
    assert joined(cache.ask(DB, 81, refresh.number - 1)) is refresh  # for a login that was rejected
    assert [*needed, refresh.is_needed] == [False, True]
    assert led(cache.ask(API, 0, cache.departed)).is_needed
    (batched,), _, _ = cache.batch([Key("cold")], 0)
    assert batched.is_needed


def test_refreshes_that_hang_make_room_for_others_though_nobody_reads_their_secrets_any_more() -> None:
    cache = core(ttl=100, fetch_timeout=10)
    for number in range(MAX_BACKGROUND):
        load(cache, Key(f"hangs-{number}"))
        led(cache.read(Key(f"hangs-{number}"), 80))
    load(cache, now=15)
    served(cache.read(DB, 89.5))
    assert isinstance(cache.read(DB, 95), Refresh)


def test_a_pinned_version_that_could_not_be_refreshed_needs_no_refresh() -> None:
    cache = core()
    value = load(cache, PINNED)
    fail(cache, Unavailable("down"), PINNED, 10)
    assert served(cache.read(PINNED, 1e9)) is value
    assert hot(cache, PINNED).deadline == math.inf


def test_of_two_names_under_way_at_once_the_newer_version_counts() -> None:
    """Which of the two questions AWS has answered first, nobody knows."""
    cache = core()
    by_name, by_arn = led(cache.read(DB, 0)), led(cache.read(BY_ARN, 0))
    cache.landed(by_name, made("v2", 2), 1)
    cache.landed(by_arn, made("v1", 1), 1)
    assert [served(cache.read(key, 2)).version_id for key in (DB, BY_ARN)] == ["v2", "v2"]
    assert rotations(cache) == []
    later = led(cache.ask(BY_ARN, 3, cache.departed))
    cache.landed(later, made("v1", 1), 4)  # somebody has moved the label back
    assert served(cache.read(DB, 5)).version_id == "v1"


def test_a_read_that_decides_twice_counts_once() -> None:
    cache = core()
    (flight,), _, _ = cache.batch([DB], 0)
    for _ in range(10):
        joined(cache.read(DB, 0))
    cache.gave_up(flight)
    again = led(cache.settle(flight, 1, 10))
    for _ in range(9):
        assert joined(cache.settle(flight, 1, 10)) is again
    cache.landed(again, secret("v1"), 2)
    served(cache.settle(flight, 2, 10))
    assert counts(cache) == (0, 1, 10, 0)


def test_at_most_a_few_refreshes_run_in_the_background_and_the_rest_is_put_off() -> None:
    cache = core(ttl=100)
    keys = [Key(f"s{number}") for number in range(MAX_BACKGROUND + 1)]
    for key in keys:
        load(cache, key)
    flights = [led(cache.read(key, 80)) for key in keys[:-1]]
    assert isinstance(cache.read(keys[-1], 80), Serve)
    assert hot(cache, keys[-1]).deadline == pytest.approx(80 + BUSY_PAUSE)
    cache.landed(flights[0], secret("v1", "s0"), 80)
    assert isinstance(cache.read(keys[-1], 80 + BUSY_PAUSE), Refresh)


def test_a_refresh_put_off_does_not_outlive_the_ttl() -> None:
    cache = core(ttl=1, refresh_after=0.99)
    keys = [Key(f"s{number}") for number in range(MAX_BACKGROUND + 1)]
    for key in keys:
        load(cache, key)
    for key in keys:
        cache.read(key, 0.995)
    assert hot(cache, keys[-1]).deadline == 1


@pytest.mark.parametrize("end", ["landed", "failed", "gave_up", "invalidated", "overdue"])
def test_however_a_background_refresh_ends_it_makes_room_for_the_next(end: str) -> None:
    cache = core(ttl=100)
    load(cache)
    flight = led(cache.read(DB, 80))
    assert cache._in_background(80) == 1
    match end:
        case "landed":
            cache.landed(flight, secret("v1"), 81)
        case "failed":
            cache.failed(flight, Unavailable("down"), 81)
        case "gave_up":
            cache.gave_up(flight)
        case "invalidated":
            cache.invalidate("prod/db")
        case _:
            cache.read(DB, 90)
    assert flight not in cache._flights.values()
    assert cache._in_background(91) == len(cache._flights)
    cache.landed(flight, secret("v1"), 91)  # late
    cache.failed(flight, Unavailable("down"), 91)
    assert is_consistent(cache)


# --- single flight ------------------------------------------------------------------------------------------


def test_any_number_of_readers_of_one_key_make_one_flight() -> None:
    cache = core()
    flight = led(cache.read(DB, 0))
    assert [cache.read(DB, 0) for _ in range(199)] == [Join(flight, 10)] * 199
    cache.landed(flight, secret("v1"), 1)
    assert {id(served(cache.settle(flight, 1, 10))) for _ in range(200)} == {id(cache.peek(DB))}
    assert counts(cache) == (0, 1, 199, 0)


@pytest.mark.parametrize("other", [Key("prod/api"), Key("prod/db", "AWSPENDING"), PINNED, BY_ARN])
def test_another_secret_stage_version_or_name_is_another_flight(other: Key) -> None:
    cache = core()
    assert led(cache.read(DB, 0)) is not led(cache.read(other, 0))


def test_a_failed_first_load_is_one_call_and_one_error_for_all_who_waited() -> None:
    cache = core()
    flight = led(cache.read(DB, 0))
    cache.read(DB, 0)
    error = AccessDenied("no")
    cache.failed(flight, error, 1)
    assert refused(cache.settle(flight, 1, 10)) is error
    assert refused(cache.settle(flight, 1, 10)) is error
    assert counts(cache) == (0, 1, 1, 0)


def test_the_landing_of_a_flight_that_was_invalidated_goes_to_its_waiters_but_not_into_the_cache() -> None:
    cache = core()
    flight = led(cache.read(DB, 0))
    cache.invalidate("prod/db")
    cache.landed(flight, secret("v1"), 1)
    assert rotations(cache) == []
    assert served(cache.settle(flight, 1, 10)).version_id == "v1"
    assert cache.peek(DB) is None


def test_a_flight_that_was_given_up_does_not_end_its_successor() -> None:
    """Completion is by identity of the flight, not by key."""
    cache = core()
    old = led(cache.read(DB, 0))
    cache.invalidate()
    new = led(cache.read(DB, 1))
    cache.failed(old, AccessDenied("no"), 2)
    assert joined(cache.read(DB, 2)) is new
    cache.landed(old, secret("v1"), 2)
    cache.gave_up(old)
    assert joined(cache.read(DB, 2)) is new
    assert joined(cache.settle(new, 2, 11)) is new
    cache.landed(new, secret("v2"), 3)
    assert served(cache.read(DB, 3)).version_id == "v2"


def test_a_flight_without_an_answer_has_those_who_wait_decide_afresh() -> None:
    cache = core()
    flight = led(cache.read(DB, 0))
    cache.gave_up(flight)
    step = cache.settle(flight, 1, 10)
    assert isinstance(step, Lead)
    assert joined(cache.settle(flight, 1, 10)) is step.flight


def test_a_waiter_woken_early_goes_on_waiting() -> None:
    cache = core()
    flight = led(cache.read(DB, 0))
    assert joined(cache.settle(flight, 5, 10)) is flight


# --- asking AWS now -----------------------------------------------------------------------------------------


def test_ask_goes_to_aws_whatever_is_cached_or_remembered() -> None:
    cache = core()
    load(cache)
    assert isinstance(cache.ask(DB, 0, cache.departed), Lead)
    fail(cache, AccessDenied("no"), API)
    assert isinstance(cache.ask(API, 0, cache.departed), Lead)


def test_ask_is_answered_by_what_left_late_enough() -> None:
    cache = core()
    since = cache.departed
    value = load(cache)
    assert served(cache.ask(DB, 0, since)) is value
    assert isinstance(cache.ask(DB, 0, since + 1), Lead)


def test_a_flight_that_left_too_early_does_not_count_and_those_who_waited_share_the_next() -> None:
    cache = core()
    early = led(cache.read(DB, 0))
    since = cache.departed
    assert joined(cache.ask(DB, 1, since)) is early
    assert joined(cache.ask(DB, 1, since)) is early
    cache.landed(early, secret("v1"), 2)
    late = led(cache.settle(early, 2, 11, since))
    assert joined(cache.settle(early, 2, 11, since)) is late
    cache.landed(late, secret("v2"), 3)
    assert served(cache.settle(late, 3, 11, since)).version_id == "v2"
    assert cache.settle(early, 3, 11, since) == Serve(served(cache.read(DB, 3)))  # woken last of all


def test_the_failure_of_a_flight_that_left_too_early_is_not_the_answer() -> None:
    cache = core()
    early = led(cache.read(DB, 0))
    since = cache.departed
    cache.failed(early, AccessDenied("no"), 1)
    assert isinstance(cache.settle(early, 1, 10, since), Lead)


def test_ask_is_answered_by_what_failed_late_enough() -> None:
    """Of many whose logins were rejected, those who come to ask when AWSPENDING is known to be none ask no more."""
    cache = core()
    since = cache.departed
    fail(cache, SecretNotFound("none"))
    assert isinstance(refused(cache.ask(DB, 0, since)), SecretNotFound)
    assert isinstance(cache.ask(DB, 0, cache.departed), Lead)


def test_ask_raises_what_aws_says_even_with_a_fresh_value_at_hand() -> None:
    cache = core()
    load(cache)
    since = cache.departed
    flight = led(cache.ask(DB, 1, since))
    error = Throttled("slow down")
    cache.failed(flight, error, 2)
    assert refused(cache.settle(flight, 2, 11, since)) is error
    assert isinstance(cache.read(DB, 2), (Serve, Refresh))


# --- versions -----------------------------------------------------------------------------------------------


def test_the_same_version_keeps_its_object_and_gets_a_new_deadline() -> None:
    cache = core(ttl=100)
    value = load(cache, now=0)
    assert load(cache, now=50) is value
    assert hot(cache).secret is value
    assert hot(cache).fresh_until == 150
    assert cache.metrics.rotations_seen == 0


def test_a_changed_version_swaps_and_is_one_rotation() -> None:
    cache = core()
    old = load(cache)
    flight = led(cache.ask(DB, 1, cache.departed))
    new = secret("v2")
    cache.landed(flight, new, 1)
    assert rotations(cache) == [Rotated("prod/db", old, new)]
    assert cache.peek(DB) is new
    assert cache.metrics.rotations_seen == 1


def test_the_first_load_is_no_rotation() -> None:
    cache = core()
    cache.landed(led(cache.read(DB, 0)), secret("v1"), 0)
    assert rotations(cache) == []
    assert cache.metrics.rotations_seen == 0


def test_another_label_swaps_and_is_no_rotation() -> None:
    cache = core()
    pending = Key("prod/db", "AWSPENDING")
    current = load(cache)
    load(cache, pending, "v2")
    flight = led(cache.ask(pending, 1, cache.departed))
    cache.landed(flight, secret("v3"), 1)
    assert rotations(cache) == []
    assert served(cache.read(pending, 1)).version_id == "v3"
    assert cache.peek(DB) is current
    assert cache.metrics.rotations_seen == 0


@pytest.mark.parametrize(("finder", "other"), [(DB, BY_ARN), (BY_ARN, DB)])
def test_a_rotation_found_under_one_name_is_known_under_the_others_and_counted_once(finder: Key, other: Key) -> None:
    cache = core(ttl=100)
    assert load(cache, DB) is load(cache, BY_ARN)
    since = cache.departed
    flight = led(cache.ask(finder, 50, since))
    cache.landed(flight, secret("v2"), 50)
    (rotation,) = rotations(cache)
    assert rotation.new is cache.peek(finder)
    assert cache.peek(other) is rotation.new
    assert hot(cache, other).fresh_until == 150
    assert isinstance(cache.ask(other, 50, since), Serve)
    assert load(cache, other, "v2", 60) is rotation.new
    assert cache.metrics.rotations_seen == 1


def test_a_first_load_under_another_name_can_reveal_the_rotation() -> None:
    cache = core()
    old = load(cache, DB)
    flight = led(cache.read(BY_ARN, 1))
    cache.landed(flight, secret("v2"), 1)
    assert rotations(cache) == [Rotated(ARN, old, secret_of(cache, BY_ARN))]
    assert cache.peek(DB) is cache.peek(BY_ARN)


def secret_of(cache: Core[object], key: Key) -> Secret:
    found = cache.peek(key)
    assert found is not None
    return found


def test_an_answer_that_left_earlier_than_the_one_in_place_is_dropped() -> None:
    cache = core()
    load(cache, DB)
    load(cache, BY_ARN)
    early = led(cache.ask(BY_ARN, 1, cache.departed))
    new = load(cache, DB, "v2", 2)
    assert cache.peek(BY_ARN) is new
    cache.landed(early, secret("v1"), 3)
    assert len(rotations(cache)) == 1
    assert cache.peek(BY_ARN) is cache.peek(DB) is new
    assert served(cache.settle(early, 3, 11)) is new
    assert cache.metrics.rotations_seen == 1


def test_a_failure_that_left_earlier_than_the_answer_in_place_is_dropped() -> None:
    cache = core()
    load(cache, DB)
    load(cache, BY_ARN)
    early = led(cache.ask(BY_ARN, 1, cache.departed))
    load(cache, DB, "v2", 2)
    cache.failed(early, SecretNotFound("gone"), 3)
    assert cache._stale_until(hot(cache, BY_ARN)) > hot(cache, BY_ARN).fresh_until
    assert hot(cache, BY_ARN).failures == 0


def test_a_slow_first_load_under_another_name_does_not_step_back() -> None:
    """An answer that left earlier than the one in place is dropped, whichever of its names the secret goes by."""
    cache = core()
    slow = led(cache.read(BY_ARN, 0))
    new = load(cache, DB, "v2", 1)
    cache.landed(slow, secret("v1"), 2)
    assert served(cache.read(BY_ARN, 2)) is new
    load(cache, BY_ARN, "v2", 3)
    assert cache.metrics.rotations_seen == 0


def test_a_slow_first_load_under_another_name_is_the_same_object() -> None:
    cache = core()
    slow = led(cache.read(BY_ARN, 0))
    value = load(cache, DB, "v1", 1)
    cache.landed(slow, secret("v1"), 2)
    assert slow.secret is value
    assert served(cache.read(BY_ARN, 2)) is value


def test_an_alias_that_is_evicted_by_the_landing_itself_does_no_harm() -> None:
    cache = core(max_size=1)
    load(cache, DB, "v1")
    flight = led(cache.read(BY_ARN, 1))
    new = secret("v2")
    cache.landed(flight, new, 1)
    assert cache.peek(BY_ARN) is new
    assert cache.peek(DB) is None
    assert is_consistent(cache)


@pytest.mark.parametrize(("version", "seen"), [("v1", 0), ("v2", 1)])
def test_a_value_too_old_to_be_served_is_still_known_when_its_successor_arrives(version: str, seen: int) -> None:
    """One object per version, and every rotation is counted, with max_stale=0 too."""
    cache = core(ttl=100, max_stale=0)
    old = load(cache)
    flight = led(cache.read(DB, 500))
    cache.landed(flight, secret(version), 500)
    assert (cache.peek(DB) is old) == (version == "v1")
    assert len(rotations(cache)) == cache.metrics.rotations_seen == seen


def test_a_secret_made_again_under_its_name_is_found_under_its_new_arn() -> None:
    cache = core()
    load(cache)
    again = Secret("x", name="prod/db", arn=ARN[:-1] + "g", version_id="v9")
    cache.landed(led(cache.ask(DB, 1, cache.departed)), again, 1)
    assert is_consistent(cache)
    assert cache.key_of(again) == DB
    cache.invalidate(again.arn)
    assert cache.peek(DB) is None


def test_a_flight_knows_what_the_cache_holds() -> None:
    """It is what check_version_first compares with."""
    cache = core()
    assert led(cache.read(DB, 0)).known is None
    value = load(cache, API)
    assert led(cache.ask(API, 1, cache.departed)).known is value


def test_key_of_finds_the_name_a_secret_is_cached_under() -> None:
    cache = core()
    value = secret("v1")
    assert cache.key_of(value) == BY_ARN
    load(cache, PINNED)
    load(cache, Key("prod/db", "AWSPENDING"))
    assert cache.key_of(value) == BY_ARN
    load(cache, DB)
    assert cache.key_of(value) == DB
    assert cache.key_of(Secret("x", name="n", version_id="v")) == Key("n")


def test_a_source_that_tells_no_arn_is_filed_under_the_id() -> None:
    cache = core()
    flight = led(cache.read(DB, 0))
    cache.landed(flight, Secret("x", name="prod/db", version_id="v1"), 0)
    assert is_consistent(cache)
    cache.invalidate("prod/db")
    assert not cache.hot


# --- unavailable --------------------------------------------------------------------------------------------


def test_while_aws_is_unavailable_the_old_value_is_served_at_once_up_to_max_stale_and_no_longer() -> None:
    cache = core(lambda: 0.5, jitter=0, ttl=100, max_stale=1000)
    value = load(cache)
    now = 80.0
    while now < 1100:
        step = cache.read(DB, now)
        if isinstance(step, Refresh):
            cache.failed(step.flight, Unavailable("down"), now)
        else:
            assert served(step) is value
        assert hot(cache).deadline <= 1100
        now += 0.5
    assert isinstance(cache.read(DB, 1100), Lead)
    assert counts(cache)[3] == 2000  # reads from the 100th to the 1100th second, two a second


def test_refreshes_of_a_stale_value_back_off_to_a_cap_with_full_jitter() -> None:
    draw = 1.0
    cache = core(lambda: draw, jitter=0, ttl=100)
    load(cache)
    now, pauses = 100.0, []
    fail(cache, Unavailable("down"), now=now)
    for _ in range(10):
        pauses.append(hot(cache).retry_at - now)
        assert isinstance(cache.read(DB, now), Serve)
        assert hot(cache).deadline == hot(cache).retry_at
        now = hot(cache).retry_at
        cache.failed(led(cache.read(DB, now)), Unavailable("down"), now)
    assert pauses == [min(MAX_BACKOFF, FIRST_BACKOFF * 2**step) for step in range(10)]
    draw = 0.25
    cache.failed(led(cache.read(DB, now + MAX_BACKOFF)), Unavailable("down"), now + MAX_BACKOFF)
    assert hot(cache).retry_at == now + MAX_BACKOFF + 0.25 * MAX_BACKOFF


@pytest.mark.parametrize("failures", [1, 40, 5000])
def test_backoff_is_capped_however_often_it_failed(failures: int) -> None:
    assert core(lambda: 1.0).backoff(failures, 1.0, 60.0) == min(60.0, 2.0 ** min(failures - 1, 10))


def test_once_a_request_has_failed_nobody_waits_for_its_retries() -> None:
    cache = core(ttl=100)
    old = load(cache)
    flight = led(cache.read(DB, 100))
    assert isinstance(cache.read(DB, 100), Join)
    cache.retrying(flight, Throttled("slow down"), 1.0)
    assert served(cache.read(DB, 101)) is old
    assert counts(cache)[3] == 1
    cache.landed(flight, secret("v2"), 102)
    assert served(cache.read(DB, 102)).version_id == "v2"


def test_a_failure_of_long_ago_is_no_reason_to_serve_an_old_value() -> None:
    """After hours without a read, AWS is asked, and the reader waits for what it says."""
    cache = core(ttl=100)
    load(cache)
    fail(cache, Throttled("slow down"), now=90)
    assert isinstance(cache.read(DB, 5_000), Lead)


def test_recovery_is_noticed_within_one_backoff() -> None:
    cache = core(lambda: 0.5, jitter=0, ttl=100)
    load(cache)
    fail(cache, Unavailable("down"), now=100)
    flight = led(cache.read(DB, hot(cache).retry_at))
    cache.landed(flight, secret("v1"), 101)
    entry = hot(cache)
    assert (entry.failures, entry.retry_at, entry.fresh_until) == (0, -math.inf, 201)
    assert isinstance(cache.read(DB, 102), Serve)
    assert counts(cache) == (1, 0, 0, 1)


def test_stale_reads_are_counted_as_stale_and_fresh_ones_as_hits_on_the_hit_path_too() -> None:
    cache = core(lambda: 0.5, jitter=0, ttl=100)
    load(cache)
    fail(cache, Unavailable("down"), now=80)
    cache.read(DB, 80)
    next(hot(cache).counter)
    assert counts(cache) == (2, 0, 0, 0)
    fail(cache, Unavailable("down"), now=100)
    cache.read(DB, 100)
    next(hot(cache).counter)
    assert counts(cache) == (2, 0, 0, 2)
    load(cache, now=101)
    next(hot(cache).counter)
    assert counts(cache) == (3, 0, 0, 2)


def test_who_waited_for_a_refresh_that_failed_gets_the_stale_value() -> None:
    cache = core(ttl=100)
    value = load(cache)
    flight = led(cache.read(DB, 100))
    cache.failed(flight, Unavailable("down"), 101)
    assert served(cache.settle(flight, 101, 110)) is value
    assert counts(cache) == (0, 1, 0, 1)


def test_a_read_that_sent_a_request_avoided_no_cost() -> None:
    cache = core(ttl=100)
    load(cache)
    flight = led(cache.read(DB, 100))
    cache.failed(flight, Unavailable("down"), 101)
    cache.settle(flight, 101, 110)
    assert cache.metrics.snapshot().api_cost_avoided_usd == 0


def test_who_waited_inline_for_a_refresh_that_failed_gets_the_fresh_value() -> None:
    cache = core(ttl=100)
    value = load(cache)
    flight = led(cache.read(DB, 80))
    cache.failed(flight, Unavailable("down"), 81)
    assert served(cache.settle(flight, 81, 90)) is value
    assert counts(cache) == (1, 0, 0, 0)


def test_max_stale_0_serves_nothing_past_its_ttl() -> None:
    cache = core(ttl=100, max_stale=0)
    load(cache)
    flight = led(cache.read(DB, 99))
    error = Unavailable("down")
    cache.failed(flight, error, 100)
    assert refused(cache.settle(flight, 100, 109)) is error


def test_an_outage_that_outlasts_max_stale_is_remembered_like_any_other() -> None:
    """With no value at hand an error is remembered for negative_ttl, so a hot loop is not a hot loop on AWS."""
    cache = core(ttl=100, max_stale=0)
    load(cache)
    flight = led(cache.read(DB, 99))
    error = Unavailable("down")
    cache.failed(flight, error, 101)
    assert refused(cache.read(DB, 101.5)) is error


def test_a_failed_refresh_of_a_fresh_value_is_retried_and_the_value_stays_fresh() -> None:
    cache = core(lambda: 0.5, jitter=0, ttl=100)
    value = load(cache)
    fail(cache, Unavailable("down"), now=10)
    assert served(cache.read(DB, 10)) is value
    assert hot(cache).deadline == 10.5
    assert isinstance(cache.read(DB, 10.5), Refresh)
    assert hot(cache).fresh_until == 100


# --- denied -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked_at", [10, 80, 99])
def test_after_a_denial_the_value_lives_out_its_ttl_and_is_gone(asked_at: float) -> None:
    cache = core(ttl=100)
    value = load(cache)
    fail(cache, AccessDenied("no"), now=asked_at)
    for now in (asked_at, 99.9):
        assert served(cache.read(DB, now)) is value
    assert hot(cache).deadline == 100
    flight = led(cache.read(DB, 100))
    cache.failed(flight, Unavailable("down"), 101)
    assert isinstance(cache.settle(flight, 101, 110), Refuse)
    assert isinstance(cache.read(DB, 102), Refuse)


def test_unavailability_after_a_denial_does_not_bring_staleness_back() -> None:
    cache = core(ttl=100)
    load(cache)
    fail(cache, AccessDenied("no"), now=10)
    fail(cache, Unavailable("down"), now=20)
    assert isinstance(cache.read(DB, 100), Lead)


def test_a_denial_past_the_ttl_ends_the_value_at_once_and_is_remembered() -> None:
    cache = core(ttl=100, negative_ttl=5)
    load(cache)
    flight = led(cache.read(DB, 100))
    error = SecretNotFound("gone")
    cache.failed(flight, error, 101)
    assert cache.peek(DB) is None
    assert refused(cache.settle(flight, 101, 110)) is error
    assert refused(cache.read(DB, 105.9)) is error
    assert isinstance(cache.read(DB, 106), Lead)


def test_a_denial_ends_a_stale_value() -> None:
    cache = core(lambda: 0.5, jitter=0, ttl=100)
    load(cache)
    fail(cache, Unavailable("down"), now=100)
    cache.failed(led(cache.read(DB, 101)), AccessDenied("no"), 102)
    assert isinstance(cache.read(DB, 102), Refuse)


def test_a_value_that_lands_after_a_denial_is_as_good_as_any() -> None:
    cache = core(ttl=100)
    load(cache)
    fail(cache, AccessDenied("no"), now=10)
    load(cache, now=20)
    fail(cache, Unavailable("down"), now=130)
    assert isinstance(cache.read(DB, 130), Refresh)


# --- telling ------------------------------------------------------------------------------------------------


def test_no_rotation_under_way_is_no_trouble_to_recover_from() -> None:
    cache = core(negative_ttl=0)
    pending = Key("prod/db", "AWSPENDING")
    fail(cache, SecretNotFound("none"), pending)
    load(cache, pending, "v2", now=1)
    assert troubles(cache) == []


def test_a_denial_is_told_once_until_aws_says_yes_whatever_comes_between() -> None:
    cache = core(negative_ttl=1)
    for now, error in enumerate([AccessDenied("no"), Unavailable("down"), AccessDenied("no")]):
        fail(cache, error, now=10.0 * now)
    assert troubles(cache) == [Denied]
    fail(cache, Unavailable("down"), now=30)
    load(cache, now=40)
    fail(cache, AccessDenied("no"), now=50)
    assert troubles(cache) == [Denied, Recovered, Denied]


def test_a_value_that_was_too_old_to_be_served_meanwhile_still_recovers() -> None:
    cache = core(ttl=100, jitter=0, max_stale=50, negative_ttl=1)
    load(cache)
    fail(cache, Unavailable("down"), now=99)
    cache.read(DB, 110)
    for now in (150, 160):
        fail(cache, Unavailable("down"), now=now)
    assert cache.peek(DB) is None
    load(cache, now=170)
    assert troubles(cache) == [ServedStale, Recovered]


# --- remembered errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [AccessDenied("no"), Unavailable("down"), FetchTimeout("slow")])
def test_with_no_value_at_hand_an_error_is_remembered_for_negative_ttl(error: SecretCacheError) -> None:
    cache = core(negative_ttl=5)
    cache.failed(led(cache.read(DB, 0)), error, 1)
    assert [refused(cache.read(DB, now)) for now in (1, 3, 5.9)] == [error] * 3
    assert isinstance(cache.read(DB, 6), Lead)
    assert counts(cache) == (0, 2, 0, 0)


def test_a_negative_ttl_of_0_remembers_nothing() -> None:
    cache = core(negative_ttl=0)
    cache.failed(led(cache.read(DB, 0)), Unavailable("down"), 1)
    assert isinstance(cache.read(DB, 1), Lead)


def test_a_success_forgets_the_error() -> None:
    cache = core(negative_ttl=1000)
    fail(cache, Unavailable("down"))
    value = load(cache, now=1)
    assert served(cache.read(DB, 1)) is value
    assert not cache._refusals


def test_remembered_errors_are_as_many_as_values_at_most() -> None:
    cache = core(max_size=3)
    for number in range(100):
        fail(cache, Unavailable("down"), Key(f"s{number}"))
    assert len(cache._refusals) == 3


def test_a_remembered_error_holds_no_frames() -> None:
    cache = core()
    with pytest.raises(Unavailable) as caught:
        raise Unavailable("down")
    fail(cache, caught.value)
    assert refused(cache.read(DB, 0)).__traceback__ is None


# --- deadlines ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["reader", "follower", "asker", "batch"])
def test_an_overdue_flight_has_failed(by: str) -> None:
    cache = core(fetch_timeout=10)
    flight = led(cache.read(DB, 0))
    trouble = Throttled("slow down")
    cache.retrying(flight, trouble, 0.5)
    match by:
        case "reader":
            error = refused(cache.read(DB, 10))
        case "follower":
            error = refused(cache.settle(flight, 10, 15))
        case "asker":
            assert isinstance(cache.ask(DB, 10, cache.departed), Lead)
            error = refused(cache.read(DB, 10))
        case _:
            *flights, errors = cache.batch([DB], 10)
            assert flights == [[], []]
            error = errors["prod/db"]
    assert isinstance(error, FetchTimeout)
    assert "10 s" in str(error)
    assert error.secret_id == "prod/db"
    assert error.__cause__ is trouble


def test_an_overdue_refresh_of_a_fresh_value_is_a_failed_refresh() -> None:
    cache = core(lambda: 0.5, jitter=0, ttl=100)
    value = load(cache)
    flight = led(cache.read(DB, 80))
    assert served(cache.read(DB, 90)) is value
    assert hot(cache).failures == 1
    assert hot(cache).retry_at == 90.5
    cache.landed(flight, secret("v2"), 91)
    assert rotations(cache) == []
    assert cache.peek(DB) is value


def test_a_late_landing_still_reaches_those_who_have_not_given_up() -> None:
    cache = core()
    flight = led(cache.read(DB, 0))
    cache.read(DB, 10)
    cache.landed(flight, secret("v1"), 10.5)
    assert served(cache.settle(flight, 10.5, 12)).version_id == "v1"
    assert cache.peek(DB) is None


def test_what_lands_after_it_was_overdue_is_as_old_as_its_departure() -> None:
    """The process was stopped meanwhile, and nobody knows when the answer came."""
    cache = core(ttl=100, jitter=0)
    flight = led(cache.read(DB, 0))
    cache.landed(flight, secret("v1"), 3_600)
    assert flight.secret is not None
    assert isinstance(cache.read(DB, 3_600), Lead)


def test_a_waiter_waits_no_longer_than_its_own_deadline() -> None:
    cache = core(fetch_timeout=10)
    early = led(cache.read(DB, 5))
    since = cache.departed
    cache.ask(DB, 6, since)
    cache.landed(early, secret("v1"), 14)
    late = led(cache.settle(early, 14, 16, since))
    error = refused(cache.settle(late, 16, 16, since))
    assert isinstance(error, FetchTimeout)
    assert cache._flights[DB] is late  # it is left alone


def test_a_reader_whose_time_is_up_gets_what_there_is() -> None:
    cache = core(ttl=100)
    value = load(cache)
    first = led(cache.read(DB, 100))
    cache.gave_up(first)
    second = led(cache.settle(first, 105, 110))
    assert served(cache.settle(second, 110, 110)) is value


def test_retries_are_counted_with_their_pauses() -> None:
    cache = core()
    flight = led(cache.read(DB, 0))
    cache.retrying(flight, Throttled("slow down"), 0.5)
    cache.retrying(flight, Throttled("slow down"), 0.25)
    assert (cache.metrics.retries, cache.metrics.backoff_seconds) == (2, 0.75)


# --- invalidate ---------------------------------------------------------------------------------------------

PENDING = Key("prod/db", "AWSPENDING")
PARTIAL = Key(ARN[:-7])


@pytest.mark.parametrize("cached", [[DB], [BY_ARN], [DB, BY_ARN], [DB, BY_ARN, PENDING, PINNED], [PARTIAL]])
@pytest.mark.parametrize("named", ["prod/db", ARN])
def test_invalidate_by_either_name_reaches_all(cached: list[Key], named: str) -> None:
    cache = core()
    load(cache, API)
    for key in cached:
        flight = led(cache.read(key, 0))
        cache.landed(flight, secret("v1"), 0)
    cache.invalidate(named)
    assert list(cache.hot) == ["prod/api"]
    assert is_consistent(cache)


@pytest.mark.parametrize("refreshed", [DB, BY_ARN])
@pytest.mark.parametrize("named", ["prod/db", ARN])
def test_invalidate_reaches_refreshes_under_way(refreshed: Key, named: str) -> None:
    cache = core()
    load(cache, DB)
    load(cache, BY_ARN)
    flight = led(cache.ask(refreshed, 1, cache.departed))
    cache.invalidate(named)
    cache.landed(flight, secret("v1"), 2)
    assert not cache.hot
    assert isinstance(cache.read(refreshed, 2), Lead)


@pytest.mark.parametrize("loading", [DB, BY_ARN])
@pytest.mark.parametrize("named", ["prod/db", ARN, None])
def test_invalidate_reaches_first_loads_under_way_by_whatever_name(loading: Key, named: str | None) -> None:
    cache = core()
    flight = led(cache.read(loading, 0))
    cache.invalidate(named)
    cache.landed(flight, secret("v1"), 1)
    assert not cache.hot


def test_invalidate_leaves_the_refresh_of_another_secret_alone() -> None:
    cache = core()
    load(cache, API)
    flight = led(cache.ask(API, 1, cache.departed))
    cache.invalidate("prod/db")
    assert cache.read(API, 2) == Serve(secret_of(cache, API))
    cache.landed(flight, secret("v2", "prod/api"), 2)
    assert secret_of(cache, API).version_id == "v2"


def test_invalidate_leaves_the_first_load_of_a_secret_with_another_name_alone() -> None:
    """Any number of readers, one call: two names that differ are two secrets."""
    cache = core()
    flight = led(cache.read(API, 0))
    cache.invalidate("prod/db")
    assert joined(cache.read(API, 1)) is flight


@pytest.mark.parametrize("named", ["prod/db", None])
def test_invalidate_forgets_the_remembered_error(named: str | None) -> None:
    cache = core()
    fail(cache, AccessDenied("no"))
    fail(cache, AccessDenied("no"), API)
    cache.invalidate(named)
    assert isinstance(cache.read(DB, 0), Lead)
    assert isinstance(cache.read(API, 0), Refuse if named else Lead)


def test_invalidate_everything() -> None:
    cache = core()
    for key in (DB, API, PENDING, PINNED):
        load(cache, key)
    cache.ask(API, 0, cache.departed)
    cache.invalidate()
    assert not cache.hot
    assert not cache._flights
    assert is_consistent(cache)


def test_what_was_under_way_when_the_values_came_into_doubt_reaches_its_waiters_and_not_the_cache() -> None:
    cache = core(ttl=100)
    flight = led(cache.read(DB, 0))
    cache.doubt(0)
    cache.landed(flight, secret("v1"), 1)
    assert served(cache.settle(flight, 1, 10)).version_id == "v1"
    assert isinstance(cache.read(DB, 1), Lead)
    assert is_consistent(cache)


def test_flights_left_behind_are_handed_over_and_store_nothing() -> None:
    """The cache is closed, or the event loop has ended that they flew in."""
    cache = core(ttl=100)
    value = load(cache)
    first, second = led(cache.read(DB, 80)), led(cache.read(API, 80))
    assert cache.leave_flights() == [first, second]
    cache.landed(first, secret("v2"), 81)
    cache.landed(second, secret("v1", "prod/api"), 81)
    assert cache.peek(DB) is value
    assert cache.peek(API) is None
    assert is_consistent(cache)
    assert not cache.leave_flights()


# --- size ---------------------------------------------------------------------------------------------------


def test_the_least_recently_used_value_goes_first() -> None:
    cache = core(max_size=2)
    load(cache, Key("a"))
    load(cache, Key("b"))
    cache.read(Key("a"), 0)
    load(cache, Key("c"))
    assert list(cache.hot) == ["a", "c"]
    assert is_consistent(cache)


def test_an_evicted_value_is_loaded_again_and_a_flight_for_it_may_still_land() -> None:
    cache = core(max_size=1)
    load(cache, Key("a"))
    flight = led(cache.ask(Key("a"), 0, cache.departed))
    load(cache, Key("b"))
    cache.landed(flight, secret("v2", "a"), 1)
    assert list(cache.hot) == ["a"]
    assert is_consistent(cache)


@pytest.mark.parametrize("max_size", [1, 2, 5])
def test_ten_thousand_operations_in_any_order_leave_nothing_behind(max_size: int) -> None:
    draw = random.Random(max_size)  # noqa: S311 - no secret is made of it
    cache = core(draw.random, max_size=max_size, ttl=5, max_stale=5, fetch_timeout=2)
    keys = [DB, BY_ARN, PENDING, PINNED, *(Key(f"s{number}") for number in range(4))]
    now, flights = 0.0, list[Flight[object]]()
    for _ in range(10_000):
        now += draw.choice([0, 0, 0.1, 1])
        key = draw.choice(keys)
        operation = draw.randrange(8)
        if operation < 3:
            step: Step = cache.read(key, now)
            if isinstance(step, (Lead, Refresh)):
                flights.append(step.flight)
        elif operation == 3:
            step = cache.ask(key, now, cache.departed)
            if isinstance(step, Lead):
                flights.append(step.flight)
        elif operation == 4 and draw.random() < 0.2:
            cache.invalidate(draw.choice(["prod/db", ARN, "s1", None]))
        elif flights:
            flight = flights.pop(draw.randrange(len(flights)))
            if operation == 5:
                error = draw.choice([Unavailable("down"), AccessDenied("no")])
                cache.failed(flight, error, now)
            else:
                name = "prod/db" if flight.key in keys[:4] else flight.key.secret_id
                cache.landed(flight, secret(draw.choice(["v1", "v2"]), name), now)
        assert is_consistent(cache)
    for flight in flights:
        cache.gave_up(flight)
    assert not cache._flights
    cache.invalidate()
    assert [len(held) for held in (cache.hot, cache._entries_by_arn, cache._refusals, cache._table)] == [0] * 4


# --- the rest -----------------------------------------------------------------------------------------------


def test_a_change_that_is_expected_brings_the_refresh_forward_and_never_back() -> None:
    cache = core(ttl=100)
    load(cache)
    cache.expect_change(DB, 30)
    assert hot(cache).deadline == 30
    cache.expect_change(DB, 60)
    assert hot(cache).deadline == 30
    assert isinstance(cache.read(DB, 30), Refresh)
    cache.expect_change(API, 1)
    assert list(cache.hot) == ["prod/db"]


def test_batch_leads_what_is_missing_joins_what_is_under_way_and_leaves_out_what_is_fresh() -> None:
    cache = core(ttl=100)
    load(cache, Key("expired"), now=0)
    load(cache, Key("fresh"), now=50)
    flying = led(cache.read(Key("flying"), 100))
    fail(cache, Unavailable("down"), Key("failed"), 100)
    keys = [Key(name) for name in ("fresh", "flying", "expired", "failed", "cold", "cold")]
    lead, join, errors = cache.batch(keys, 100)
    assert [flight.key.secret_id for flight in lead] == ["expired", "cold"]
    assert [(name, type(error)) for name, error in errors.items()] == [("failed", Unavailable)]
    assert join == [flying, lead[-1]]
    assert joined(cache.read(Key("cold"), 100)) is lead[-1]
    assert counts(cache) == (0, 3, 3, 0)


def test_flights_are_numbered_as_they_depart() -> None:
    cache = core()
    numbers = [led(cache.read(Key(name), 0)).number for name in "abc"]
    assert numbers == [1, 2, 3]
    assert cache.departed == 3


BAD_KEYS: list[tuple[Key, str]] = [
    (Key(""), "the secret id has 0 characters"),
    (Key("x" * 2049), "the secret id has 2049 characters"),
    (Key(" prod/db"), "white space around the secret id"),
    (Key("prod/db\n"), "white space around the secret id"),
    (Key("\u00a0prod/db"), "white space around the secret id"),
    (Key("\t"), "white space around the secret id"),
    (Key(None), "the secret id is a str, not NoneType"),  # type: ignore[arg-type]
    (Key(b"prod/db"), "the secret id is a str, not bytes"),  # type: ignore[arg-type]
    (Key(["prod/db"]), "the secret id is a str, not list"),  # type: ignore[arg-type]
    (Key("prod/db", ""), "the stage has 0 characters"),
    (Key("prod/db", "x" * 257), "the stage has 257 characters"),
    (Key("prod/db", "AWSCURRENT "), "white space around the stage"),
    (Key("prod/db", None), "the stage is a str, not NoneType"),  # type: ignore[arg-type]
    (Key("prod/db", version_id=""), "the version id has 0 characters"),
    (Key("prod/db", version_id="x" * 31), "the version id has 31 characters"),
    (Key("prod/db", version_id="x" * 65), "the version id has 65 characters"),
    (Key("prod/db", version_id=" " + "x" * 32), "white space around the version id"),
    (Key("prod/db", version_id=1), "the version id is a str, not int"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("key", "message"), BAD_KEYS, ids=[message for _, message in BAD_KEYS])
def test_a_key_aws_could_not_accept_is_refused(key: Key, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_key(key)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "key",
    [DB, BY_ARN, Key("x"), Key("x" * 2048), Key("x", "y"), Key("x", "y" * 256), Key("x", version_id="z" * 64), PINNED],
)
def test_a_key_aws_could_accept_is_returned(key: Key) -> None:
    assert check_key(key) is key


@pytest.mark.parametrize("asked_at", [10, 99])
def test_what_was_denied_is_not_confirmed_by_its_version_alone(asked_at: float) -> None:
    """DescribeSecret succeeds for a deleted secret too: after a denial only the value itself will do."""
    cache = core(ttl=100, check_version_first=True)
    load(cache)
    fail(cache, AccessDenied("no"), now=asked_at)
    assert led(cache.read(DB, 100)).known is None
