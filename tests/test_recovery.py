"""Every decision after a rejected credential, against a made-up AWS and a made-up server, with time given in."""

from __future__ import annotations

from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smcache import CacheConfig, Secret
from smcache._core import AWSCURRENT, AWSPENDING, Core, Join, Key, Lead, Refresh, Refuse, Serve
from smcache._recovery import (
    FIRST_POLL,
    MAX_INQUIRIES,
    MAX_POLL,
    PENDING_RECENT,
    QUICK,
    Ask,
    Call,
    GiveUp,
    Recovery,
    Try,
)
from smcache.errors import (
    AccessDenied,
    DecryptionFailed,
    FetchTimeout,
    RequestRejected,
    SecretCacheError,
    SecretDeleted,
    SecretNotFound,
    Throttled,
    Unavailable,
)
from smcache.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from smcache._recovery import Step
    from smcache.auth import Verdict

ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:prod/db-AbCdEf"
DB = Key("prod/db")
WALL = 1_800_000_000.0  # the time of day at second 0


class World:
    """AWS, a database server and one cache, driven as ``SecretCache`` drives it, one action at a time."""

    def __init__(self, draw: Callable[[], float] = lambda: 0.0, **config: Any) -> None:
        metrics = Metrics(nullcontext())
        self.config = CacheConfig(**{"ttl": 1e6, **config})
        self.metrics = metrics
        self.core: Core[object] = Core(self.config, metrics, lambda: 0.0, object, deque())
        self.recovery = Recovery(self.config, metrics, draw, self.core)
        self.now = 0.0
        self.made: dict[str, float | None] = {"v1": -1e6}
        self.labels = {AWSCURRENT: "v1"}
        self.trouble: dict[str, SecretCacheError] = {}
        self.accepts = {"v1"}
        self.verdict: Verdict = "rejected"
        self.asking = 0  # calls that wait for AWS
        self.log: list[str] = []  # what was done, in order: logins, requests, waits

    def fetch(self, key: Key) -> Secret:
        self.log.append(f"ask {key.stage}")
        if key.stage in self.trouble:
            raise self.trouble[key.stage].fresh()
        if key.stage not in self.labels:
            raise SecretNotFound("no such label")
        version = self.labels[key.stage]
        made = self.made[version]
        at = None if made is None else datetime.fromtimestamp(WALL + made, timezone.utc)
        return Secret(f"pw {version}", name="prod/db", arn=ARN, version_id=version, stages=[key.stage], created_at=at)

    def answer(self, key: Key) -> tuple[Secret | None, SecretCacheError | None]:
        try:
            return self.fetch(key), None
        except SecretCacheError as error:
            return None, error

    # --- the driver, which pauses (yields) wherever threads may change places; it yields the time it waits for

    def know(self, step: Any, since: int | None) -> Generator[float, None, Secret]:
        self.asking += 1
        try:
            return (yield from self.wait_for(step, since, self.now + self.config.fetch_timeout))
        finally:
            self.asking -= 1

    def wait_for(self, step: Any, since: int | None, until: float) -> Generator[float, None, Secret]:
        while True:
            match step:
                case Serve(secret):
                    return secret
                case Refuse(error):
                    raise error.fresh()
                case Refresh(flight, secret):
                    self.core.gave_up(flight)  # the background has no part in these tests
                    return secret
                case Lead(flight):
                    try:
                        yield self.now
                        found, failure = self.answer(flight.key)
                        yield self.now
                    except GeneratorExit:
                        self.core.gave_up(flight)
                        raise
                    if found is not None:
                        self.core.landed(flight, found, self.now)
                    elif failure is not None:
                        self.core.failed(flight, failure, self.now)
                case Join(flight):
                    yield self.now
            step = self.core.settle(flight, self.now, until, since)

    def connect(self) -> Generator[float, None, str | None]:
        """Make one decorated call; return the version it logged in with, None if it raises the driver's error."""
        current = yield from self.know(self.core.read(DB, self.now), None)
        call, step = self.recovery.begin("prod/db", current, self.now)
        return (yield from self.carry_on(call, step))

    def carry_on(self, call: Call, step: Step) -> Generator[float, None, str | None]:
        tried = set[str]()
        while not isinstance(step, GiveUp):
            if isinstance(step, Try):
                version = step.secret.version_id
                assert version not in tried, "each version is tried at most once per call"
                tried.add(version)
                yield self.now
                self.log.append(f"login {version}")
                accepted = version in self.accepts
                yield self.now
                if accepted:
                    self.recovery.accepted(call, step.secret, self.core.peek(DB), self.now)
                    return version
                self.recovery.rejected(call, step.secret, self.verdict, self.now)
            elif isinstance(step, Ask):
                try:
                    key = DB._replace(stage=step.stage)
                    secret = yield from self.know(self.core.ask(key, self.now, step.since), step.since)
                except SecretCacheError as error:
                    self.recovery.unanswered(call, step, error, self.now)
                else:
                    self.recovery.answered(call, step, secret, self.now, WALL + self.now)
            else:
                assert step.seconds > 0
                self.log.append(f"wait {step.seconds:g}")
                until = self.now + step.seconds
                while self.now < until:
                    yield until
            step = self.recovery.step(call, self.core.peek(DB), self.now)
        return None

    # --- one call after the other -------------------------------------------------------------------------

    def run(
        self, call: Generator[float, None, str | None], meanwhile: dict[float, Callable[[], None]] | None = None
    ) -> str | None:
        """Run one call to its end, time passing only while it waits; things happen at their times."""
        due = dict(meanwhile or {})
        while True:
            try:
                until = next(call)
            except StopIteration as end:
                result: str | None = end.value
                return result
            if until > self.now:
                self.now = min([until, *due])
                if self.now in due:
                    due.pop(self.now)()

    def call(self, meanwhile: dict[float, Callable[[], None]] | None = None) -> tuple[str | None, list[str]]:
        """Make one call; return the version that logged in, and what was done for it."""
        before = len(self.log)
        return self.run(self.connect(), meanwhile), self.log[before:]

    # --- a rotation of a single user, step by step --------------------------------------------------------

    def create(self, version: str) -> None:
        self.made[version] = self.now
        self.labels[AWSPENDING] = version

    def set(self, *versions: str) -> None:
        self.accepts = set(versions)

    def finish(self, *, label_stays: bool = False) -> None:
        self.labels[AWSCURRENT] = self.labels[AWSPENDING]
        if not label_stays:
            del self.labels[AWSPENDING]

    def rotate_to(self, version: str) -> None:
        self.create(version)
        self.set(version)
        self.finish()


def world(**config: Any) -> World:
    """Return a world whose cache is warm."""
    warm = World(**config)
    assert warm.call() == ("v1", ["ask AWSCURRENT", "login v1"])
    return warm


def secret(version: str) -> Secret:
    return Secret(f"pw {version}", name="prod/db", arn=ARN, version_id=version)


ASK_BOTH = ["ask AWSCURRENT", "ask AWSPENDING"]
NO_ROTATION = ["login v1", *ASK_BOTH]


# --- the five rules -----------------------------------------------------------------------------------------


def test_a_login_that_works_asks_nothing() -> None:
    w = world()
    assert w.call() == ("v1", ["login v1"])
    assert w.metrics.auth_failures == w.metrics.auth_recoveries == 0


def test_rule_1_what_the_cache_holds_by_now_is_used_without_a_request() -> None:
    w = world()
    slow = w.connect()
    next(slow)
    w.rotate_to("v2")
    assert w.call() == ("v2", ["login v1", "ask AWSCURRENT", "login v2"])
    del w.log[:]
    assert w.run(slow) == "v2"
    assert w.log == ["login v1", "login v2"]


def test_rule_2_a_rotation_that_is_over_costs_one_request() -> None:
    w = world()
    w.rotate_to("v2")
    assert w.call() == ("v2", ["login v1", "ask AWSCURRENT", "login v2"])
    assert w.call() == ("v2", ["login v2"])
    assert (w.metrics.auth_failures, w.metrics.auth_recoveries, w.metrics.auth_unrecovered) == (1, 1, 0)


def test_rule_2_a_flight_that_left_before_the_login_failed_does_not_count() -> None:
    w = world()
    early = w.know(w.core.ask(DB, w.now, w.core.departed), None)
    next(early)
    next(early)  # AWS has answered v1, and the answer is on its way
    w.rotate_to("v2")
    call = w.connect()
    for _ in range(5):
        next(call)  # it waits for the early flight
    with pytest.raises(StopIteration):
        next(early)
    assert w.run(call) == "v2"
    assert w.log.count("ask AWSCURRENT") == 3  # the first load, the early flight, another


def test_rule_3_between_set_and_finish_the_pending_version_is_tried_at_once() -> None:
    w = world()
    w.create("v2")
    w.set("v2")
    assert w.call() == ("v2", [*NO_ROTATION, "login v2"])
    assert w.now == 0
    assert w.metrics.auth_recoveries == 1


def test_rule_3_an_accepted_pending_is_where_later_calls_start_until_AWSCURRENT_moves() -> None:  # noqa: N802 - a label
    w = world()
    w.create("v2")
    w.set("v2")
    w.call()
    assert [w.call() for _ in range(3)] == [("v2", ["login v2"])] * 3
    assert w.core.peek(DB) is not None
    assert w.core.hot["prod/db"].secret.version_id == "v1"  # get() goes on saying what AWS labels
    assert w.core.hot["prod/db"].deadline == w.config.rotation_window
    w.finish()
    list(w.know(w.core.ask(DB, w.now, w.core.departed), None))
    assert w.call() == ("v2", ["login v2"])
    assert not w.recovery._cases


def test_rule_3_when_AWSCURRENT_moves_elsewhere_the_accepted_pending_is_forgotten() -> None:  # noqa: N802 - a label
    w = world()
    w.create("v2")
    w.set("v2")
    w.call()
    w.create("v3")
    w.set("v2", "v3")
    w.finish()
    list(w.know(w.core.ask(DB, w.now, w.core.departed), None))
    assert w.call() == ("v3", ["login v3"])


@pytest.mark.parametrize("age", [PENDING_RECENT + 1, 1e6])
def test_rule_3_a_forgotten_pending_is_not_tried(age: float) -> None:
    w = world()
    w.create("v2")
    w.made["v2"] = -age
    w.set("v2")
    assert w.call() == (None, NO_ROTATION)


@pytest.mark.parametrize("age", [0, PENDING_RECENT, -60, None])
def test_rule_3_a_pending_that_is_recent_or_of_unknown_age_is_tried(age: float | None) -> None:
    w = world()
    w.create("v2")
    w.made["v2"] = None if age is None else -age
    w.set("v2")
    assert w.call() == ("v2", [*NO_ROTATION, "login v2"])


def test_rule_3_a_pending_label_left_on_the_rejected_version_is_no_rotation() -> None:
    w = world()
    w.made["v1"] = 0
    w.labels[AWSPENDING] = "v1"
    w.set()
    assert w.call() == (None, NO_ROTATION)


POLLS = ["wait 0.5", "ask AWSCURRENT", "wait 1", "ask AWSCURRENT", "wait 2", "ask AWSCURRENT"]


@pytest.mark.parametrize(
    "error",
    [AccessDenied("no"), DecryptionFailed("no"), Unavailable("down"), Throttled("slow down"), FetchTimeout("slow")],
)
def test_rule_4_a_pending_that_may_not_be_read_is_waited_for(error: SecretCacheError) -> None:
    w = world()
    w.create("v2")
    w.set("v2")
    w.trouble[AWSPENDING] = error
    assert w.call({3.0: w.finish}) == ("v2", [*NO_ROTATION, *POLLS, "login v2"])
    assert w.now == 3.5


def test_rule_4_a_pending_that_is_refused_too_is_waited_for() -> None:
    w = world()
    w.create("v2")
    w.set()

    def finish() -> None:
        w.rotate_to("v3")

    assert w.call({3.0: finish}) == ("v3", [*NO_ROTATION, "login v2", *POLLS, "login v3"])
    assert (w.metrics.auth_failures, w.metrics.auth_recoveries) == (2, 1)


@pytest.mark.parametrize("draw", [0.0, 0.5, 1.0])
def test_rule_4_polls_are_jittered_and_back_off_to_a_cap_until_the_window_ends(draw: float) -> None:
    w = world(draw=lambda: draw)
    w.trouble[AWSPENDING] = AccessDenied("no")
    w.set()
    result, log = w.call()
    assert result is None
    assert w.now == 60
    waits = [float(line.removeprefix("wait ")) for line in log if line.startswith("wait")]
    assert sum(waits) == pytest.approx(60)
    full = [min(MAX_POLL, FIRST_POLL * 2**step) * (1 - draw / 2) for step in range(len(waits))]
    assert waits[:-1] == pytest.approx(full[:-1])
    assert waits[-1] <= full[-1]
    assert log.count("ask AWSCURRENT") == len(waits)
    assert w.metrics.auth_unrecovered == 1


def test_rule_4_polling_survives_that_aws_does_not_answer() -> None:
    w = world()
    w.create("v2")
    w.set("v2")
    w.trouble[AWSPENDING] = AccessDenied("no")

    def down() -> None:
        w.trouble[AWSCURRENT] = Unavailable("down")

    def up() -> None:
        del w.trouble[AWSCURRENT]
        w.finish()

    assert w.call({0.2: down, 3.0: up}) == ("v2", [*NO_ROTATION, *POLLS, "login v2"])


def test_rule_4_any_number_of_waiting_calls_poll_by_one_schedule() -> None:
    w = world()
    w.trouble[AWSPENDING] = AccessDenied("no")
    w.set()
    calls = [w.connect() for _ in range(50)]
    assert run_all(w, calls) == [None] * 50
    alone = world()
    alone.trouble, alone.accepts = w.trouble, set()
    alone.call()
    assert w.log.count("ask AWSCURRENT") == alone.log.count("ask AWSCURRENT")
    assert w.log.count("ask AWSPENDING") == 1


@dataclass(frozen=True)
class Done:
    """A call has ended; ``version`` is None if it raised the driver's error."""

    version: str | None


def advance(call: Generator[float, None, str | None]) -> Done | float:
    """Have a call do its next action; return when it may do another."""
    try:
        return next(call)
    except StopIteration as end:
        return Done(end.value)


def run_all(w: World, calls: list[Generator[float, None, str | None]]) -> list[str | None]:
    """Run calls in turn; time passes when all of them wait."""
    results: dict[int, str | None] = {}
    until = dict.fromkeys(range(len(calls)), 0.0)
    while until:
        ready = [number for number in until if until[number] <= w.now]
        if not ready:
            w.now = min(until.values())
        for number in ready:
            result = advance(calls[number])
            if isinstance(result, Done):
                results[number] = result.version
                del until[number]
            else:
                until[number] = result
    return [results[number] for number in range(len(calls))]


def test_rule_5_a_wrong_password_fails_after_one_login_and_two_requests_and_then_costs_none() -> None:
    w = world()
    w.set()
    assert w.call() == (None, NO_ROTATION)
    for _ in range(1000):
        w.now += 0.004
        assert w.call() == (None, ["login v1"])
    assert w.now < 5
    assert (w.metrics.auth_failures, w.metrics.auth_unrecovered) == (1001, 1001)


def test_rule_5_the_cooldown_doubles_up_to_its_maximum() -> None:
    w = world()
    w.set()
    for cooldown in [5, 10, 20, 40, 80, 160, 300, 300]:
        assert w.call() == (None, NO_ROTATION)
        w.now += cooldown - 0.001
        assert w.call() == (None, ["login v1"])
        w.now += 0.002


def test_rule_5_success_resets_the_cooldown() -> None:
    w = world()
    w.set()
    w.call()
    w.now += 6
    w.call()
    w.set("v1")
    assert w.call() == ("v1", ["login v1"])
    w.set()
    assert w.call() == (None, NO_ROTATION)
    w.now += 5.1
    assert w.call() == (None, NO_ROTATION)


@pytest.mark.parametrize("successes", [1, 2])
def test_rule_5_a_version_that_one_server_takes_and_another_refuses_costs_requests_twice_a_cooldown(
    successes: int,
) -> None:
    """A reader endpoint with another password, say, or an API that answers 401 now and then."""
    w = world()
    logs = []
    for _ in range(20):
        w.set("v1")
        assert [w.call() for _ in range(successes)] == [("v1", ["login v1"])] * successes
        w.set()
        logs.append(w.call())
    assert logs == [(None, NO_ROTATION)] * 2 + [(None, ["login v1"])] * 18
    w.now += 5.1
    assert w.call() == (None, NO_ROTATION)


def test_rule_5_a_cooldown_of_0_asks_at_each_failure_and_ends() -> None:
    w = world(auth_cooldown=0)
    w.set()
    assert [w.call() for _ in range(3)] == [(None, NO_ROTATION)] * 3


@pytest.mark.parametrize("error", [Unavailable("down"), AccessDenied("no"), SecretDeleted("gone")])
@pytest.mark.parametrize("cooldown", [0.0, 5.0])
def test_rule_5_if_aws_does_not_say_the_drivers_own_error_comes_at_once(
    cooldown: float, error: SecretCacheError
) -> None:
    w = world(auth_cooldown=cooldown)
    w.set()
    w.trouble[AWSCURRENT] = error
    assert w.call() == (None, ["login v1", "ask AWSCURRENT"])


@pytest.mark.parametrize(("error", "second"), [(Unavailable("down"), 5), (AccessDenied("no"), 10)])
def test_rule_5_an_outage_does_not_double_the_cooldown_and_a_denial_does(
    error: SecretCacheError, second: float
) -> None:
    w = world()
    w.set()
    w.trouble[AWSCURRENT] = error
    w.call()
    w.now += 5.1
    assert w.call() == (None, ["login v1", "ask AWSCURRENT"])
    w.now += second - 0.1
    assert w.call() == (None, ["login v1"])
    w.now += 0.2
    assert w.call() == (None, ["login v1", "ask AWSCURRENT"])


@pytest.mark.parametrize("error", [SecretNotFound("none"), SecretDeleted("gone"), RequestRejected("no")])
def test_rule_5_where_there_is_no_pending_there_is_no_rotation(error: SecretCacheError) -> None:
    w = world()
    w.set()
    w.trouble[AWSPENDING] = error
    assert w.call() == (None, NO_ROTATION)


def test_rule_5_an_outage_that_meets_many_calls_is_one_outage() -> None:
    w = world()
    w.set()
    w.trouble[AWSCURRENT] = Unavailable("down")
    assert run_all(w, [w.connect() for _ in range(5)]) == [None] * 5
    assert w.log[2:] == [*["login v1"] * 5, "ask AWSCURRENT"]


# --- locked, expired or disabled ----------------------------------------------------------------------------


def test_an_account_that_is_locked_is_tried_with_another_version() -> None:
    w = world()
    w.verdict = "account"
    w.create("v2")
    w.set("v2")
    assert w.call() == ("v2", [*NO_ROTATION, "login v2"])


@pytest.mark.parametrize("pending", ["refused", "unreadable"])
def test_an_account_that_is_locked_is_never_waited_for(pending: str) -> None:
    w = world()
    w.verdict = "account"
    w.create("v2")
    w.set()
    if pending == "unreadable":
        w.trouble[AWSPENDING] = AccessDenied("no")
    result, log = w.call()
    assert (result, w.now) == (None, 0)
    assert log == [*NO_ROTATION, *(["login v2"] if pending == "refused" else [])]
    assert w.call() == (None, ["login v1"])


def test_a_version_that_was_rejected_as_well_as_locked_is_waited_for() -> None:
    w = world()
    w.trouble[AWSPENDING] = AccessDenied("no")
    w.set()
    first, second = w.connect(), w.connect()
    for call in (first, second):
        next(call)
        next(call)
    w.verdict = "account"
    next(first)
    w.verdict = "rejected"
    assert run_all(w, [first, second]) == [None, None]
    assert w.now == 60


# --- one rotation after the other ---------------------------------------------------------------------------


@pytest.mark.parametrize("noticed", [True, False])
def test_a_rotation_that_starts_from_an_accepted_pending_does_not_try_the_old_version_again(*, noticed: bool) -> None:
    w = world()
    w.create("v2")
    w.set("v2")
    w.call()
    w.finish()
    if noticed:
        list(w.know(w.core.ask(DB, w.now, w.core.departed), None))
    w.now += 100
    w.create("v3")
    w.set("v3")
    result, log = w.call()
    assert (result, log) == ("v3", ["login v2", *ASK_BOTH, "login v3"])
    assert w.call() == ("v3", ["login v3"])
    w.finish()
    w.rotate_to("v4")
    assert w.call() == ("v4", ["login v3", "ask AWSCURRENT", "login v4"])


@pytest.mark.parametrize("later", [0.5, 100])
@pytest.mark.parametrize("label", ["stays", "goes"])
def test_a_rotation_taken_back_leads_back_to_the_old_version(label: str, later: float) -> None:
    """No call fails while AWSCURRENT is accepted: it is tried again, cooldown or not."""
    w = world()
    w.create("v2")
    w.set("v2")
    w.call()
    w.set("v1")
    if label == "goes":
        del w.labels[AWSPENDING]
    w.now += later
    assert w.call()[0] == "v1"
    assert w.call() == ("v1", ["login v1"])


def test_a_rotation_that_finishes_between_the_two_questions_is_noticed_after_the_cooldown() -> None:
    """A limit: AWSCURRENT was still v1, AWSPENDING is gone already, and a third question is not asked.

    AWS takes AWSPENDING off only after the rotation function has returned, which leaves no room in between.
    """
    w = world()
    w.create("v2")
    w.set("v2")
    call = w.connect()
    while w.log[-1] != "ask AWSCURRENT" or len(w.log) < 4:
        next(call)
    w.finish()
    assert w.run(call) is None
    w.now += w.config.auth_cooldown
    assert w.call()[0] == "v2"


def test_where_the_two_questions_took_long_awscurrent_is_asked_for_once_more() -> None:
    w = world()
    w.create("v2")
    w.set("v2")
    call = w.connect()
    while w.log[-1] != "ask AWSCURRENT" or len(w.log) < 4:
        next(call)
    w.finish()
    w.now += QUICK + 0.01
    assert w.run(call) == "v2"
    w.accepts = set()
    slow = w.connect()
    while w.log[-1] != "ask AWSCURRENT":
        next(slow)
    w.now += QUICK + 0.01
    assert w.run(slow) is None
    assert w.log[-3:] == ["ask AWSCURRENT", "ask AWSPENDING", "ask AWSCURRENT"]


def test_a_new_rotation_is_noticed_after_one_that_was_given_up() -> None:
    w = world()
    w.create("v2")
    w.set()
    assert w.call()[0] is None
    w.now += 1000
    w.create("v3")
    w.set("v3")
    assert w.call() == ("v3", [*NO_ROTATION, "login v3"])


def test_a_rotation_that_follows_at_once_is_noticed_by_who_waits_for_the_one_before() -> None:
    """The pending version is refused because it is AWSCURRENT by now, and the next one is pending."""
    w = world()
    w.create("v2")
    w.set("v2")
    call = w.connect()
    while w.log[-1] != "ask AWSPENDING":
        next(call)
    w.finish()
    w.create("v3")
    w.set("v3")
    assert w.run(call) == "v3"
    assert w.now == 0.5


def test_a_rotation_begun_while_a_call_waits_is_noticed_when_awscurrent_moves() -> None:
    """AWSPENDING is asked for once: v2 was refused and taken back, and v3 is tried when it is AWSCURRENT."""
    w = world()
    w.create("v2")
    w.set()
    waiting = w.connect()
    while next(waiting) <= w.now:
        pass
    w.now = 20.0
    w.create("v3")
    w.set("v3")
    late = w.connect()
    while next(late) <= w.now:
        pass
    w.finish()
    assert run_all(w, [waiting, late]) == ["v3", "v3"]


def test_a_version_that_comes_back_after_its_own_failure_is_tried_again() -> None:
    """v1 was rejected, v2 took its place, and AWS has put AWSCURRENT back on v1."""
    w = world()
    w.set()
    w.call()
    w.rotate_to("v2")
    w.now += 10
    w.call()
    w.labels[AWSCURRENT] = "v1"
    w.set("v1")
    assert w.call() == ("v1", ["login v2", "ask AWSCURRENT", "login v1"])


# --- calls at the same time ---------------------------------------------------------------------------------


def test_a_call_that_begins_while_its_version_is_under_inquiry_wastes_no_login() -> None:
    w = world()
    w.create("v2")
    w.set("v2")
    first = w.connect()
    for _ in range(4):
        next(first)  # v1 is rejected, and AWS is being asked
    second = w.connect()
    assert run_all(w, [first, second]) == ["v2", "v2"]
    assert w.log.count("login v1") == 2  # when the cache was filled, and the first call
    assert w.log.count("ask AWSPENDING") == 1


def test_a_call_spared_the_login_still_raises_the_servers_own_error() -> None:
    w = world()
    w.set()
    first = w.connect()
    for _ in range(4):
        next(first)
    second = w.connect()
    assert run_all(w, [first, second]) == [None, None]
    assert w.log[2:] == ["login v1", *ASK_BOTH, "login v1"]
    assert w.metrics.auth_unrecovered == 2


def test_the_late_success_of_a_login_begun_before_the_rejection_disproves_nothing() -> None:
    w = world()
    late = w.connect()
    next(late)
    next(late)  # the server has said yes to v1, and the answer is on its way
    w.create("v2")
    w.set("v2")
    w.call()
    assert w.run(late) == "v1"
    assert w.call() == ("v2", ["login v2"])


def test_the_late_success_of_an_older_version_does_not_put_it_in_the_place_of_AWSCURRENT() -> None:  # noqa: N802
    w = world()
    w.set()
    w.call()  # v1 is wrong
    w.rotate_to("v2")
    w.now = 10
    w.call()
    w.set()
    w.call()  # v2 is wrong
    w.rotate_to("v3")
    list(w.know(w.core.ask(DB, w.now, w.core.departed), None))
    slow = w.connect()
    next(slow)
    next(slow)  # the server has said yes to v3, and the answer is on its way
    w.create("v4")
    w.set("v3", "v4")
    w.finish()
    list(w.know(w.core.ask(DB, w.now, w.core.departed), None))
    assert w.run(slow) == "v3"
    assert w.call() == ("v4", ["login v4"])


def test_an_inquiry_abandoned_by_its_caller_does_not_stand_in_the_way_of_the_next() -> None:
    """The caller was cancelled while it waited; an hour later the password really rotates."""
    w = world()
    w.set()
    w.trouble[AWSPENDING] = AccessDenied("no")
    cancelled = w.connect()
    while next(cancelled) <= w.now:
        pass
    cancelled.close()
    w.trouble.clear()
    w.now += 3600
    w.create("v2")
    w.set("v2")
    assert w.call() == ("v2", [*NO_ROTATION, "login v2"])


def test_a_call_never_gives_up_before_it_has_tried_AWSCURRENT() -> None:  # noqa: N802 - a label
    """Another call, cut short, left a pending version behind that the server does not take."""
    w = world()
    w.create("v2")
    w.set()
    cancelled = w.connect()
    while w.log[-1] != "login v2":
        next(cancelled)
    cancelled.close()
    w.set("v1")
    assert w.call()[0] == "v1"


@pytest.mark.parametrize("after", [1, 6, 3600])
def test_renew_leaves_nothing_behind_that_hinders_a_call(after: float) -> None:
    """renew() hands out a version and never hears what became of it."""
    w = world()
    w.create("v2")
    w.set("v2")
    current = w.core.peek(DB)
    assert current is not None
    call = Call("prod/db", current)
    w.recovery.rejected(call, current, "rejected", w.now)
    renewing = w.carry_on(call, w.recovery.step(call, current, w.now))
    while w.log[-1] != "login v2":
        next(renewing)
    renewing.close()
    w.set("v1")
    w.now += after
    assert w.call()[0] == "v1"


def test_an_answer_counts_even_if_the_cache_did_not_keep_it() -> None:
    """It was invalidated, or had to make room, before the call came to look."""
    w = world()
    w.rotate_to("v2")
    call, _ = w.recovery.begin("prod/db", secret("v1"), 0)
    w.recovery.rejected(call, secret("v1"), "rejected", 0)
    new = secret("v2")
    w.recovery.answered(call, Ask(AWSCURRENT, 0), new, 0, WALL)
    assert w.recovery.step(call, None, 0) == Try(new)


def test_a_pending_version_refused_by_a_later_call_is_no_longer_where_calls_start() -> None:
    w = world()
    w.create("v2")
    w.set("v2")
    w.call()
    w.set()
    assert w.call()[1][0] == "login v2"
    assert w.call()[1][0] == "login v1"


def test_success_with_nothing_known_of_the_secret_is_nothing_to_remember() -> None:
    w = world()
    call, step = w.recovery.begin("prod/db", secret("v1"), 0)
    assert step == Try(call.first)
    w.recovery.accepted(call, call.first, secret("v2"), 0)
    assert not w.recovery._cases


def test_success_while_the_cache_is_empty_starts_afresh() -> None:
    w = world()
    w.create("v2")
    w.set("v2")
    first, second = w.connect(), w.connect()
    while w.log[-1] != "login v2":
        next(first)
    w.core.invalidate()
    assert w.run(first) == "v2"
    assert not w.recovery._cases
    assert w.run(second) == "v2"


def test_the_rejected_versions_remembered_per_secret_are_few() -> None:
    w = world()
    for number in range(100):
        call, _ = w.recovery.begin("prod/db", secret(f"v{number}"), 0)
        w.recovery.rejected(call, call.first, "rejected", 0)
    (case,) = w.recovery._cases.values()
    assert list(case.inquiries) == [f"v{number}" for number in range(100 - MAX_INQUIRIES, 100)]


def test_the_secrets_remembered_are_as_many_as_values_at_most() -> None:
    w = World(max_size=3)
    for number in range(100):
        call, _ = w.recovery.begin("prod/db", Secret("x", name=f"s{number}", version_id="v"), 0)
        w.recovery.rejected(call, call.first, "rejected", 0)
    assert list(w.recovery._cases) == ["s97", "s98", "s99"]


def test_one_secret_by_name_and_by_arn_is_one_case() -> None:
    w = world()
    w.recovery.rejected(Call("prod/db", secret("v1")), secret("v1"), "rejected", 0)
    renamed = Secret("x", name=ARN, arn=ARN, version_id="v1")
    _, step = w.recovery.begin("prod/db", renamed, 0)
    assert isinstance(step, Ask)


def test_a_wait_ends_with_the_window() -> None:
    w = world(rotation_window=0.2)
    w.trouble[AWSPENDING] = AccessDenied("no")
    w.set()
    assert w.call() == (None, [*NO_ROTATION, "wait 0.2"])


def test_a_window_of_0_waits_for_nothing() -> None:
    w = world(rotation_window=0)
    w.trouble[AWSPENDING] = AccessDenied("no")
    w.set()
    assert w.call() == (None, NO_ROTATION)


def test_what_another_call_learnt_meanwhile_ends_the_wait() -> None:
    w = world()
    w.trouble[AWSPENDING] = AccessDenied("no")
    w.create("v2")
    w.set("v2")
    waiting = w.connect()
    while next(waiting) <= w.now:
        pass
    w.finish()
    list(w.know(w.core.ask(DB, w.now, w.core.departed), None))
    assert w.run(waiting) == "v2"
    assert w.now == 0.5


# --- in any order -------------------------------------------------------------------------------------------

STABLE = settings(derandomize=True, deadline=None, max_examples=200)


@STABLE
@given(data=st.data(), number=st.integers(1, 5))
def test_a_wrong_password_costs_two_requests_and_a_login_each_in_whatever_order_calls_run(
    data: st.DataObject, number: int
) -> None:
    w = world()
    w.set()
    calls = [w.connect() for _ in range(number)]
    while calls:
        call = data.draw(st.sampled_from(calls))
        result = advance(call)
        if isinstance(result, Done):
            assert result.version is None
            calls.remove(call)
    assert w.now == 0
    assert sorted(w.log[2:]) == [*sorted(ASK_BOTH), *["login v1"] * number]


@STABLE
@given(data=st.data(), number=st.integers(1, 5), finished=st.booleans())
def test_a_rotation_costs_at_most_two_requests_in_whatever_order_calls_run(
    data: st.DataObject, number: int, *, finished: bool
) -> None:
    w = world()
    w.create("v2")
    w.set("v2")
    if finished:
        w.finish()
    calls = [w.connect() for _ in range(number)]
    while calls:
        call = data.draw(st.sampled_from(calls))
        result = advance(call)
        if isinstance(result, Done):
            assert result.version == "v2"
            calls.remove(call)
    assert w.now == 0
    asked = [line for line in w.log[2:] if line.startswith("ask")]
    assert asked == (["ask AWSCURRENT"] if finished else ASK_BOTH)


def rotations(w: World, data: st.DataObject) -> Generator[None, None, None]:
    """Rotate again and again, by either strategy, with steps that take their time and may fail."""
    for number in range(2, 6):
        version, old = f"v{number}", w.labels[AWSCURRENT]
        w.create(version)
        yield
        match data.draw(st.sampled_from(["single", "alternating", "failed before set", "taken back"])):
            case "single":
                w.set(version)
                yield
                w.finish(label_stays=True)  # until after the function has returned
            case "alternating":
                w.set(old, version)
                yield
                w.finish(label_stays=True)
            case "taken back":
                w.set(version)
                yield
                w.set(old)
                return  # one begun while calls still wait for this one is noticed later
        yield


class Held:
    """A call under way, and the versions that were good all the while: labelled and accepted."""

    def __init__(self, w: World) -> None:
        self.call = w.connect()
        self.until = w.now
        self.good = good(w)


def good(w: World) -> set[str]:
    labelled = {w.labels[AWSCURRENT]}
    pending = w.labels.get(AWSPENDING)
    if pending is not None and w.now - (w.made[pending] or 0) <= PENDING_RECENT - 120:
        labelled.add(pending)
    return labelled & w.accepts


@settings(STABLE, max_examples=600)
@given(data=st.data())
def test_no_call_fails_while_some_version_is_labelled_and_accepted_all_the_while(data: st.DataObject) -> None:
    """Rotations of either strategy, rotations that fail, calls in any order, calls cut short."""
    w = world()
    rotating = rotations(w, data)
    calls: list[Held] = []
    started = 0
    for _ in range(data.draw(st.integers(5, 60))):
        ready = [held for held in calls if held.until <= w.now]
        match data.draw(st.sampled_from(["begin", "go", "go", "go", "go", "rotate", "pass", "cancel"])):
            case "begin" if len(calls) < 4:
                calls.append(Held(w))
                started += 1
            case "rotate":
                next(rotating, None)
            case "pass" if not w.asking:  # AWS answers in time
                w.now += data.draw(st.sampled_from([0.1, 1.0, 10.0]))
            case "cancel" if calls:
                calls.pop().call.close()
            case _ if ready:
                go_on(data.draw(st.sampled_from(ready)), calls)
        for held in calls:
            held.good &= good(w)
    finish(w, calls)
    logins = sum(line.startswith("login") for line in w.log[2:])
    assert logins <= 4 * started


def finish(w: World, calls: list[Held]) -> None:
    for _ in range(2000):
        if calls:
            calls.append(calls.pop(0))  # each in its turn
            w.now = max(w.now, min(held.until for held in calls))
            go_on(next(held for held in calls if held.until <= w.now), calls)
    assert not calls, "every call ends"


def go_on(held: Held, calls: list[Held]) -> None:
    result = advance(held.call)
    if isinstance(result, Done):
        calls.remove(held)
        assert result.version is not None or not held.good
    else:
        held.until = result
