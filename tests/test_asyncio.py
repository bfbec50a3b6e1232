"""What only the asyncio driver can get wrong: cancelling, loops, tasks left behind, and blocking the loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import logging
import sys
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import trio

from smcache import (
    AccessDenied,
    AsyncSecretCache,
    CacheClosed,
    CacheConfig,
    FetchTimeout,
    InvalidArgument,
    NotConfigured,
    Secret,
    SecretNotFound,
    SourceFailed,
    Unavailable,
    WrongLoop,
)
from smcache._core import MAX_BACKGROUND
from smcache.sources import Answer
from smcache.sources.aioboto import AioBotoSource, ThreadedBotoSource
from smcache.testing import hang, rotate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence

    from conftest import Clock

    from smcache.events import Event
    from smcache.testing import PostgreSQL, SecretsManager

GET = "GetSecretValue"
NAME = "prod/db"

Run = Any


@pytest.fixture
def run(
    new_loop: Callable[[], asyncio.AbstractEventLoop], caplog: pytest.LogCaptureFixture
) -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Run like ``asyncio.run``, in debug mode, and fail if the loop complained of anything."""
    complaints: list[dict[str, Any]] = []

    def run_to_its_end(main: Coroutine[Any, Any, Any]) -> Any:
        loop = new_loop()
        loop.set_debug(True)
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        try:
            return loop.run_until_complete(main)
        finally:
            loop.run_until_complete(end_what_is_left())
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    yield run_to_its_end
    assert not complaints
    assert not [record for record in caplog.records if record.name == "asyncio" and record.levelno > logging.WARNING]


async def end_what_is_left() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


@pytest.fixture
def usual_settings(aws: SecretsManager, monkeypatch: pytest.MonkeyPatch) -> SecretsManager:
    for name, value in aws.environ.items():
        monkeypatch.setenv(name, value)
    return aws


class FakeSource:
    """Answers when its gate is open: for moments that a server cannot be made to show."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.gate = threading.Event()
        if is_open:
            self.gate.set()
        self.fetched = 0
        self.loops_left = 0
        self.closed = False
        self.answer: Callable[[str], Secret] = lambda name: Secret("value", name=name, version_id="version")

    async def fetch(self, secret_id: str, stage: str | None, version_id: str | None) -> Answer[Secret]:
        self.fetched += 1
        while not self.gate.is_set():  # noqa: ASYNC110 - an asyncio.Event would belong to one loop
            await asyncio.sleep(0)
        return Answer(self.answer(secret_id))

    def leave_loop(self) -> None:
        self.loops_left += 1

    async def close(self) -> None:
        self.closed = True


async def a_few_turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class TestCancelling:
    def test_a_cancelled_reader_cancels_nothing_but_itself(self, run: Run) -> None:
        source = FakeSource(is_open=False)

        async def main() -> None:
            async with AsyncSecretCache(source=source) as cache:
                first, second = (asyncio.create_task(cache.get(NAME)) for _ in range(2))
                await a_few_turns()
                first.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await first
                source.gate.set()
                assert (await second).string == "value"

        run(main())
        assert source.fetched == 1

    def test_what_nobody_waits_for_any_more_still_lands_in_the_cache(self, run: Run) -> None:
        source = FakeSource(is_open=False)

        async def main() -> None:
            async with AsyncSecretCache(source=source) as cache:
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(cache.get(NAME), 0.01)
                source.gate.set()
                await a_few_turns()
                assert (await cache.get(NAME)).string == "value"
                assert cache.metrics.snapshot().hits == 1

        run(main())
        assert source.fetched == 1

    def test_a_failure_that_nobody_waits_for_any_more_is_not_reported_by_the_loop(self, run: Run) -> None:
        source = FakeSource(is_open=False)

        def fail(name: str) -> Secret:
            raise ZeroDivisionError

        source.answer = fail

        async def main() -> None:
            async with AsyncSecretCache(source=source) as cache:
                reader = asyncio.create_task(cache.get(NAME))
                await a_few_turns()
                reader.cancel()
                source.gate.set()
                await a_few_turns()
                with pytest.raises(SourceFailed):
                    await cache.get(NAME)

        run(main())

    def test_a_cancelled_connection_is_not_tried_again(self, run: Run) -> None:
        attempts: list[Secret] = []

        async def main() -> None:
            begun = asyncio.Event()
            async with AsyncSecretCache(source=FakeSource()) as cache:

                @cache.retry_on_auth_error(NAME, is_auth_error=lambda error: True)
                async def connect(secret: Secret) -> None:
                    attempts.append(secret)
                    begun.set()
                    await asyncio.Event().wait()

                connecting = asyncio.create_task(connect())
                await begun.wait()
                connecting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await connecting
                assert cache.metrics.snapshot().auth_failures == 0

        run(main())
        assert len(attempts) == 1

    def test_a_server_that_never_answers_holds_nobody_beyond_the_deadline(
        self, run: Run, usual_settings: SecretsManager
    ) -> None:
        """Not even the end of the loop, which would wait for threads of its own."""
        usual_settings.create(NAME, "v")

        async def main(client: Any) -> None:
            cache = AsyncSecretCache(client, config=CacheConfig(fetch_timeout=1, negative_ttl=0))
            # Its client gives up on a request after half of that, one of the user's only after a minute.
            with usual_settings.inject(hang(), times=None):
                results = await asyncio.gather(*(cache.get(NAME) for _ in range(20)), return_exceptions=True)
                assert all(isinstance(result, Unavailable) for result in results)
                assert await cache.prefetch([NAME, "other"]) == {}, "another operation, which answers"
            assert (await cache.get(NAME)).string == "v"
            await cache.close()

        usual_settings.create("other", "v")
        run(main(None))
        run(main(usual_settings.client()))

    def test_a_prefetch_that_takes_too_long_reports_what_is_missing(
        self, run: Run, usual_settings: SecretsManager
    ) -> None:
        usual_settings.create(NAME, "v")

        async def main() -> None:
            async with AsyncSecretCache(usual_settings.client(), config=CacheConfig(fetch_timeout=0.2)) as cache:
                with usual_settings.inject(hang(), times=None, operation="BatchGetSecretValue"):
                    errors = await cache.prefetch([NAME])
                assert isinstance(errors[NAME], FetchTimeout)

        run(main())


class Rejected(Exception):
    """What a server says of a wrong password."""


class TestEnds:
    def test_closing_ends_a_call_that_waits_for_a_rotation(self, run: Run) -> None:
        source = FakeSource()

        def answer(name: str) -> Secret:
            if source.fetched == 3:  # AWSCURRENT twice, then AWSPENDING
                raise AccessDenied("no", secret_id=name)
            return Secret("value", name=name, version_id="version")

        async def main() -> None:
            source.answer = answer
            cache = AsyncSecretCache(source=source, sleep=lambda _: cache.close())

            @cache.retry_on_auth_error(NAME, is_auth_error=lambda error: isinstance(error, Rejected))
            async def connect(secret: Secret) -> None:
                raise Rejected(secret.version_id)

            with pytest.raises(CacheClosed):
                await connect()
            assert source.fetched == 3

        run(main())

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="a task does not say whether it was cancelled")
    def test_a_cancellation_that_leaks_from_the_source_is_its_failure_and_not_begun_again_at_once(
        self, run: Run
    ) -> None:
        def leak(_: str) -> Secret:
            raise asyncio.CancelledError

        async def main() -> None:
            source = FakeSource()
            source.answer = leak
            async with AsyncSecretCache(source=source) as cache:
                for _ in range(2):
                    with pytest.raises(SourceFailed, match="CancelledError"):
                        await cache.get(NAME)
            assert source.fetched == 1

        run(main())

    def test_a_request_that_is_cut_short_at_the_deadline_is_counted(self, run: Run) -> None:
        async def main() -> None:
            source = FakeSource(is_open=False)
            async with AsyncSecretCache(source=source, config=CacheConfig(fetch_timeout=0.01)) as cache:
                with pytest.raises(FetchTimeout):
                    await cache.get(NAME)
                await asyncio.gather(*cache._fetching)
                snapshot = cache.metrics.snapshot()
                assert (snapshot.api_calls, snapshot.errors_by_code) == (1, {"FetchTimeout": 1})

        run(main())

    @pytest.mark.parametrize("closes", [1, 2])
    def test_closing_waits_until_the_listeners_have_been_told(self, run: Run, closes: int) -> None:
        async def main() -> None:
            cache = AsyncSecretCache(source=FakeSource())
            heard: list[str] = []

            async def listen(event: Event) -> None:
                await a_few_turns()
                heard.append(event.secret_id)

            cache.subscribe(listen)
            for name in ("a", "b", "c"):
                await cache.get(name)
            await asyncio.gather(*(cache.close() for _ in range(closes)))
            assert heard == ["a", "b", "c"]

        run(main())

    def test_a_listener_that_hangs_keeps_closing_no_longer_than_a_fetch(self, run: Run) -> None:
        async def main() -> None:
            cache = AsyncSecretCache(source=FakeSource(), config=CacheConfig(fetch_timeout=0.01))
            never = asyncio.get_running_loop().create_future()

            async def listen(_: Event) -> None:
                await never

            cache.subscribe(listen)
            await cache.get(NAME)
            await cache.close()
            assert asyncio.all_tasks() == {asyncio.current_task()}

        run(main())

    def test_two_who_close_at_once_are_fine(self, run: Run, usual_settings: SecretsManager) -> None:
        usual_settings.create(NAME, "v")

        async def main() -> None:
            cache = AsyncSecretCache()
            await cache.get(NAME)
            await asyncio.gather(cache.close(), cache.close())

        run(main())


class TestLoops:
    def test_a_cache_made_before_any_loop_keeps_its_values_from_loop_to_loop_and_makes_new_clients(
        self, run: Run, usual_settings: SecretsManager
    ) -> None:
        usual_settings.create(NAME, "v")
        cache = AsyncSecretCache(source=ThreadedBotoSource(BotoSourceOnUse()))
        first = run(cache.get(NAME))
        assert run(cache.get(NAME)) is first
        assert usual_settings.requests == {GET: 1}
        assert run(cache.refresh(NAME)) is first
        run(cache.close())

    def test_aiobotocores_client_is_made_anew_in_each_loop(self, run: Run, usual_settings: SecretsManager) -> None:
        usual_settings.create(NAME, "v")
        source = AioBotoSource()
        cache = AsyncSecretCache(source=source)
        clients = []

        async def use() -> Secret:
            secret = await cache.refresh(NAME)
            clients.append(source._client)
            return secret

        assert run(use()) is run(use())
        assert clients[0] is not clients[1]
        run(cache.close())

    def test_a_second_loop_at_the_same_time_is_refused_and_does_not_hang(
        self, run: Run, new_loop: Callable[[], asyncio.AbstractEventLoop]
    ) -> None:
        source = FakeSource(is_open=False)
        cache = AsyncSecretCache(source=source)

        async def main() -> None:
            first = asyncio.create_task(cache.get(NAME))
            await a_few_turns()

            def in_another_thread() -> None:
                other = new_loop()
                try:
                    other.run_until_complete(cache.get(NAME))
                finally:
                    other.close()

            with pytest.raises(WrongLoop, match="another event loop that is still running"):
                await asyncio.to_thread(in_another_thread)
            source.gate.set()
            assert (await first).string == "value"
            await asyncio.to_thread(in_another_thread)  # a hit needs no loop
            await cache.close()

        run(main())

    def test_a_flight_of_a_loop_that_has_ended_holds_nobody_in_the_next(self, run: Run) -> None:
        source = FakeSource(is_open=False)
        cache = AsyncSecretCache(source=source)

        async def leave() -> None:
            asyncio.create_task(cache.get(NAME))  # noqa: RUF006 - left behind on purpose
            await a_few_turns()

        run(leave())
        source.gate.set()
        assert run(cache.get(NAME)).string == "value"
        assert source.fetched == 2
        assert source.loops_left == 2

    def test_an_event_in_the_next_loop_is_told_there_and_once(self, run: Run) -> None:
        """A hit does not look at the loop, so the rejected login is the first that happens in it."""
        cache = AsyncSecretCache(source=FakeSource())
        heard: list[str] = []
        cache.subscribe(lambda event: heard.append(type(event).__name__))

        @cache.retry_on_auth_error(NAME, is_auth_error=lambda error: isinstance(error, PermissionError))
        async def connect(secret: Secret) -> None:
            raise PermissionError

        async def be_rejected() -> None:
            with pytest.raises(PermissionError):
                await connect()
            await a_few_turns()

        run(cache.get(NAME))
        run(be_rejected())
        assert heard.count("AuthFailed") == 1
        run(cache.close())

    def test_what_was_still_to_be_told_when_a_loop_was_dropped_is_told_in_the_next(
        self, new_loop: Callable[[], asyncio.AbstractEventLoop], run: Run
    ) -> None:
        cache = AsyncSecretCache(source=FakeSource())
        heard: list[str] = []

        async def listen(event: Event) -> None:
            if event.secret_id == "first":
                await asyncio.Event().wait()
            heard.append(event.secret_id)

        async def read(name: str) -> None:
            await cache.get(name)
            await a_few_turns()

        cache.subscribe(listen)
        dropped = new_loop()
        for name in ("first", "second"):
            dropped.run_until_complete(read(name))
        dropped.close()
        run(read("third"))
        assert heard == ["second", "third"]
        run(cache.close())

    def test_a_cache_is_closed_in_another_loop_than_that_of_its_readers(
        self, new_loop: Callable[[], asyncio.AbstractEventLoop], run: Run
    ) -> None:
        source = FakeSource(is_open=False)
        cache = AsyncSecretCache(source=source)
        ended = new_loop()
        left_behind = ended.create_task(cache.get(NAME))
        ended.run_until_complete(a_few_turns())
        ended.close()
        run(cache.close())
        assert source.closed
        assert not left_behind.done()

    def test_without_asyncio_it_says_what_to_use_instead(self) -> None:
        cache = AsyncSecretCache(source=FakeSource())
        with pytest.raises(WrongLoop, match="use SecretCache"):
            cache.get(NAME).send(None)
        with pytest.raises(WrongLoop, match="under trio"):
            trio.run(cache.get, NAME)
        with pytest.raises(InvalidArgument, match="async with"), cache:
            pass


class BotoSourceOnUse:
    """Just what the test needs of BotoSource, so that the source is made by the name the cache would use."""

    def __new__(cls) -> Any:
        from smcache.sources.boto import BotoSource  # noqa: PLC0415

        return BotoSource()


class TestWaitingForNothing:
    def test_a_hit_never_yields_to_the_loop(self, run: Run) -> None:
        async def main() -> None:
            async with AsyncSecretCache(source=FakeSource()) as cache:
                await cache.get(NAME)
                for hit in (cache.get(NAME), cache.get_string(NAME), cache.get(NAME, stage="AWSCURRENT")):
                    with pytest.raises(StopIteration):
                        hit.send(None)

        run(main())

    def test_1000_tasks_that_miss_the_same_cold_secret_make_one_request(
        self, run: Run, usual_settings: SecretsManager
    ) -> None:
        usual_settings.create(NAME, "v")

        async def main() -> None:
            async with AsyncSecretCache() as cache:
                assert len({id(s) for s in await asyncio.gather(*(cache.get(NAME) for _ in range(1000)))}) == 1

        run(main())
        assert usual_settings.requests == {GET: 1}

    def test_nobody_waits_for_a_refresh_ahead_and_closing_ends_it_quietly(self, run: Run, clock: Clock) -> None:
        source = FakeSource()

        async def main() -> None:
            cache = AsyncSecretCache(source=source, clock=clock)
            old = await cache.get(NAME)
            source.gate.clear()
            clock.advance(260)
            assert await cache.get(NAME) is old
            await a_few_turns()
            assert source.fetched == 2
            waiting = asyncio.create_task(cache.refresh(NAME))
            await a_few_turns()
            await cache.close()
            with pytest.raises(CacheClosed):
                await waiting
            assert asyncio.all_tasks() == {asyncio.current_task()}
            await cache.close()

        run(main())

    def test_on_lambda_a_refresh_runs_before_the_handler_returns(
        self, run: Run, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "handler")
        source = FakeSource()

        async def main() -> None:
            async with AsyncSecretCache(source=source, clock=clock) as cache:
                await cache.get(NAME)
                source.answer = lambda name: Secret("new", name=name, version_id="new")
                clock.advance(260)
                assert (await cache.get(NAME)).string == "new"

        run(main())

    def test_on_lambda_a_stale_read_is_counted_once(
        self, run: Run, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its reader waits for the refresh, which fails."""
        monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "handler")
        source = FakeSource()

        def answer(name: str) -> Secret:
            if clock.now > 1_000:
                raise NotConfigured("no credentials")
            return Secret("value", name=name, version_id="version")

        async def main() -> None:
            source.answer = answer
            config = CacheConfig(ttl=100, jitter=0)
            async with AsyncSecretCache(source=source, config=config, clock=clock, jitter=lambda: 1.0) as cache:
                for seconds in (0, 90, 30):
                    clock.advance(seconds)
                    await cache.get(NAME)
                assert cache.metrics.snapshot().stale_served == 1

        run(main())

    def test_a_fetch_sees_its_readers_context_and_a_refresh_in_the_background_does_not(
        self, run: Run, clock: Clock
    ) -> None:
        request_id = contextvars.ContextVar("request_id", default="none")
        seen: list[str] = []

        def answer(name: str) -> Secret:
            seen.append(request_id.get())
            return Secret("value", name=name, version_id="version")

        source = FakeSource()
        source.answer = answer

        async def main() -> None:
            async with AsyncSecretCache(source=source, clock=clock) as cache:
                request_id.set("first")
                await cache.get(NAME)
                clock.advance(260)
                await cache.get(NAME)
                await a_few_turns()

        run(main())
        assert seen == ["first", "none"]


class TestSources:
    def test_without_a_client_aiobotocore_is_used_and_says_who_it_is(
        self, run: Run, usual_settings: SecretsManager
    ) -> None:
        usual_settings.create(NAME, "v")

        async def main() -> None:
            async with AsyncSecretCache() as cache:
                assert isinstance(cache._sources[0], AioBotoSource)
                assert len({id(s) for s in await asyncio.gather(cache.get(NAME), cache.get("b"))}) == 2
            assert cache._sources[0]._client is None

        usual_settings.create("b", "v")
        run(main())
        assert all("smcache/" in agent for agent in usual_settings.user_agents)

    def test_without_the_extra_boto3_is_called_in_threads(
        self, run: Run, usual_settings: SecretsManager, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("smcache.sources.aioboto.find_spec", lambda name: None)
        usual_settings.create(NAME, "v")
        loop_threads: list[int] = []

        async def main() -> None:
            async with AsyncSecretCache() as cache:
                assert isinstance(cache._sources[0], ThreadedBotoSource)
                loop_threads.append(threading.get_ident())
                assert await cache.get_string(NAME) == "v"
                with pytest.raises(SecretNotFound):
                    await cache.get("missing")

        run(main())

    def test_what_cannot_serve_is_refused_when_the_cache_is_made(self) -> None:
        class Sync:
            def fetch(self, *_: object) -> Any: ...
            def leave_loop(self) -> None: ...
            def close(self) -> None: ...

        cases: list[tuple[dict[str, Any], str]] = [
            ({"client": object()}, "no get_secret_value"),
            ({"source": object()}, "is no AsyncSource"),
            ({"source": Sync()}, r"no coroutine fetch\(\)"),
            ({"client": 1, "source": FakeSource()}, "client= and source= were given together"),
            ({"source": FakeSource(), "config": CacheConfig(check_version_first=True)}, r"describe\(\)"),
            ({"config": 5}, "takes a CacheConfig"),
        ]
        for arguments, message in cases:
            with pytest.raises(InvalidArgument, match=message):
                AsyncSecretCache(**arguments)

    def test_prefetch_from_a_source_without_batches_fetches_one_by_one(self, run: Run) -> None:
        source = FakeSource()

        async def main() -> None:
            async with AsyncSecretCache(source=source) as cache:
                assert await cache.prefetch(["a", "b", "a"]) == {}
                await cache.get("a")

        run(main())
        assert source.fetched == 2

    def test_prefetch_of_any_number_has_few_requests_under_way(self, run: Run) -> None:
        under_way: list[int] = []

        class Batches(FakeSource):
            async def fetch_batch(self, secret_ids: Sequence[str]) -> Answer[dict[str, Secret]]:
                self.fetched += 1
                await a_few_turns()
                under_way.append(self.fetched)
                self.fetched -= 1
                return Answer({name: self.answer(name) for name in secret_ids})

        async def main() -> None:
            async with AsyncSecretCache(source=Batches()) as cache:
                assert await cache.prefetch([f"s{number}" for number in range(400)]) == {}

        run(main())
        assert max(under_way) == MAX_BACKGROUND

    def test_a_batch_that_ends_the_task_leaves_nobody_waiting(self, run: Run) -> None:
        class Cancelled(FakeSource):
            async def fetch_batch(self, secret_ids: object) -> Any:
                raise asyncio.CancelledError

        async def main() -> None:
            async with AsyncSecretCache(source=Cancelled()) as cache:
                errors = await cache.prefetch(["a"])
                assert {name: type(error) for name, error in errors.items()} == {"a": Unavailable}
                assert (await cache.get("a")).string == "value"

        run(main())

    def test_two_first_requests_share_the_client_they_make(
        self, run: Run, usual_settings: SecretsManager, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usual_settings.create(NAME, "v")
        entered: list[object] = []

        async def main() -> None:
            source = AioBotoSource()
            live = source._live

            async def slow() -> AsyncIterator[Any]:
                await a_few_turns()
                async with contextlib.aclosing(live()) as life:
                    async for client in life:
                        entered.append(client)
                        yield client

            monkeypatch.setattr(source, "_live", slow)
            await asyncio.gather(source.fetch(NAME, "AWSCURRENT", None), source.fetch(NAME, "AWSCURRENT", None))
            await source.close()

        run(main())
        assert len(entered) == 1


class TestListeners:
    def test_functions_and_coroutine_functions_are_called_and_their_trouble_is_logged(
        self, run: Run, caplog: pytest.LogCaptureFixture
    ) -> None:
        source = FakeSource()
        heard: list[str] = []

        async def listen(old: Secret, new: Secret) -> None:
            await asyncio.sleep(0)
            heard.append(f"coroutine {new.string}")

        async def fail(old: Secret, new: Secret) -> None:
            raise ZeroDivisionError

        async def main() -> None:
            async with AsyncSecretCache(source=source) as cache:
                cache.on_rotation(NAME, fail)
                cache.on_rotation(NAME, listen)
                cache.on_rotation(NAME, lambda old, new: heard.append(f"function {new.string}"))
                await cache.get(NAME)
                source.answer = lambda name: Secret("new", name=name, version_id="new")
                await cache.refresh(NAME)
                await a_few_turns()

        run(main())
        assert heard == ["coroutine new", "function new"]
        assert "a listener failed on Rotated of prod/db" in caplog.text

    @pytest.mark.parametrize("cancelled", ["the listener", "every task of the loop"])
    def test_whatever_is_cancelled_the_next_event_is_told(self, run: Run, cancelled: str) -> None:
        heard: list[str] = []

        async def listen(event: Event) -> None:
            if event.secret_id == "first":
                waiting = asyncio.ensure_future(asyncio.Event().wait())
                if cancelled == "the listener":
                    waiting.cancel()
                await waiting
            heard.append(event.secret_id)

        async def main() -> None:
            async with AsyncSecretCache(source=FakeSource()) as cache:
                cache.subscribe(listen)
                await cache.get("first")
                await a_few_turns()
                await end_what_is_left()
                await cache.get("second")
                await a_few_turns()

        run(main())
        assert heard == ["second"]

    def test_functions_and_coroutines_see_the_context_in_which_it_happened(self, run: Run) -> None:
        request_id = contextvars.ContextVar("request_id", default="none")
        seen: list[str] = []

        async def listen(event: Event) -> None:
            seen.append(request_id.get())

        async def main() -> None:
            async with AsyncSecretCache(source=FakeSource()) as cache:
                cache.subscribe(listen)
                cache.subscribe(lambda event: seen.append(request_id.get()))
                request_id.set("7")
                await cache.get(NAME)
                await a_few_turns()

        run(main())
        assert seen == ["7", "7"]

    def test_a_listener_may_use_the_cache_and_even_close_it(self, run: Run) -> None:
        source = FakeSource()

        async def main() -> None:
            cache = AsyncSecretCache(source=source)
            closed = asyncio.Event()

            async def close(old: Secret, new: Secret) -> None:
                assert await cache.get(NAME) is new
                await cache.close()
                closed.set()

            cache.on_rotation(NAME, close)
            await cache.get(NAME)
            source.answer = lambda name: Secret("new", name=name, version_id="new")
            await cache.refresh(NAME)
            await asyncio.wait_for(closed.wait(), 30)

        run(main())


async def login(secret: Secret) -> psycopg.AsyncConnection[Any]:
    return await psycopg.AsyncConnection.connect(
        host=secret["host"],
        port=secret["port"],
        user=secret["username"],
        password=secret["password"],
        dbname=secret["dbname"],
    )


class TestDecorator:
    def test_no_step_of_a_rotation_fails_a_connection(
        self, run: Run, usual_settings: SecretsManager, pg: PostgreSQL, canary: str
    ) -> None:
        pg.create_role("asyncio", canary)
        usual_settings.create(NAME, pg.secret("asyncio", canary))
        steps: list[str] = []

        async def main() -> None:
            async with AsyncSecretCache() as cache:
                before = usual_settings.requests[GET]

                @cache.retry_on_auth_error(NAME)
                async def connect(secret: Secret) -> str:
                    async with await login(secret) as connection:
                        cursor = await connection.execute("select current_user")
                        (user,) = await cursor.fetchone() or ("nobody",)
                        return str(user)

                loop = asyncio.get_running_loop()

                def on_step(step: str, version: str) -> None:
                    async def storm() -> list[str]:
                        return await asyncio.gather(*(connect() for _ in range(20)))

                    assert asyncio.run_coroutine_threadsafe(storm(), loop).result(60) == ["asyncio"] * 20
                    steps.append(step)

                def rotate_twice() -> None:
                    with pg.admin() as admin:
                        for _ in range(2):
                            rotate(usual_settings.client(), NAME, admin, dwell=0, on_step=on_step)

                await connect()
                await asyncio.to_thread(rotate_twice)
                snapshot = cache.metrics.snapshot()
                assert snapshot.auth_unrecovered == 0
                assert snapshot.api_calls == 5
                assert before == 0

        run(main())
        assert len(steps) == 8

    def test_everything_but_an_auth_error_passes_through_on_the_first_attempt(self, run: Run) -> None:
        attempts: list[Secret] = []

        async def main() -> None:
            async with AsyncSecretCache(source=FakeSource()) as cache:

                @cache.retry_on_auth_error(NAME)
                async def connect(secret: Secret) -> None:
                    attempts.append(secret)
                    raise ConnectionRefusedError

                with pytest.raises(ConnectionRefusedError):
                    await connect()
                assert cache.metrics.snapshot().auth_failures == 0

        run(main())
        assert len(attempts) == 1

    def test_where_pending_may_not_be_read_it_waits_without_blocking_the_loop(self, run: Run, clock: Clock) -> None:
        source = FakeSource()
        slept: list[float] = []

        def answer(name: str) -> Secret:
            if source.fetched == 3:
                raise AccessDenied("not this label", secret_id=name)
            return Secret("v", name=name, version_id="new" if slept else "old")

        async def sleep(seconds: float) -> None:
            slept.append(seconds)
            await clock.async_sleep(seconds)

        source.answer = answer

        async def main() -> None:
            async with AsyncSecretCache(source=source, clock=clock, sleep=sleep) as cache:

                @cache.retry_on_auth_error(NAME, is_auth_error=lambda error: isinstance(error, PermissionError))
                async def connect(secret: Secret) -> str:
                    if secret.version_id == "old":
                        raise PermissionError
                    return secret.version_id

                assert await connect() == "new"

        run(main())
        assert len(slept) == 1

    def test_signature_and_kind_of_the_function_survive(self) -> None:
        cache = AsyncSecretCache(source=FakeSource())

        @cache.retry_on_auth_error(NAME)
        async def connect(secret: Secret, host: str, *, retries: int = 5) -> str:
            """Connect to a host."""
            return host

        @cache.retry_on_auth_error(NAME)
        async def session(secret: Secret, host: str) -> AsyncIterator[str]:
            yield host

        assert str(inspect.signature(connect)) == "(host: 'str', *, retries: 'int' = 5) -> 'str'"
        assert (connect.__name__, connect.__doc__) == ("connect", "Connect to a host.")
        assert inspect.iscoroutinefunction(connect)
        assert inspect.isasyncgenfunction(session)

    def test_methods_probes_and_returned_failures_work(self, run: Run) -> None:
        source = FakeSource()

        async def main() -> None:
            async with AsyncSecretCache(source=source) as cache:

                class Client:
                    @cache.retry_on_auth_error(NAME, auth_result=lambda status: status == 401)
                    async def call(self, secret: Secret) -> int:
                        return 200 if secret.string == "new" else 401

                async def ping(engine: Callable[[], str]) -> None:
                    if engine() != "new":
                        raise PermissionError

                def refused(error: Exception) -> bool:
                    return isinstance(error, PermissionError)

                @cache.retry_on_auth_error(NAME, probe=ping, is_auth_error=refused)
                async def engine(secret: Secret) -> Callable[[], str]:
                    return lambda: secret.string

                assert await Client().call() == 401
                with pytest.raises(PermissionError):
                    await engine()
                source.answer = lambda name: Secret("new", name=name, version_id="new")
                await cache.refresh(NAME)
                assert await Client().call() == 200
                assert (await engine())() == "new"

        run(main())

    def test_an_async_context_manager_is_tried_again_until_its_first_yield(self, run: Run) -> None:
        source = FakeSource()
        events: list[str] = []

        async def main() -> None:
            async with AsyncSecretCache(source=source) as cache:

                @contextlib.asynccontextmanager
                @cache.retry_on_auth_error(NAME, is_auth_error=lambda error: isinstance(error, PermissionError))
                async def session(secret: Secret) -> AsyncIterator[str]:
                    events.append(f"try {secret.string}")
                    if secret.string != "new":
                        raise PermissionError
                    try:
                        yield secret.string
                    except PermissionError:
                        events.append("not ours")
                        raise
                    finally:
                        events.append("left")

                await cache.get(NAME)
                source.answer = lambda name: Secret("new", name=name, version_id="new")
                async with session() as value:
                    assert value == "new"
                with pytest.raises(PermissionError):
                    async with session():
                        raise PermissionError

        run(main())
        assert events == ["try value", "try new", "left", "try new", "not ours", "left"]

    def test_generators_pass_on_what_is_sent_and_thrown_and_are_closed(self, run: Run) -> None:
        closed: list[str] = []

        async def main() -> None:
            async with AsyncSecretCache(source=FakeSource()) as cache:

                @cache.retry_on_auth_error(NAME)
                async def talk(secret: Secret) -> Any:
                    try:
                        heard = yield secret.string
                        try:
                            yield heard
                        except ValueError:
                            yield "caught"
                    finally:
                        closed.append("closed")

                @cache.retry_on_auth_error(NAME)
                async def silent(secret: Secret) -> Any:
                    if secret.string != "value":
                        yield

                generator: Any = talk()
                assert await generator.asend(None) == "value"
                assert await generator.asend("a") == "a"
                assert await generator.athrow(ValueError()) == "caught"
                await generator.aclose()
                assert closed == ["closed"]
                assert [item async for item in talk()] == ["value", None]
                assert [item async for item in silent()] == []

        run(main())
        assert closed == ["closed"] * 2

    def test_what_is_not_asynchronous_is_refused_where_it_is_written(self) -> None:
        cache = AsyncSecretCache(source=FakeSource())
        decorate: Any = cache.retry_on_auth_error(NAME)

        def plain(secret: Secret) -> None: ...

        def generator(secret: Secret) -> Iterator[int]:
            yield 1

        async def nothing() -> None: ...

        @contextlib.asynccontextmanager
        async def manager(secret: Secret) -> AsyncIterator[int]:
            yield 1

        async def generates(secret: Secret) -> AsyncIterator[int]:
            yield 1

        cases: list[tuple[Any, str]] = [
            (plain, "not asynchronous"),
            (generator, "not asynchronous"),
            (functools.partial(plain), "not asynchronous"),
            (nothing, "no parameter 'secret'"),
            (manager, "put @contextmanager above"),
            (classmethod(nothing), "put @classmethod above"),  # type: ignore[arg-type]
            (7, "decorates functions"),
        ]
        for function, message in cases:
            with pytest.raises(InvalidArgument, match=message):
                decorate(function)
        with pytest.raises(InvalidArgument, match="before the yield"):
            cache.retry_on_auth_error(NAME, auth_result=bool)(generates)
