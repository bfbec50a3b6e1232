"""The core against a plain model of the caching rules, under any order of events."""

from __future__ import annotations

import math
from collections import deque
from contextlib import nullcontext
from datetime import datetime, timezone
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from smcache import CacheConfig, Secret
from smcache._core import MAX_BACKGROUND, PATIENCE, Core, Join, Key, Lead, Refresh, Refuse, Serve
from smcache.errors import AccessDenied, Unavailable
from smcache.events import Recovered, Rotated, ServedStale
from smcache.metrics import Metrics

if TYPE_CHECKING:
    from smcache._core import Entry, Flight, Step

ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:db-AbCdEf"
TTL, MAX_STALE, FETCH_TIMEOUT = 10.0, 30.0, 3.0
#: Each key, and the secret it is a name of.
SECRETS = {
    Key("db"): "db",
    Key(ARN): "db",
    Key("db", "AWSPENDING"): "db pending",
    **{Key(f"s{number}"): f"s{number}" for number in range(3)},
}
keys = st.sampled_from([*SECRETS, Key("db"), Key(ARN)])


class Trip(NamedTuple):
    """A flight under way, and the version that AWS had when it left."""

    flight: Flight[object]
    version: int


class Waiter(NamedTuple):
    flight: Flight[object]
    until: float
    since: int | None


class CoreMachine(RuleBasedStateMachine):
    """What AWS has only ever gets newer; what the cache serves must do so too, for as long as it may serve it."""

    max_size = 100

    def __init__(self) -> None:
        super().__init__()
        self.core: Core[object] = Core(
            CacheConfig(ttl=TTL, jitter=0, max_stale=MAX_STALE, fetch_timeout=FETCH_TIMEOUT, max_size=self.max_size),
            Metrics(nullcontext()),
            lambda: 0.5,
            object,
            deque(),
        )
        self.now = 0.0
        self.aws = dict.fromkeys(SECRETS.values(), 1)
        self.trips: list[Trip] = []
        self.waiters: list[Waiter] = []
        self.alive: dict[Key, Flight[object]] = {}  # flights that may not have a second one beside them
        self.landed_at = dict.fromkeys(SECRETS.values(), -math.inf)
        self.denied: set[Key] = set()  # since the last landing
        self.served = dict.fromkeys(SECRETS.values(), 0)
        self.objects: dict[str, Secret] = {}  # what was served last, unless the cache may have let go of it
        self.from_replica: set[str] = set()  # an answer that left later counts, though a replica's may be older
        self.doubted: set[Key] = set()  # since the process was restored from a snapshot
        self.told_stale: dict[tuple[str, str], Entry] = {}

    @initialize(loaded=st.sets(keys))
    def load(self, loaded: set[Key]) -> None:
        for key in sorted(loaded):
            self.read(key)
        for _ in range(len(self.trips)):
            self.land(0, 0)

    # --- events -----------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.05, 0.5, 1.5, 8.5, 39.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for key, name in SECRETS.items():
            if key in self.denied or self.now >= self.landed_at[name] + TTL + MAX_STALE:
                self.objects.pop(name, None)

    @rule(name=st.sampled_from(sorted(set(SECRETS.values()))))
    def rotate(self, name: str) -> None:
        self.aws[name] += 1

    @rule(key=keys)
    def read(self, key: Key) -> None:
        entry = self.core.hot.get(key.secret_id if key == Key(key.secret_id) else key)
        if entry is not None and self.now < entry.deadline:
            next(entry.counter)
            self.serves(key, entry.secret)
        else:
            entry = self.core._table.get(key)
            step = self.core.read(key, self.now)
            if key in self.doubted and isinstance(step, (Serve, Refresh)):
                assert entry is not None
                flight = self.core._flights.get(key)
                is_slow = flight is not None and self.now >= flight.is_slow_at
                assert entry.failures or is_slow, "asked for after a restore, unless AWS is unavailable"
            self.take(key, step, None)

    @rule()
    def read_all(self) -> None:
        for key in SECRETS:
            self.read(key)

    @rule(key=keys)
    def ask(self, key: Key) -> None:
        since = self.core.departed
        self.take(key, self.core.ask(key, self.now, since), since)

    @rule(asked=st.sets(st.sampled_from([Key("db"), Key(ARN), Key("s0"), Key("s1")])))
    def prefetch(self, asked: set[Key]) -> None:
        lead, join, errors = self.core.batch(sorted(asked), self.now)
        assert not {Key(name) for name in errors} & self.core._table.keys()
        for flight in lead:
            self.departs(flight)
        assert {flight.key for flight in lead + join} <= asked

    @rule(at=st.integers(0, 9), lag=st.sampled_from([0, 0, 1, 2]))
    def land(self, at: int, lag: int) -> None:
        """With a lag, it is a replica that answers."""
        if not self.trips:
            return
        flight, version = self.trips.pop(at % len(self.trips))
        name = SECRETS[flight.key]
        version = max(1, version - lag)
        flight.from_replica = lag > 0
        held = [self.core.peek(key) for key, other in SECRETS.items() if other == name]
        if not any(held):
            self.served[name] = 0  # nothing is known that an older version could replace
        counts = self.core._flights.get(flight.key) is flight
        arn = ARN if name.startswith("db") else ""
        made = datetime.fromtimestamp(version, timezone.utc)
        before = self.core.metrics.rotations_seen
        self.core.landed(flight, Secret("x", name=name, arn=arn, version_id=str(version), created_at=made), self.now)
        self.ended(flight)
        rotated = [event for event in self.core.events if isinstance(event, Rotated)]
        assert self.core.metrics.rotations_seen - before == len(rotated)
        if flight.from_replica:
            self.from_replica.add(name)
        if flight.secret is None:
            assert any(secret and int(secret.version_id) > version for secret in held), "a replica that lags behind"
        elif counts:
            self.landed_at[name] = self.now
            self.denied -= {key for key in SECRETS if SECRETS[key] == name}
            assert flight.secret is not None
            assert int(flight.secret.version_id) >= version or name in self.from_replica
        else:
            assert rotated == []

    @rule(at=st.integers(0, 9), denied=st.booleans())
    def fail(self, at: int, *, denied: bool) -> None:
        if not self.trips:
            return
        flight, _ = self.trips.pop(at % len(self.trips))
        entry = self.core._table.get(flight.key)
        if denied and self.core._flights.get(flight.key) is flight and entry is not None:
            self.denied |= {flight.key} if entry.flight_number < flight.number else set()
            self.objects.pop(SECRETS[flight.key], None)
        self.core.failed(flight, AccessDenied("no") if denied else Unavailable("down"), self.now)
        self.ended(flight)

    @rule()
    def restore(self) -> None:
        """The process goes on from a snapshot, nobody knows how much later."""
        self.core.doubt(self.now)
        self.alive = {}
        self.doubted = {entry.key for entry in self.core.hot.values()}

    @rule(at=st.integers(0, 9))
    def give_up(self, at: int) -> None:
        if self.trips:
            flight, _ = self.trips.pop(at % len(self.trips))
            self.core.gave_up(flight)
            self.ended(flight)

    @rule(named=st.sampled_from(["db", ARN, "s1", None]))
    def invalidate(self, named: str | None) -> None:
        self.core.invalidate(named)
        name = "db" if named == ARN else named
        self.alive = {} if named in (None, ARN, "db") else {k: f for k, f in self.alive.items() if k in self.core.hot}
        for key, secret in SECRETS.items():
            if named is None or secret.split()[0] == name:
                assert self.core.peek(key) is None
                self.served[secret] = 0
                self.objects.pop(secret, None)

    @rule(at=st.integers(0, 9))
    def settle(self, at: int) -> None:
        if self.waiters:
            flight, until, since = self.waiters.pop(at % len(self.waiters))
            self.take(flight.key, self.core.settle(flight, self.now, until, since), since, until, flight)

    # --- what is done about it ----------------------------------------------------------------------------------

    def take(
        self,
        key: Key,
        step: Step,
        since: int | None,
        until: float | None = None,
        waited_for: Flight[object] | None = None,
    ) -> None:
        name = SECRETS[key]
        match step:
            case Serve(secret):
                assert int(secret.version_id) <= self.aws[name]
                if since is None and (waited_for is None or waited_for.secret is None):
                    self.serves(key, secret)
            case Refuse(error):
                assert isinstance(error, (AccessDenied, Unavailable))
            case Refresh(flight, secret):
                self.departs(flight)
                self.serves(key, secret)
            case Lead(flight, wait_until) | Join(flight, wait_until):
                assert flight.key == key
                if isinstance(step, Lead):
                    self.departs(flight)
                assert wait_until <= (self.now + FETCH_TIMEOUT if until is None else max(until, flight.overdue_at))
                entry = self.core._table.get(key)
                has_value = since is None and entry is not None and self.now < self.core._stale_until(entry)
                assert not has_value or wait_until <= self.now + PATIENCE, "nobody who has a value waits long"
                self.waiters.append(Waiter(flight, wait_until, since))

    def departs(self, flight: Flight[object]) -> None:
        other = self.alive.get(flight.key)
        assert other is None or self.now >= other.overdue_at, "one flight per key"
        self.alive[flight.key] = flight
        self.trips.append(Trip(flight, self.aws[SECRETS[flight.key]]))

    def serves(self, key: Key, secret: Secret) -> None:
        """Check a value that the cache gave out by itself."""
        name, version = SECRETS[key], int(secret.version_id)
        assert self.now < self.landed_at[name] + TTL + MAX_STALE
        if key in self.denied:
            assert self.now < self.landed_at[name] + TTL
        if self.max_size >= len(SECRETS):
            assert version >= self.served[name], "never step back"
            last = self.objects.get(name)
            assert last is None or (last is secret) == (last.version_id == secret.version_id), "one object per version"
        self.objects[name] = secret
        self.served[name] = version

    def ended(self, flight: Flight[object]) -> None:
        self.doubted.discard(flight.key)
        if self.alive.get(flight.key) is flight:
            del self.alive[flight.key]

    # --- what always holds ----------------------------------------------------------------------------------------

    @invariant()
    def the_indexes_agree(self) -> None:
        core = self.core
        table = dict(core._table.items())
        assert len(table) <= self.max_size
        assert {entry.key: entry for entry in core.hot.values()} == table
        listed = [entry for entries in core._entries_by_arn.values() for entry in entries]
        assert sorted(map(id, listed)) == sorted(map(id, table.values()))
        assert all(entry in core._entries_by_arn[entry.arn] for entry in table.values())
        assert all(core._entries_by_arn.values())

    @invariant()
    def changes_are_told_once(self) -> None:
        for event in self.core.events:
            match event:
                case ServedStale(secret_id, stage):
                    entry = self.core._table.get(Key(secret_id, stage))
                    assert entry is None or self.told_stale.get((secret_id, stage)) is not entry
                    if entry is not None:
                        self.told_stale[secret_id, stage] = entry
                case Recovered(secret_id, stage):
                    self.told_stale.pop((secret_id, stage), None)
        self.core.events.clear()

    @invariant()
    def few_refreshes_run_in_the_background(self) -> None:
        flying = [flight for flight in self.core._flights.values() if self.now < flight.overdue_at]
        assert sum(flight.background for flight in flying) <= MAX_BACKGROUND

    @invariant()
    def the_hit_path_serves_no_longer_than_the_rules_allow(self) -> None:
        for entry in self.core.hot.values():
            assert entry.deadline <= self.core._stale_until(entry)
            flight = self.core._flights.get(entry.key)
            in_trouble = entry.failures or flight is None or self.now >= flight.is_slow_at
            assert in_trouble or entry.deadline <= entry.fresh_until
            if entry.key in self.denied:
                assert entry.deadline <= self.landed_at[SECRETS[entry.key]] + TTL

    def teardown(self) -> None:
        """Every reader who was told to wait gets an answer in the end."""
        self.now += FETCH_TIMEOUT
        for _ in range(3):
            waiting, self.waiters = self.waiters, []
            for flight, until, since in waiting:
                self.take(flight.key, self.core.settle(flight, self.now, until, since), since, until, flight)
        assert not self.waiters


class SmallCoreMachine(CoreMachine):
    """The same with room for few values, so that most are evicted."""

    max_size = 2


@pytest.mark.parametrize("machine", [CoreMachine, SmallCoreMachine])
def test_the_core_keeps_the_rules_whatever_happens(machine: type[CoreMachine]) -> None:
    class Stable(machine):  # type: ignore[valid-type, misc]
        pass

    case = Stable.TestCase
    case.settings = settings(
        derandomize=True,
        deadline=None,
        max_examples=150,
        stateful_step_count=80,
        suppress_health_check=list(HealthCheck),
    )
    case("runTest").debug()
