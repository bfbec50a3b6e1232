"""Every decision after a rejected credential, for both drivers: pure state, like ``_core``.

A decorated call holds one ``Call``. Its driver asks ``begin`` and then ``step`` what to do, does it, and
reports it (``accepted``, ``rejected``, ``answered``, ``unanswered``):

    Try(secret)         log in with it
    Ask(stage, since)   learn what AWS has under the label, from a flight that left after number ``since``
    Wait(seconds)       sleep, then ask ``step`` again
    GiveUp()            raise the driver's own error

What is learnt about a rejected version (an ``Inquiry``) belongs to the secret, not to the call, so that
any number of calls that fail with it cause one set of requests, and wait by one schedule.

The facts behind it: between setSecret and finishSecret of a single-user rotation the server accepts only the
version labelled AWSPENDING, while AWSCURRENT is still the old password. AWS takes AWSPENDING off when the
rotation function has returned, after AWSCURRENT has moved: asking for AWSCURRENT first and for AWSPENDING second
misses a rotation only if both happen between the two questions. Where those took long, AWSCURRENT is asked for again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from smcache._core import AWSCURRENT, AWSPENDING, Key
from smcache.errors import AccessDenied, DecryptionFailed, Unavailable
from smcache.events import AuthFailed, AuthRecovered

if TYPE_CHECKING:
    from collections.abc import Callable

    from smcache._core import Core
    from smcache.auth import Verdict
    from smcache.config import CacheConfig
    from smcache.errors import SecretCacheError
    from smcache.metrics import Metrics
    from smcache.secret import Secret

#: The oldest AWSPENDING that can belong to a rotation under way: a rotation function is a Lambda function,
#: which runs for at most 15 minutes. An older one was left behind by a rotation that failed.
PENDING_RECENT = 900.0
QUICK = 0.1  # seconds for both questions; AWS needs longer to end a rotation and then to take AWSPENDING off
FIRST_POLL = 0.5  # before AWSCURRENT is looked at again; doubles
MAX_POLL = 8.0
MAX_INQUIRIES = 8  # rejected versions remembered per secret


class Try(NamedTuple):
    secret: Secret


class Ask(NamedTuple):
    stage: str
    since: int


class Wait(NamedTuple):
    seconds: float


class GiveUp(NamedTuple): ...


Step: TypeAlias = Try | Ask | Wait | GiveUp


@dataclass(slots=True)
class Call:
    """One decorated call: what it started from, and the versions it has tried."""

    secret_id: str
    first: Secret
    tried: set[str] = field(default_factory=set)
    tried_at: int = 0  # how many logins had been refused when the attempt under way began
    inquiry: Inquiry | None = None


class Inquiry:
    """What is known about one rejected version, shared by all calls that fail with it."""

    __slots__ = (
        "account_only",
        "answer",
        "cooldown",
        "due",
        "expires",
        "forgiven_until",
        "in_doubt",
        "opened",
        "over_at",
        "pending",
        "pending_state",
        "poll_since",
        "polls",
        "refused_at",
        "since",
        "superseded",
        "version_id",
        "window_ends",
    )

    def __init__(self, version_id: str, cooldown: float) -> None:
        self.version_id = version_id
        self.cooldown = cooldown
        self.forgiven_until = -math.inf  # a cooldown was cut short: not again before

    def open(self, now: float, lasts: float, departed: int, refused_at: int) -> None:
        self.opened = now
        self.expires = now + lasts
        self.refused_at = refused_at
        self.since = departed  # an answer that left before the rejection does not count
        self.poll_since = departed
        self.account_only = True  # locked, expired or disabled: tried with another version, never waited for
        self.answer: Secret | None = None  # what AWS last said AWSCURRENT is
        self.pending: Secret | None = None
        self.pending_state: Literal["unasked", "offered", "absent", "refused", "unreadable"] = "unasked"
        self.in_doubt = False  # a rotation may have finished between the two questions
        self.polls = 0
        self.due = math.inf  # of the next poll
        self.window_ends = now
        self.over_at: float | None = None  # concluded: no requests before
        self.superseded = False  # the server takes another version instead

    def is_open(self, now: float) -> bool:
        """Tell whether somebody is finding out; a call that was cancelled half-way leaves it to its expiry."""
        return self.over_at is None and not self.superseded and now < self.expires

    def cools(self, now: float) -> bool:
        return self.over_at is not None and now < self.over_at

    def forgive(self, now: float, cooldown: float) -> bool:
        """Take in that a server has taken the version; return whether to remember the inquiry all the same.

        The cooldown is over, but not twice within its length: another server may go on refusing the version.
        """
        if self.over_at is None:
            return False
        self.cooldown = cooldown
        if self.cools(now):
            if now >= self.forgiven_until:
                self.over_at, self.forgiven_until = now, now + cooldown
            self.over_at = min(self.over_at, self.forgiven_until)
        return now < self.forgiven_until

    def offered(self, version_id: str) -> bool:
        """Tell whether the version is the AWSPENDING that this inquiry has come up with."""
        return self.pending is not None and self.pending.version_id == version_id


class Case:
    """What is known about the rejected versions of one secret."""

    __slots__ = ("accepted", "accepted_over", "inquiries")

    def __init__(self, inquiries: dict[str, Inquiry] | None = None) -> None:
        self.inquiries = inquiries or {}
        self.accepted: Secret | None = None  # an AWSPENDING version that the server takes,
        self.accepted_over = ""  # for as long as this version is AWSCURRENT

    def under_way(self, inquiry: Inquiry, now: float) -> Inquiry:
        """Return the open inquiry that answers for this one: itself, or if superseded, the latest of all."""
        if not inquiry.superseded:
            return inquiry
        return next((other for other in reversed(self.inquiries.values()) if other.is_open(now)), inquiry)


class Recovery:
    """The cases of one cache. ``now`` is the driver's clock; ``current`` is what its cache holds."""

    def __init__(self, config: CacheConfig, metrics: Metrics, jitter: Callable[[], float], core: Core[Any]) -> None:
        from cachetools import LRUCache  # noqa: PLC0415 - `import smcache` stays free of it

        self._config = config
        self._metrics = metrics
        self._jitter = jitter
        self._core = core  # for the number of its last flight, and to file events in
        self._refused = 0  # logins refused so far, which puts them in order where a clock cannot
        self._cases: LRUCache[str, Case] = LRUCache(config.max_size)

    # --- what to do ---------------------------------------------------------------------------------------

    def begin(self, secret_id: str, current: Secret, now: float) -> tuple[Call, Step]:
        """Decide what a new call does first: usually, try what the cache holds."""
        call = Call(secret_id, current)
        case = self._cases.get(_case_key(current))
        if case is None:
            return call, self._try(call, current)
        if case.accepted is not None and case.accepted_over != current.version_id:
            case.accepted = None  # AWSCURRENT has moved
        if case.accepted is not None:
            return call, self._try(call, case.accepted)
        known = case.inquiries.get(current.version_id)
        inquiry = None if known is None else case.under_way(known, now)
        if inquiry is None or not inquiry.is_open(now):
            return call, self._try(call, current)
        call.inquiry = inquiry  # known to be rejected, and others are finding out why: no login is wasted
        return call, self.step(call, current, now)

    def step(self, call: Call, current: Secret | None, now: float) -> Step:
        """Decide what a call does that has failed, or has learnt something since."""
        case = self._cases.get(_case_key(call.first)) or Case()
        inquiry = call.inquiry = case.under_way(_inquiry_of(call), now)
        other = self._another(call, case, inquiry, current, now)
        if other is not None:
            return self._try(call, other)
        if inquiry.superseded:  # by a version that is itself no longer taken
            self._open(inquiry, now)
            inquiry.account_only = False
        if inquiry.over_at is not None:
            return self._give_up(call)
        if inquiry.answer is None:
            return Ask(AWSCURRENT, inquiry.since)
        if inquiry.pending_state == "unasked":
            return Ask(AWSPENDING, inquiry.since)
        if inquiry.in_doubt:
            return Ask(AWSCURRENT, inquiry.poll_since)
        if inquiry.pending_state == "absent" or inquiry.account_only or now >= inquiry.window_ends:
            self._conclude(inquiry, now, doubling=True)
            return self._give_up(call)
        if now >= inquiry.due:
            return Ask(AWSCURRENT, inquiry.poll_since)
        return Wait(min(inquiry.due, inquiry.window_ends) - now)

    def _another(self, call: Call, case: Case, inquiry: Inquiry, current: Secret | None, now: float) -> Secret | None:
        """Return a version worth a login that this call has not tried."""
        pending = inquiry.pending if inquiry.pending_state == "offered" else None
        for secret in (current, inquiry.answer, case.accepted, pending):
            if secret is None or secret.version_id in call.tried:
                continue
            known = case.inquiries.get(secret.version_id)
            if known is None:
                return secret
            # Rejected before, and AWS has just named it again: its rotation was taken back.
            if secret is inquiry.answer and not known.is_open(now):
                return secret
        return None

    def _give_up(self, call: Call) -> Step:
        if call.first.version_id not in call.tried:  # it was spared the login, but the server has the last word
            return self._try(call, call.first)
        self._metrics.auth_unrecovered += 1
        return GiveUp()

    def _try(self, call: Call, secret: Secret) -> Try:
        call.tried_at = self._refused
        return Try(secret)

    # --- what came of it ----------------------------------------------------------------------------------

    def accepted(self, call: Call, secret: Secret, current: Secret | None, now: float) -> None:
        """Take in that the server took a version; an AWSPENDING then serves in AWSCURRENT's place."""
        if call.tried:
            self._metrics.auth_recoveries += 1
            self._core.events.append(AuthRecovered(call.secret_id, secret.version_id))
        key = _case_key(call.first)
        case = self._cases.get(key)
        if case is None:
            return
        doubt = case.inquiries.get(secret.version_id)
        if doubt is not None and doubt.refused_at > call.tried_at:
            return  # a login begun before the rejection does not disprove it
        if current is None or secret.version_id == current.version_id:
            del self._cases[key]
            if doubt is not None and doubt.forgive(now, self._config.auth_cooldown):
                self._cases[key] = Case({secret.version_id: doubt})
            return
        for version_id in call.tried & case.inquiries.keys():
            case.inquiries[version_id].superseded = True
        if call.inquiry is None or not call.inquiry.offered(secret.version_id):
            return
        case.inquiries.pop(secret.version_id, None)
        case.accepted, case.accepted_over = secret, current.version_id
        self._core.expect_change(Key(call.secret_id), now + self._config.rotation_window)

    def rejected(self, call: Call, secret: Secret, verdict: Verdict, now: float) -> None:
        """Take in that the server refused a version."""
        self._metrics.auth_failures += 1
        self._core.events.append(AuthFailed(call.secret_id, secret.version_id))
        self._refused += 1
        call.tried.add(secret.version_id)
        key = _case_key(call.first)
        case = self._cases.get(key)
        if case is None:
            case = self._cases[key] = Case()
        if case.accepted is secret:
            case.accepted = None
        if call.inquiry is not None and call.inquiry.offered(secret.version_id):
            self._pending_is(call.inquiry, "refused", now)
            return
        inquiry = case.inquiries.get(secret.version_id)
        if inquiry is None:
            if len(case.inquiries) >= MAX_INQUIRIES:
                del case.inquiries[next(iter(case.inquiries))]
            inquiry = case.inquiries[secret.version_id] = Inquiry(secret.version_id, self._config.auth_cooldown)
            self._open(inquiry, now)
        elif not inquiry.is_open(now) and not inquiry.cools(now) and not inquiry.superseded:
            self._open(inquiry, now)
        inquiry.account_only = inquiry.account_only and verdict == "account"
        call.inquiry = inquiry

    def answered(self, call: Call, ask: Ask, secret: Secret, now: float, wall: float) -> None:
        """Take in what AWS has under the label; ``wall`` is the time of day, in seconds since 1970."""
        inquiry = _inquiry_of(call)
        if ask.stage == AWSCURRENT:
            if inquiry.answer is not None:
                self._polled(inquiry, ask, now)
            inquiry.answer = secret
            if inquiry.pending_state == "refused" and inquiry.offered(secret.version_id):
                # It has moved to what the server refuses: the next rotation is under way.
                inquiry.version_id, inquiry.since = secret.version_id, self._core.departed
                inquiry.pending, inquiry.pending_state = None, "unasked"
        elif inquiry.pending_state == "unasked":
            made = secret.created_at
            recent = made is None or wall - made.timestamp() <= PENDING_RECENT
            if recent and secret.version_id != inquiry.version_id:
                inquiry.pending = secret
                self._pending_is(inquiry, "offered", now)
            else:
                self._pending_is(inquiry, "absent", now)

    def unanswered(self, call: Call, ask: Ask, error: SecretCacheError, now: float) -> None:
        """Take in that AWS did not say."""
        inquiry = _inquiry_of(call)
        if ask.stage == AWSPENDING:
            if inquiry.pending_state == "unasked":
                hidden = isinstance(error, (AccessDenied, DecryptionFailed, Unavailable))
                self._pending_is(inquiry, "unreadable" if hidden else "absent", now)
        elif inquiry.answer is not None:
            self._polled(inquiry, ask, now)
        else:
            self._conclude(inquiry, now, doubling=not isinstance(error, Unavailable))

    def _open(self, inquiry: Inquiry, now: float) -> None:
        lasts = self._config.rotation_window + self._config.fetch_timeout
        inquiry.open(now, lasts, self._core.departed, self._refused)

    def _polled(self, inquiry: Inquiry, ask: Ask, now: float) -> None:
        if ask.since != inquiry.poll_since:
            return
        inquiry.in_doubt = False
        if now >= inquiry.due:
            inquiry.polls += 1
            inquiry.poll_since = self._core.departed
            inquiry.due = now + self._poll_pause(inquiry)

    def _pending_is(
        self, inquiry: Inquiry, state: Literal["offered", "absent", "refused", "unreadable"], now: float
    ) -> None:
        if state in ("refused", "unreadable") and inquiry.pending_state != state:
            self._open_window(inquiry, now)
        if state == "absent":
            inquiry.in_doubt = now - inquiry.opened > QUICK
            inquiry.poll_since = self._core.departed
        inquiry.pending_state = state

    def _open_window(self, inquiry: Inquiry, now: float) -> None:
        inquiry.window_ends = inquiry.opened + self._config.rotation_window
        inquiry.due = now + self._poll_pause(inquiry)
        inquiry.poll_since = self._core.departed

    def _poll_pause(self, inquiry: Inquiry) -> float:
        pause = min(MAX_POLL, FIRST_POLL * 2.0 ** min(inquiry.polls, 30))
        return pause * (1 - 0.5 * self._jitter())

    def _conclude(self, inquiry: Inquiry, now: float, *, doubling: bool) -> None:
        if inquiry.over_at is not None:
            return
        inquiry.over_at = now + inquiry.cooldown
        if doubling:
            inquiry.cooldown = min(self._config.max_auth_cooldown, inquiry.cooldown * 2)


def _inquiry_of(call: Call) -> Inquiry:
    assert call.inquiry is not None  # noqa: S101 - begin() or rejected() has set it before step() asks
    return call.inquiry


def _case_key(secret: Secret) -> str:
    return secret.arn or secret.name
