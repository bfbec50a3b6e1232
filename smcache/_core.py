"""Every caching decision, for both drivers: pure state, no I/O, no lock, no sleep, no clock, no AWS.

A driver asks what to do (``read``, ``ask``), does it, and reports what came of it (``landed``, ``failed``):

    Serve(secret)           return it
    Refuse(error)           raise it, as a fresh object
    Lead(flight, until)     start the flight, then wait for it, no longer than that, and call ``settle``
    Join(flight, until)     wait likewise for the flight somebody else leads
    Refresh(flight, secret) start the flight in the background, return the secret at once

The sync driver holds one lock around each call; the async driver has no ``await`` between calls. ``now`` is
always the driver's clock, in seconds. Reads that need no decision do not come here: see ``Entry.deadline``.
What has happened is filed in ``events``, for the driver to tell the listeners.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeAlias, TypeVar

from smcache.errors import (
    DecryptionFailed,
    FetchTimeout,
    InvalidArgument,
    MalformedResponse,
    SecretCacheError,
    SecretNotFound,
    Unavailable,
)
from smcache.errors import Denied as DeniedError
from smcache.errors import Throttled as ThrottledError
from smcache.events import Denied, Fetched, Recovered, Rotated, ServedStale, Throttled
from smcache.metrics import Tally

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from smcache.config import CacheConfig
    from smcache.metrics import Metrics
    from smcache.secret import Secret

AWSCURRENT = "AWSCURRENT"
AWSPENDING = "AWSPENDING"

BATCH_SIZE = 20  # secrets in one BatchGetSecretValue; source: botocore's model, SecretIdList
MAX_BACKGROUND = 4  # refreshes in the background at a time
BUSY_PAUSE = 0.1  # how long a due refresh is put off when that many are under way
PATIENCE = 1.0  # how long a reader waits for AWS who can be served an old value
FIRST_BACKOFF = 1.0  # before the second refresh of a value whose first one failed; doubles
MAX_BACKOFF = 60.0
FIRST_RETRY = 0.1  # before the second request of one fetch; doubles
MAX_RETRY = 5.0

NEVER = -math.inf  # one object for all entries

Waiter = TypeVar("Waiter")


class Key(NamedTuple):
    """What one cached value is filed under: what the caller asked for, word by word."""

    secret_id: str
    stage: str = AWSCURRENT
    version_id: str | None = None


def check_key(key: Key) -> Key:
    """Return the key if AWS could accept it.

    Limits: botocore's model of Secrets Manager (SecretId 1-2048, VersionId 32-64, VersionStage 1-256).

    Raises:
        InvalidArgument: What is wrong with the id, the stage or the version.
    """
    secret_id, stage, version_id = key
    for name, value, least, most in (
        ("secret id", secret_id, 1, 2048),
        ("stage", stage, 1, 256),
        ("version id", version_id, 32, 64),
    ):
        if value is None and name == "version id":
            continue
        if not isinstance(value, str):
            raise InvalidArgument(f"the {name} is a str, not {type(value).__name__}")
        if value != value.strip():
            raise InvalidArgument(f"white space around the {name} {value!r}", hint="strip it")
        if not least <= len(value) <= most:
            raise InvalidArgument(f"the {name} has {len(value)} characters, not {least} to {most}")
    return key


class Hit:
    """What a hit reads of an entry, side by side in memory: slots are laid out class by class, and then by name."""

    __slots__ = ("counter", "deadline", "secret")

    counter: Iterator[int]
    deadline: float
    secret: Secret


class Entry(Hit):
    """One cached value and its times.

    Until ``deadline`` a read takes ``secret``, calls ``count`` and needs no decision. A reader takes no lock,
    so whoever changes an entry sets ``secret`` and ``count`` first and ``deadline`` last.
    """

    __slots__ = (
        "__weakref__",
        "confirmed_at",
        "denied",
        "failures",
        "flight_number",
        "fresh_until",
        "hits",
        "key",
        "retry_at",
        "rotated_at",
    )

    def __init__(self, key: Key, secret: Secret) -> None:
        self.key = key
        self.secret = secret
        self.hits = Tally()
        self.counter = self.hits.counter
        self.deadline = NEVER
        self.confirmed_at = NEVER
        self.rotated_at: float | None = None
        self.flight_number = 0  # of the flight that brought the value or last confirmed it
        self.fresh_until = NEVER
        self.retry_at = NEVER  # the next refresh is not started before
        self.denied = False  # AWS has said no since: the value is not to be confirmed without being fetched
        self.failures = 0  # refreshes failed in a row because AWS was unavailable

    @property
    def arn(self) -> str:
        """What the entries of one secret have in common, whichever of its names they are filed under."""
        return self.secret.arn or self.key.secret_id

    def is_in_trouble(self, now: float) -> bool:
        """Tell whether AWS was unavailable a moment ago, when the value was to be refreshed."""
        return self.failures > 0 and now < self.retry_at + MAX_BACKOFF


class Flight(Generic[Waiter]):
    """One fetch under way, which any number of readers wait for. It is told apart by identity, not by key.

    Flights are numbered as they depart: clocks are too coarse to tell which of two left first.
    """

    __slots__ = (
        "background",
        "departed_at",
        "done",
        "error",
        "from_replica",
        "has_moved",
        "is_needed",
        "key",
        "known",
        "number",
        "overdue_at",
        "secret",
        "trouble",
    )

    def __init__(self, key: Key, number: int, departed_at: float, overdue_at: float, done: Waiter) -> None:
        self.key = key
        self.number = number
        self.departed_at = departed_at
        self.overdue_at = overdue_at
        self.done = done  # the driver's own: an event it sets after landed() or failed()
        self.background = False
        self.is_needed = False  # somebody has no value to go on with: worth repeating a request for
        self.known: Secret | None = None  # what the cache holds: check_version_first compares with it
        self.from_replica = False
        self.has_moved = False  # DescribeSecret has shown the label on another version
        self.secret: Secret | None = None
        self.error: SecretCacheError | None = None
        self.trouble: SecretCacheError | None = None  # why the request was repeated

    @property
    def is_slow_at(self) -> float:
        """From when on readers with an old value no longer wait for it."""
        return self.departed_at + PATIENCE

    def has_ended(self) -> bool:
        """Tell whether there is a value or an error; a flight that was given up has neither."""
        return self.secret is not None or self.error is not None

    def failure(self) -> SecretCacheError | None:
        """Return why it brought no value, as a fresh object; None if it brought one."""
        if self.secret is not None:
            return None
        return (self.error or self.trouble or Unavailable("not loaded", secret_id=self.key.secret_id)).fresh()

    def part_of(
        self, batch: Flight[Waiter], found: Mapping[str, Secret | SecretCacheError]
    ) -> Secret | SecretCacheError:
        """Return what the answer to a batch says of this flight. That a replica does not give it means nothing."""
        self.from_replica = batch.from_replica
        secret_id = self.key.secret_id
        result = found.get(secret_id) or MalformedResponse("the answer of AWS leaves it out", secret_id=secret_id)
        if self.from_replica and isinstance(result, SecretCacheError):
            return Unavailable("the replica does not give it", secret_id=secret_id)
        return result

    def wanted_stage(self) -> str | None:
        """Return the label to send: none beside a version that is read whatever its labels."""
        return None if self.key.version_id is not None and self.key.stage == AWSCURRENT else self.key.stage

    def confirmed(self, versions: Mapping[str, str]) -> Secret | None:
        """Return what the cache holds if DescribeSecret shows the label still on it."""
        if self.known is not None and versions.get(self.key.stage) == self.known.version_id:
            return self.known
        self.has_moved = self.key.stage in versions
        return None


def lanes(flights: Sequence[Flight[Waiter]]) -> list[list[Sequence[Flight[Waiter]]]]:
    """Return the batches for many flights, in lanes: those of a lane are asked for one after the other."""
    batches = [flights[start : start + BATCH_SIZE] for start in range(0, len(flights), BATCH_SIZE)]
    return [batches[lane::MAX_BACKGROUND] for lane in range(min(len(batches), MAX_BACKGROUND))]


class Refusal(NamedTuple):
    """An error that is remembered, and what the listeners know since AWS last gave the value."""

    error: SecretCacheError
    flight_number: int
    until: float
    denied: bool  # that AWS says no
    told: bool  # that there is trouble, which Recovered ends


class Serve(NamedTuple):
    secret: Secret


class Refuse(NamedTuple):
    error: SecretCacheError


class Lead(NamedTuple):
    flight: Flight[Any]
    until: float


class Join(NamedTuple):
    flight: Flight[Any]
    until: float


class Refresh(NamedTuple):
    flight: Flight[Any]
    secret: Secret


Step: TypeAlias = Serve | Refuse | Lead | Join | Refresh


class Core(Generic[Waiter]):
    """The table of values, the flights under way, the remembered errors."""

    def __init__(
        self,
        config: CacheConfig,
        metrics: Metrics,
        jitter: Callable[[], float],
        waiter: Callable[[], Waiter],
        events: deque[Any],
    ) -> None:
        from cachetools import LRUCache  # noqa: PLC0415 - `import smcache` stays free of it

        self.config = config
        self.metrics = metrics
        self._jitter = jitter
        self._waiter = waiter
        #: What the hit path reads: the table's entries by secret id, or by key for another stage or version.
        self.hot: dict[str | Key, Entry] = {}
        # Recency is as coarse as one TTL: a hit does not touch the table, but every refresh does.
        self._table: LRUCache[Key, Entry] = LRUCache(config.max_size)
        self._refusals: LRUCache[Key, Refusal] = LRUCache(config.max_size)
        self._flights: dict[Key, Flight[Waiter]] = {}
        self._entries_by_arn: dict[str, tuple[Entry, ...]] = {}
        self.departed = 0  # the number of the last flight
        #: What has happened since the driver last told its listeners, the oldest first.
        self.events = events
        metrics.entries = self.hot.values()

    # --- what to do ---------------------------------------------------------------------------------------

    def read(self, key: Key, now: float) -> Step:
        """Decide how one read is answered; count it."""
        step = self._decide(key, now, now + self.config.fetch_timeout)
        match step:
            case Lead():
                self.metrics.misses += 1
            case Join():
                self.metrics.coalesced += 1
            case Serve() | Refresh():
                next(self._table[key].counter)
        return step

    def _decide(self, key: Key, now: float, until: float) -> Step:
        flight = self._under_way(key, now)
        entry = self._table.get(key)
        has_value = entry is not None and now < self._stale_until(entry)
        if entry is None or not has_value or (now >= entry.fresh_until and not _in_trouble(entry, flight, now)):
            return self._refusal(key, now) or self._fetch(key, now, until, needed=not has_value)
        if now < entry.deadline:  # another reader has decided meanwhile
            return Serve(entry.secret)
        return self._read_ahead(key, entry, flight, now)

    def _refusal(self, key: Key, now: float) -> Refuse | None:
        refusal = self._refusals.get(key)
        return None if refusal is None or now >= refusal.until else Refuse(refusal.error)

    def _fetch(self, key: Key, now: float, until: float, *, needed: bool) -> Lead | Join:
        """Have AWS asked, or wait for an answer to somebody else."""
        flight = self._under_way(key, now)
        step = Lead if flight is None else Join
        flight = flight or self._depart(key, now)
        flight.is_needed |= needed
        return step(flight, until if needed else min(until, flight.is_slow_at))

    def _read_ahead(self, key: Key, entry: Entry, flight: Flight[Waiter] | None, now: float) -> Serve | Refresh:
        fresh = now < entry.fresh_until
        if not fresh:
            self._now_stale(entry)
        boundary = entry.fresh_until if fresh else self._stale_until(entry)
        if flight is not None:
            entry.deadline = min(boundary, flight.overdue_at)
        elif now < entry.retry_at:
            entry.deadline = min(boundary, entry.retry_at)
        elif self._in_background(now) >= MAX_BACKGROUND:
            entry.deadline = min(boundary, now + BUSY_PAUSE)
        else:
            flight = self._depart(key, now, background=True)
            entry.deadline = min(boundary, flight.overdue_at)
            return Refresh(flight, entry.secret)
        return Serve(entry.secret)

    def ask(self, key: Key, now: float, since: int, until: float | None = None) -> Serve | Refuse | Lead | Join:
        """Decide how to learn what AWS says after flight number ``since``, whatever is cached or remembered."""
        entry = self._table.get(key)
        if entry is not None and entry.flight_number > since:
            return Serve(entry.secret)
        refusal = self._refusals.get(key)
        if refusal is not None and refusal.flight_number > since:  # the question was decided on before it was known
            return Refuse(refusal.error)
        # One that left too early is waited for all the same: those who come meanwhile then share the next.
        return self._fetch(key, now, now + self.config.fetch_timeout if until is None else until, needed=True)

    def settle(self, flight: Flight[Waiter], now: float, until: float, since: int | None = None) -> Step:
        """Decide what a reader gets who waited for the flight, but not beyond ``until``.

        ``since`` is what it gave to ``ask``; None if it came by ``read``.
        """
        if not flight.has_ended() and now >= flight.overdue_at:
            self._expire(flight, now)
        if since is None or flight.number > since:
            if flight.secret is not None:
                return Serve(flight.secret)
            if flight.error is not None:
                return self._after_failure(flight, flight.error, now, since)
        if now >= until:
            late = self._after_failure(flight, self.timeout(flight), now, since)
            if isinstance(late, Serve) or since is not None or now >= flight.overdue_at:
                return late
            flight.is_needed = True  # the old value, which it might have been served, is gone meanwhile
            return Join(flight, flight.overdue_at)
        if not flight.has_ended() and self._flights.get(flight.key) is flight:
            return Join(flight, until)  # woken early
        if since is not None:
            return self.ask(flight.key, now, since, until)
        step = self._decide(flight.key, now, until)
        if isinstance(step, (Serve, Refresh)):
            self._count_late(self._table[flight.key])
        return step

    def _after_failure(
        self, flight: Flight[Waiter], error: SecretCacheError, now: float, since: int | None
    ) -> Serve | Refuse:
        entry = self._table.get(flight.key)
        if since is not None or entry is None:
            return Refuse(error)
        if now < entry.fresh_until:
            return Serve(entry.secret)
        if now >= self._stale_until(entry) or not _leaves_value_alone(error, flight):
            return Refuse(error)
        self._now_stale(entry)
        self._count_late(entry)
        return Serve(entry.secret)

    def _count_late(self, entry: Entry) -> None:
        """Count a stale value for a read that is counted already, as one that had to wait."""
        if self._is_stale(entry):
            next(entry.counter)
            self.metrics.stale_after_waiting += 1

    def batch(
        self, keys: Iterable[Key], now: float
    ) -> tuple[list[Flight[Waiter]], list[Flight[Waiter]], dict[str, SecretCacheError]]:
        """Return the flights to start and those to wait for, so that all keys get a fresh value, and errors known."""
        lead, join, errors = [], [], {}
        for key in keys:
            entry = self._table.get(key)
            if entry is not None and now < entry.fresh_until:
                continue
            self._under_way(key, now)  # one that is overdue has failed, which is then remembered
            match self._refusal(key, now) or self._fetch(key, now, math.inf, needed=True):
                case Lead(flight):
                    self.metrics.misses += 1
                    lead.append(flight)
                case Join(flight):
                    self.metrics.coalesced += 1
                    join.append(flight)
                case Refuse(error):
                    errors[key.secret_id] = error.fresh()
        return lead, join, errors

    def key_of(self, secret: Secret) -> Key:
        """Return the key under which the secret's AWSCURRENT is cached, or would be."""
        known = (entry.key for entry in self._entries_by_arn.get(secret.arn, ()))
        default = Key(secret.arn or secret.name)
        return next((key for key in known if key == Key(key.secret_id)), default)

    # --- what came of it ----------------------------------------------------------------------------------

    def landed(self, flight: Flight[Waiter], secret: Secret, now: float) -> None:
        """Take in what a flight brought."""
        key = flight.key
        entry = self._table.get(key)
        held = [*self._siblings(key, secret), *([] if entry is None else [entry])]
        if flight.from_replica and any(_is_behind(secret, other.secret) for other in held):
            self.failed(flight, Unavailable("the replica has an older version", secret_id=key.secret_id), now)
            return
        flight.secret = secret
        if not self._forget(flight):
            return  # invalidated or given up meanwhile: those who wait get it, the table does not
        self._fetched(flight, now, secret.version_id)
        if entry is not None and entry.flight_number > flight.number:
            flight.secret = entry.secret  # never step back
            return
        if entry is None:
            entry = self._new_entry(key, secret)
        siblings = self._siblings(key, secret)
        newest = max(siblings, key=lambda sibling: sibling.flight_number, default=entry)
        known = newest.secret if entry.secret is secret else entry.secret
        if _outdates(newest, flight, secret):
            secret = newest.secret
        elif known.version_id == secret.version_id:
            secret = known  # one object per version
        flight.secret = secret
        # Overdue: the process was stopped, and who knows when the answer came.
        as_of = now if now < flight.overdue_at else flight.departed_at
        self._store(entry, secret, max(flight.number, newest.flight_number), as_of)
        if known is secret or key.stage != AWSCURRENT or key.version_id is not None:
            return
        for sibling in siblings:
            self._store(sibling, secret, flight.number, as_of)
        for rotated in (entry, *siblings):
            rotated.rotated_at = now
        self.metrics.rotations_seen += 1
        self.events.append(Rotated(key.secret_id, known, secret))

    def _siblings(self, key: Key, secret: Secret) -> list[Entry]:
        """Return the entries of the same secret and stage under its other names."""
        others = self._entries_by_arn.get(secret.arn or key.secret_id, ())
        return [entry for entry in others if entry.key != key and entry.key[1:] == key[1:]]

    def _new_entry(self, key: Key, secret: Secret) -> Entry:
        if len(self._table) >= self.config.max_size:
            self._unlist(self._table.popitem()[1])
        entry = Entry(key, secret)
        self._table[key] = self.hot[_hot_key(key)] = entry
        self._link(entry)
        return entry

    def _store(self, entry: Entry, secret: Secret, flight_number: int, now: float) -> None:
        config = self.config
        if entry.key.version_id is not None or math.isinf(config.ttl):
            fresh_until = refresh_at = math.inf  # a version is immutable
        else:
            ttl = config.ttl * (1 - config.jitter * self._jitter())
            fresh_until, refresh_at = now + ttl, now + ttl * config.refresh_after
        refusal = self._refusals.pop(entry.key, None)
        if self._is_told(entry) or (refusal is not None and refusal.told):
            self.events.append(Recovered(entry.key.secret_id, entry.key.stage, secret.version_id))
        self._unlink(entry)  # a secret deleted and made again has another ARN
        entry.secret = secret
        self._link(entry)
        entry.counter = entry.hits.counter
        entry.confirmed_at = now
        entry.flight_number = flight_number
        entry.denied = False
        entry.failures = 0
        entry.retry_at = NEVER
        entry.fresh_until = fresh_until
        entry.deadline = refresh_at

    def failed(self, flight: Flight[Waiter], error: SecretCacheError, now: float) -> None:
        """Take in that a flight failed: an old value survives if AWS was unavailable, not if it said no."""
        error.__traceback__ = None  # its frames would live as long as it is remembered
        flight.error = error
        if not self._forget(flight):
            return
        key = flight.key
        self._fetched(flight, now, code=error.code)
        entry = self._table.get(key)
        if entry is None:
            self._refuse(flight, error, now)
        elif entry.flight_number > flight.number:
            return  # a newer answer is in place
        elif now < self._stale_until(entry) and _leaves_value_alone(error, flight):
            if math.isinf(entry.fresh_until):
                return  # it needs no refresh
            entry.failures += 1
            entry.retry_at = now + self.backoff(entry.failures, FIRST_BACKOFF, MAX_BACKOFF)
            entry.deadline = min(entry.deadline, now)  # the next reader decides afresh
        elif now < entry.fresh_until:
            self._tell_denied(key, error, entry.denied)
            entry.denied = True
            entry.deadline = entry.retry_at = entry.fresh_until
        else:
            self._drop(entry)
            self._refuse(flight, error, now, denied=entry.denied, told=self._is_told(entry))

    def _refuse(
        self, flight: Flight[Waiter], error: SecretCacheError, now: float, *, denied: bool = False, told: bool = False
    ) -> None:
        """Remember an error for those who ask soon."""
        key = flight.key
        before = self._refusals.get(key)
        if before is not None:
            denied, told = before.denied, before.told
        told |= self._tell_denied(key, error, denied)
        denied |= isinstance(error, DeniedError)
        self._refusals[key] = Refusal(error, flight.number, now + self.config.negative_ttl, denied, told)

    def _tell_denied(self, key: Key, error: SecretCacheError, denied: bool) -> bool:  # noqa: FBT001 - a state
        """Tell the listeners that AWS says no, if they do not know; return whether they were told.

        Not of AWSPENDING, which exists while a rotation is under way, and which a policy may well withhold.
        """
        if not isinstance(error, DeniedError) or denied or key.stage == AWSPENDING:
            return False
        self.events.append(Denied(key.secret_id, key.stage, error.code))
        return True

    def _fetched(self, flight: Flight[Waiter], now: float, version_id: str = "", code: str = "") -> None:
        key = flight.key
        self.events.append(
            Fetched(key.secret_id, flight.wanted_stage() or "", version_id, now - flight.departed_at, code)
        )

    def requested(
        self, operation: str, secret_id: str, requests: int, seconds: float, error: SecretCacheError | None
    ) -> None:
        """Take in that a source was called, which took so many requests and seconds."""
        self.metrics.request(operation, requests, seconds, error)
        if isinstance(error, ThrottledError):
            self.events.append(Throttled(secret_id, operation))

    def gave_up(self, flight: Flight[Waiter]) -> None:
        """Take in that a flight ended without an answer: those who wait decide afresh."""
        self._forget(flight)

    def retrying(self, flight: Flight[Waiter], error: SecretCacheError, pause: float) -> None:
        """Take in that a flight repeats its request after a pause."""
        flight.trouble = error.with_traceback(None)  # its frames would live as long as the error it causes
        self.metrics.retries += 1
        self.metrics.backoff_seconds += pause

    def backoff(self, failures: int, first: float, most: float) -> float:
        """Return a pause after so many failures: doubling, capped, with full jitter."""
        return self._jitter() * min(most, first * 2.0 ** min(failures - 1, 30))

    def invalidate(self, secret_id: str | None = None) -> None:
        """Forget one secret, named by any of its names, or all; flights under way no longer count."""
        entries = list(self.hot.values())
        if secret_id is not None:
            arns = {e.arn for e in entries if secret_id in (e.key.secret_id, e.secret.name, e.secret.arn)}
            entries = [e for e in entries if e.arn in arns]
        doomed = {entry.key for entry in entries}
        for flight in list(self._flights.values()):
            first_load = flight.key not in self._table
            if flight.key in doomed or (first_load and _may_be_one(flight.key.secret_id, secret_id)):
                self._forget(flight)
        while entries:  # one by one: as long as they are referred to, their hits cannot be added up
            self._drop(entries.pop())
        for key in [key for key in self._refusals if secret_id in (None, key.secret_id)]:
            del self._refusals[key]

    def doubt(self, now: float) -> None:
        """Have every value that can change asked for at its next read: nobody knows how old it is.

        Nor how old what a flight brings is: those who wait for it get it, the table does not.
        """
        self.leave_flights()
        for entry in self.hot.values():
            if entry.key.version_id is None:
                entry.deadline = entry.fresh_until = min(entry.fresh_until, now)
                entry.failures = 0
                entry.retry_at = NEVER
        self._refusals.clear()

    def leave_flights(self) -> list[Flight[Waiter]]:
        """Give up all flights, and return them: what they bring no longer counts."""
        flights = list(self._flights.values())
        for flight in flights:
            self._forget(flight)
        return flights

    def expect_change(self, key: Key, by: float) -> None:
        """Have the value refreshed at ``by`` at the latest: it is known to change soon."""
        entry = self._table.get(key)
        if entry is not None:
            entry.deadline = min(entry.deadline, by)

    def peek(self, key: Key) -> Secret | None:
        """Return what is cached, fresh or not."""
        entry = self._table.get(key)
        return None if entry is None else entry.secret

    # --- the table and the flights ------------------------------------------------------------------------

    def _stale_until(self, entry: Entry) -> float:
        """Return until when the entry may be served at all."""
        return entry.fresh_until if entry.denied else entry.fresh_until + self.config.max_stale

    def _is_stale(self, entry: Entry) -> bool:
        return entry.counter is self.metrics.stale_served.counter

    def _is_told(self, entry: Entry) -> bool:
        """Tell whether the listeners know of trouble, which Recovered ends."""
        return self._is_stale(entry) or (entry.denied and entry.key.stage != AWSPENDING)

    def _now_stale(self, entry: Entry) -> None:
        if not self._is_stale(entry):
            entry.counter = self.metrics.stale_served.counter
            self.events.append(ServedStale(entry.key.secret_id, entry.key.stage, entry.secret.version_id))

    def _depart(self, key: Key, now: float, *, background: bool = False) -> Flight[Waiter]:
        self.departed += 1
        flight = Flight(key, self.departed, now, now + self.config.fetch_timeout, self._waiter())
        flight.background = background
        entry = self._table.get(key)
        flight.known = None if entry is None or entry.denied else entry.secret
        self._flights[key] = flight
        return flight

    def _in_background(self, now: float) -> int:
        """Return how many refreshes nobody waits for are under way; those overdue may hang for long."""
        return sum(flight.background and now < flight.overdue_at for flight in self._flights.values())

    def _under_way(self, key: Key, now: float) -> Flight[Waiter] | None:
        flight = self._flights.get(key)
        if flight is not None and now >= flight.overdue_at:
            self._expire(flight, now)
            return None
        return flight

    def _expire(self, flight: Flight[Waiter], now: float) -> None:
        self.failed(flight, self.timeout(flight), now)

    def timeout(self, flight: Flight[Waiter]) -> FetchTimeout:
        """Return the error of a flight that is overdue."""
        limit = self.config.fetch_timeout
        error = FetchTimeout(f"no answer from AWS within {limit:g} s", secret_id=flight.key.secret_id)
        error.__cause__ = flight.trouble
        return error

    def _forget(self, flight: Flight[Waiter]) -> bool:
        """Take the flight off the list; return whether it was still on it."""
        if self._flights.get(flight.key) is not flight:
            return False
        del self._flights[flight.key]
        return True

    def _drop(self, entry: Entry) -> None:
        del self._table[entry.key]
        self._unlist(entry)

    def _unlist(self, entry: Entry) -> None:
        self.metrics.retire(entry)
        del self.hot[_hot_key(entry.key)]
        self._unlink(entry)

    def _link(self, entry: Entry) -> None:
        self._entries_by_arn[entry.arn] = (*self._entries_by_arn.get(entry.arn, ()), entry)

    def _unlink(self, entry: Entry) -> None:
        others = tuple(other for other in self._entries_by_arn[entry.arn] if other is not entry)
        if others:
            self._entries_by_arn[entry.arn] = others
        else:
            del self._entries_by_arn[entry.arn]


def _in_trouble(entry: Entry, flight: Flight[Any] | None, now: float) -> bool:
    """Tell whether AWS is known to be unavailable just now, so that readers need not wait to find out."""
    if flight is not None:
        return entry.failures > 0 or flight.trouble is not None or now >= flight.is_slow_at
    return entry.is_in_trouble(now)


def _leaves_value_alone(error: SecretCacheError, flight: Flight[Any]) -> bool:
    """Tell whether an error says nothing of the value in the cache: AWS is unavailable, or has another version by now.

    DescribeSecret has just shown that version to exist, so it is its value that is missing or cannot be decrypted.
    """
    return isinstance(error, Unavailable) or (
        flight.has_moved and isinstance(error, (DecryptionFailed, SecretNotFound))
    )


def _outdates(entry: Entry, flight: Flight[Any], secret: Secret) -> bool:
    """Tell whether an entry under another name has a later answer than a flight.

    Where both were under way at once, nobody knows which question AWS answered first, and the newer version counts.
    """
    at_once = entry.confirmed_at > flight.departed_at
    return entry.flight_number > flight.number or (at_once and _is_newer(entry.secret, secret))


def _is_behind(secret: Secret, known: Secret) -> bool:
    """Tell whether a version is not known to be newer than another one."""
    if secret.version_id == known.version_id:
        return False
    return not _is_newer(secret, known)


def _is_newer(secret: Secret, other: Secret) -> bool:
    """Tell whether a version is known to have been made later than another one."""
    made, other_made = secret.created_at, other.created_at
    return made is not None and other_made is not None and made > other_made


def _may_be_one(secret_id: str, other: str | None) -> bool:
    """Tell whether two ids may be one secret, as long as its ARN is not known; None stands for all ids."""
    return other is None or secret_id == other or secret_id.startswith("arn:") or other.startswith("arn:")


def _hot_key(key: Key) -> str | Key:
    """Return what the hit path looks a key up by: just the id where nothing else was asked for."""
    return key.secret_id if key == Key(key.secret_id) else key
