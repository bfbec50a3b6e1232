"""What only the threads driver can get wrong: waiting, interrupting, racing, and leaving threads behind."""

from __future__ import annotations

import contextvars
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from smcache import (
    AccessDenied,
    CacheClosed,
    CacheConfig,
    FetchTimeout,
    NotConfigured,
    Secret,
    SecretCache,
    SourceFailed,
    Unavailable,
)
from smcache._core import BATCH_SIZE, BUSY_PAUSE, MAX_BACKGROUND
from smcache.events import ServedStale
from smcache.sources import Answer, boto
from smcache.testing import hang

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from conftest import Clock, MakeCache, Together, WaitUntilIdle

    from smcache import SecretCacheError
    from smcache.events import Event
    from smcache.testing import SecretsManager

GET = "GetSecretValue"


def our_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name in ("smcache-fetch", "smcache-events")]


@pytest.fixture(autouse=True)
def no_thread_is_left_behind() -> Iterator[None]:
    yield
    for thread in our_threads():
        thread.join(30)
    assert not our_threads()


class FakeSource:
    """Answers by a function: for faults and moments that a server cannot be made to show."""

    def __init__(self, answer: Callable[[str], Secret]) -> None:
        self.answer = answer
        self.fetched: list[str] = []

    def fetch(self, secret_id: str, stage: str | None, version_id: str | None) -> Answer[Secret]:
        self.fetched.append(secret_id)
        return Answer(self.answer(secret_id))

    def close(self) -> None: ...


def version(secret_id: str, number: int = 1) -> Secret:
    return Secret(f"value {number}", name=secret_id, version_id=f"version-{number}")


def test_hits_are_counted_exactly_from_16_threads(
    aws: SecretsManager, make_cache: MakeCache, together: Together
) -> None:
    aws.create("prod/db", "v")
    cache = make_cache()
    cache.get("prod/db")
    together(16, lambda: [cache.get("prod/db") for _ in range(5_000)])
    assert cache.metrics.snapshot().hits == 16 * 5_000


def test_a_server_that_never_answers_holds_nobody_beyond_the_deadline(aws: SecretsManager, together: Together) -> None:
    """The one test that waits for a real deadline, of 0.2 s, against a client that would wait for 60."""
    aws.create("prod/db", "v")
    cache = SecretCache(aws.client(), config=CacheConfig(fetch_timeout=0.2, negative_ttl=0))
    with aws.inject(hang(), times=None):
        results = together(20, lambda: cache.get("prod/db"))
        with pytest.raises(FetchTimeout):
            cache.refresh("prod/db")
    assert {type(error) for error in results} == {FetchTimeout}
    assert cache.get("prod/db").string == "v"
    cache.close()


def test_an_interrupted_reader_leaves_the_request_to_the_others(aws: SecretsManager, make_cache: MakeCache) -> None:
    aws.create("prod/db", "v")
    cache = make_cache()
    with ThreadPoolExecutor(2) as pool, aws.hold() as hold:

        def interrupt_the_first() -> None:
            hold.wait_for(1)
            os.kill(os.getpid(), signal.SIGINT)

        pool.submit(interrupt_the_first)
        with pytest.raises(KeyboardInterrupt):
            cache.get("prod/db")
        other = pool.submit(cache.get, "prod/db")
        hold.release()
        assert other.result(30).string == "v"
    assert aws.requests == {GET: 1}


def test_few_refreshes_run_in_the_background_and_none_is_forgotten(clock: Clock) -> None:
    gate = threading.Semaphore(0)
    going = threading.Semaphore(0)

    def answer(secret_id: str) -> Secret:
        if clock.now > 1_000:
            going.release()
            assert gate.acquire(timeout=30)
        return version(secret_id)

    source = FakeSource(answer)
    names = [f"s{n}" for n in range(10)]
    with SecretCache(source=source, config=CacheConfig(jitter=0), clock=clock) as cache:
        for name in names:
            cache.get(name)
        clock.advance(250)
        for wave in (MAX_BACKGROUND, MAX_BACKGROUND, 10 - 2 * MAX_BACKGROUND):
            for name in names:
                cache.get(name)
            threads = our_threads()
            assert len(threads) == wave
            for _ in threads:
                assert going.acquire(timeout=30)
                gate.release()
            for thread in threads:
                thread.join(30)
            clock.advance(BUSY_PAUSE)
    assert sorted(source.fetched) == sorted(names * 2)


def test_on_lambda_a_refresh_runs_before_the_handler_returns(
    aws: SecretsManager, make_cache: MakeCache, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread left behind there is frozen until the next invocation."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "handler")
    aws.create("prod/db", "v1")
    cache = make_cache(ttl=100)
    cache.get("prod/db")
    aws.put("prod/db", "v2")
    clock.advance(90)
    assert cache.get("prod/db").string == "v2"
    assert not our_threads()


def test_on_lambda_a_stale_read_is_counted_once(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reader waits for the refresh, which fails."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "handler")

    def answer(secret_id: str) -> Secret:
        if clock.now > 1_000:
            raise NotConfigured("no credentials")
        return version(secret_id)

    config = CacheConfig(ttl=100, jitter=0)
    with SecretCache(source=FakeSource(answer), config=config, clock=clock, jitter=lambda: 1.0) as cache:
        for seconds in (0, 90, 30):
            clock.advance(seconds)
            cache.get("prod/db")
        assert cache.metrics.snapshot().stale_served == 1


def test_where_no_thread_can_be_started_the_reader_fetches_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So it is while the interpreter shuts down, from Python 3.12 on, and at the limit of a container."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    # The test server needs threads too, so the answer comes from a source in this process.
    with monkeypatch.context() as patch, SecretCache(source=FakeSource(version)) as cache:
        patch.setattr(threading.Thread, "start", refuse)
        assert cache.get("prod/db").string == "value 1"


def test_a_source_that_raises_anything_is_reported_and_leaves_nobody_waiting(together: Together) -> None:
    def fail(secret_id: str) -> Secret:
        raise ZeroDivisionError

    source = FakeSource(fail)
    with SecretCache(source=source) as cache:
        results = together(10, lambda: cache.get("prod/db"))
        assert {type(error) for error in results} == {SourceFailed}
        assert {type(error.__cause__) for error in results} == {ZeroDivisionError}
        assert source.fetched == ["prod/db"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # it is what the test makes
def test_a_fetch_that_ends_the_thread_is_a_failure_of_the_source_and_not_begun_again_at_once() -> None:
    def leave(secret_id: str) -> Secret:
        raise SystemExit(secret_id)

    with SecretCache(source=FakeSource(leave)) as cache:
        source = cache._sources[0]
        assert isinstance(source, FakeSource)
        for _ in range(2):
            with pytest.raises(SourceFailed, match="SystemExit"):
                cache.get("prod/db")
        assert source.fetched == ["prod/db"]


class Rejected(Exception):
    """What a server says of a wrong password."""


def test_closing_ends_a_call_that_waits_for_a_rotation() -> None:
    def answer(secret_id: str) -> Secret:
        if len(source.fetched) == 3:  # AWSCURRENT twice, then AWSPENDING
            raise AccessDenied("no", secret_id=secret_id)
        return version(secret_id)

    source = FakeSource(answer)
    cache = SecretCache(source=source, sleep=lambda _: cache.close())

    @cache.retry_on_auth_error("prod/db", is_auth_error=lambda error: isinstance(error, Rejected))
    def connect(secret: Secret) -> None:
        raise Rejected(secret.version_id)

    with pytest.raises(CacheClosed):
        connect()
    assert len(source.fetched) == 3


def test_the_cache_may_be_used_by_a_signals_handler_or_a_finaliser_whose_thread_is_inside() -> None:
    """Python runs both between any two instructions, also while the cache decides."""
    with SecretCache(source=FakeSource(version)) as cache:
        cache.get("prod/db")
        with cache._lock, ThreadPoolExecutor(1):  # as if it were the decision that is interrupted
            cache.metrics.snapshot()
            cache.invalidate("prod/db")
            cache.close()


def test_where_no_thread_is_to_be_had_a_reader_with_a_value_has_it_at_once_and_others_fetch_themselves(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    source = FakeSource(version)
    with SecretCache(source=source, clock=clock) as cache:
        monkeypatch.setattr(threading.Thread, "start", start)
        value = cache.get("prod/db")
        clock.advance(260)
        assert cache.get("prod/db") is value
        assert source.fetched == ["prod/db"]
        assert cache.prefetch(["prod/api"]) == {}
        assert source.fetched == ["prod/db", "prod/api"]


def test_on_lambda_a_listener_that_hears_of_a_stale_value_may_ask_for_it(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """It is called by the reader itself, whose refresh is under way by then."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "handler")
    is_down = False

    def answer(secret_id: str) -> Secret:
        if is_down:
            raise NotConfigured("no credentials", secret_id=secret_id)
        return version(secret_id)

    with SecretCache(source=FakeSource(answer), clock=clock, jitter=lambda: 0.0) as cache:
        heard: list[Secret] = []

        def ask(event: object) -> None:
            if isinstance(event, ServedStale):
                heard.append(cache.refresh("prod/db"))

        cache.subscribe(ask)
        value = cache.get("prod/db")
        is_down = True
        clock.advance(295)
        assert cache.get("prod/db") is value
        is_down = False
        clock.advance(10)
        assert cache.get("prod/db") is value
        assert heard == [value]


def test_a_client_that_is_being_made_when_the_cache_is_closed_sends_nothing(
    aws: SecretsManager, monkeypatch: pytest.MonkeyPatch, wait_until_idle: WaitUntilIdle
) -> None:
    for name, setting in aws.environ.items():
        monkeypatch.setenv(name, setting)
    making, closed = threading.Event(), threading.Event()
    make = boto.without_listing_services

    def make_slowly(session: object) -> object:
        making.set()
        assert closed.wait(30)
        return make(session)

    monkeypatch.setattr(boto, "without_listing_services", make_slowly)
    cache = SecretCache()
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(cache.get, "prod/db")
        assert making.wait(30)
        cache.close()
        closed.set()
        assert isinstance(reader.exception(30), CacheClosed)
    wait_until_idle(cache)
    assert aws.requests == {}
    assert getattr(cache._sources[0], "_client", None) is None


def test_a_fetch_sees_its_readers_context_and_a_refresh_in_the_background_does_not(clock: Clock) -> None:
    request_id = contextvars.ContextVar("request_id", default="none")
    seen: list[str] = []

    def answer(secret_id: str) -> Secret:
        seen.append(request_id.get())
        return version(secret_id)

    with SecretCache(source=FakeSource(answer), clock=clock) as cache:
        request_id.set("first")
        cache.get("prod/db")
        clock.advance(260)
        cache.get("prod/db")
        for thread in our_threads():
            thread.join(30)
    assert seen == ["first", "none"]


def test_an_event_has_the_context_in_which_it_happened_whoever_passes_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first fetch stops between its decision and its telling; another thread tells for both."""
    request_id = contextvars.ContextVar("request_id", default="none")
    decided, told = threading.Event(), threading.Event()
    heard: list[tuple[str, str]] = []

    def read(name: str) -> None:
        request_id.set(name)
        cache.get(name)

    def hesitate() -> None:
        if request_id.get() == "a" and threading.current_thread().name == "smcache-fetch":
            decided.set()
            told.wait(30)
        tell()

    with SecretCache(source=FakeSource(version)) as cache, ThreadPoolExecutor(2) as pool:
        tell = cache._tell
        monkeypatch.setattr(cache, "_tell", hesitate)
        cache.subscribe(lambda event: heard.append((event.secret_id, request_id.get())))
        first = pool.submit(read, "a")
        assert decided.wait(30)
        pool.submit(read, "b").result(30)
        told.set()
        first.result(30)
        for thread in our_threads():
            thread.join(30)
    assert heard == [("a", "a"), ("b", "b")]


def test_prefetch_from_a_source_without_batches_fetches_one_by_one() -> None:
    def answer(secret_id: str) -> Secret:
        if secret_id == "bad":
            raise ZeroDivisionError
        return version(secret_id)

    source = FakeSource(answer)
    with SecretCache(source=source) as cache:
        errors = cache.prefetch(["a", "bad", "b", "a"])
        assert {name: type(error) for name, error in errors.items()} == {"bad": SourceFailed}
        assert sorted(source.fetched) == ["a", "b", "bad"]
        assert cache.metrics.snapshot().hits == 0
        cache.get("a")
        assert cache.metrics.snapshot().hits == 1


def test_prefetch_of_any_number_has_few_threads_and_sends_no_batch_once_its_time_is_up(clock: Clock) -> None:
    threads: list[int] = []
    lanes = threading.Barrier(MAX_BACKGROUND)

    class Batches(FakeSource):
        def fetch_batch(self, secret_ids: Sequence[str]) -> Answer[dict[str, Secret | SecretCacheError]]:
            lanes.wait(30)
            threads.append(len(our_threads()))
            if clock.now > 1_000:
                clock.advance(60)
            lanes.wait(30)
            return Answer({name: version(name) for name in secret_ids})

    names = [f"s{number}" for number in range(4_000)]
    with SecretCache(source=Batches(version), config=CacheConfig(max_size=4_000), clock=clock) as cache:
        assert cache.prefetch(names) == {}
        assert threads == [MAX_BACKGROUND] * 200
        cache.invalidate()
        clock.advance(1)
        assert len(cache.prefetch(names)) >= 4_000 - MAX_BACKGROUND * BATCH_SIZE
        for thread in our_threads():
            thread.join(30)
        assert len(threads) == 200 + MAX_BACKGROUND


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # it is what the test makes
def test_a_batch_that_ends_the_thread_leaves_nobody_waiting() -> None:
    class Leaves(FakeSource):
        def fetch_batch(self, secret_ids: object) -> Answer[dict[str, Secret | SecretCacheError]]:
            raise SystemExit

    with SecretCache(source=Leaves(version)) as cache:
        assert {name: type(error) for name, error in cache.prefetch(["a"]).items()} == {"a": Unavailable}
        assert cache.get("a").string == "value 1"


def test_a_prefetch_that_takes_too_long_reports_what_is_missing(aws: SecretsManager) -> None:
    aws.create("a", "v")
    cache = SecretCache(aws.client(), config=CacheConfig(fetch_timeout=0.2, negative_ttl=0))
    with aws.inject(hang(), times=None, operation="BatchGetSecretValue"):
        assert {name: type(error) for name, error in cache.prefetch(["a"]).items()} == {"a": FetchTimeout}
    assert cache.get("a").string == "v"
    cache.close()


def test_a_listener_may_use_the_cache(aws: SecretsManager, make_cache: MakeCache) -> None:
    aws.create("prod/db", "v1")
    cache = make_cache()
    seen: list[str] = []
    cache.on_rotation("prod/db", lambda old, new: seen.append(cache.refresh("prod/db").string))
    cache.get("prod/db")
    aws.put("prod/db", "v2")
    cache.refresh("prod/db")
    for thread in our_threads():
        thread.join(30)
    assert seen == ["v2"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # it is what the test makes
@pytest.mark.parametrize(("end", "expected"), [(SystemExit, ["first", "second"]), (KeyboardInterrupt, ["second"])])
def test_a_listener_that_ends_its_thread_ends_no_later_delivery(end: type[BaseException], expected: list[str]) -> None:
    heard: list[str] = []

    def leave(event: Event) -> None:
        if event.secret_id == "first":
            raise end

    with SecretCache(source=FakeSource(version)) as cache:
        cache.subscribe(leave)
        cache.subscribe(lambda event: heard.append(event.secret_id))
        for name in ("first", "second"):
            cache.get(name)
            for thread in our_threads():
                thread.join(30)
    assert heard == expected


def test_on_lambda_a_listener_that_ends_the_fetchs_thread_keeps_no_reader_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "handler")

    def leave(event: Event) -> None:
        raise SystemExit

    config = CacheConfig(fetch_timeout=60)
    with SecretCache(source=FakeSource(version), config=config) as cache, ThreadPoolExecutor(1) as pool:
        cache.subscribe(leave)
        assert pool.submit(cache.get, "prod/db").result(30).string == "value 1"


def test_a_cache_closed_between_two_retries_sends_no_more_requests() -> None:
    def fail(secret_id: str) -> Secret:
        raise Unavailable("down")

    source = FakeSource(fail)
    cache = SecretCache(source=source, sleep=lambda _: cache.close())
    with pytest.raises(CacheClosed):
        cache.get("prod/db")
    for thread in our_threads():
        thread.join(30)
    assert source.fetched == ["prod/db"]
