"""What most tests stand on: real servers, a clock they move by hand, and caches of each kind, closed at the end."""

from __future__ import annotations

import asyncio
import functools
import math
import threading
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.config import Config

from smcache import AsyncSecretCache, CacheConfig, SecretCache, _recovery
from smcache.testing import postgres, secrets_manager

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence

    from typing_extensions import Self

    from smcache.testing import PostgreSQL, SecretsManager

CANARY = "canary-" + "7f3a" * 4


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--uvloop", action="store_true", help="run what is asynchronous in uvloop's event loop")


@pytest.fixture
def new_loop(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """Make event loops of the kind the run is for."""
    if not request.config.getoption("--uvloop"):
        return asyncio.new_event_loop
    import uvloop  # noqa: PLC0415 - in a dependency group of its own

    make: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return make


@pytest.fixture
def canary() -> str:
    """A value that must show up nowhere."""
    return CANARY


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail every test of which anything printed, logged or reported shows the canary."""
    report = yield
    shown = report.longreprtext + "".join(text for _, text in report.sections)
    if CANARY in shown:
        report.outcome = "failed"
        report.longrepr = "the value of a secret was printed, logged or reported"
        report.sections = []
    return report


@pytest.fixture(scope="session")
def aws_server() -> Iterator[SecretsManager]:
    with secrets_manager() as server:
        yield server


@pytest.fixture
def aws(aws_server: SecretsManager) -> Iterator[SecretsManager]:
    """An empty Secrets Manager, over HTTP."""
    aws_server.reset()
    yield aws_server
    aws_server.reset()


@pytest.fixture(scope="session")
def pg() -> Iterator[PostgreSQL]:
    """A PostgreSQL that demands passwords."""
    with postgres() as server:
        yield server


class Clock:
    """Seconds that pass when a test says so; ``sleep`` lets them pass at once."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    async def async_sleep(self, seconds: float) -> None:
        self.sleep(seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def aws_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long AWS takes on this machine, AWSCURRENT is not asked for once more: for API calls counted exactly.

    Caches that live by ``clock`` need it not.
    """
    monkeypatch.setattr(_recovery, "QUICK", math.inf)


class LoopThread:
    """An event loop in a thread of its own, so that tests written for threads can use what runs in it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._thread = threading.Thread(target=self.loop.run_forever, name="test-loop", daemon=True)
        self._thread.start()
        self.exits = AsyncExitStack()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def stop(self) -> None:
        self.run(self.exits.aclose())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(30)
        self.loop.close()


class BlockingCache:
    """An ``AsyncSecretCache`` in a loop's thread, with the methods of ``SecretCache``."""

    def __init__(self, cache: AsyncSecretCache, loop: LoopThread) -> None:
        self.cache = cache
        self.loop = loop
        self.metrics = cache.metrics
        self.on_rotation = cache.on_rotation
        self.subscribe = cache.subscribe
        for name in (
            "get",
            "get_string",
            "get_json",
            "get_binary",
            "refresh",
            "renew",
            "prefetch",
            "invalidate",
            "close",
        ):
            setattr(self, name, self._blocking(getattr(cache, name)))

    def __repr__(self) -> str:
        return repr(self.cache)

    def __enter__(self) -> Self:
        self.loop.run(self.cache.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.run(self.cache.__aexit__(None, None, None))

    def retry_on_auth_error(self, secret_id: str, **options: Any) -> Callable[..., Any]:
        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(function)
            async def connect(*args: Any, **kwargs: Any) -> Any:
                return await asyncio.to_thread(function, *args, **kwargs)

            return self._blocking(self.cache.retry_on_auth_error(secret_id, **options)(connect))

        return decorate

    def _blocking(self, call: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
        @functools.wraps(call)
        def run(*args: Any, **kwargs: Any) -> Any:
            return self.loop.run(call(*args, **kwargs))

        return run


class MakeClient(Protocol):
    def __call__(self, *, config: Config = ...) -> Any: ...


class MakeCache(Protocol):
    def __call__(
        self, *, client: Any = None, source: Any = None, regions: Sequence[str] = (), **config: Any
    ) -> SecretCache: ...


@pytest.fixture
def kind() -> str:
    """The kind of cache that ``make_cache`` makes; the contract suite asks for all of ``KINDS``."""
    return "threads"


@pytest.fixture
def loop_thread(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> Iterator[LoopThread]:
    thread = LoopThread(new_loop())
    yield thread
    thread.stop()


@pytest.fixture
def make_client(aws: SecretsManager, kind: str, loop_thread: LoopThread) -> MakeClient:
    """Make clients of the kind that the cache takes."""

    def make_aio(config: Config | None = None) -> Any:
        config = AioConfig(retries={"total_max_attempts": 1}).merge(config or Config())
        login = {"endpoint_url": aws.endpoint_url, "region_name": aws.region}
        login |= {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
        making = get_session().create_client("secretsmanager", **login, config=config)
        return loop_thread.run(loop_thread.exits.enter_async_context(making))

    return make_aio if kind == "aiobotocore" else aws.client


@pytest.fixture
def make_cache(  # noqa: PLR0917 - fixtures
    aws: SecretsManager,
    make_client: MakeClient,
    clock: Clock,
    kind: str,
    loop_thread: LoopThread,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[MakeCache]:
    """Make caches over HTTP that live by the test's clock, without jitter unless a test wants it."""
    with ExitStack() as stack:

        def make(*, client: Any = None, source: Any = None, regions: Sequence[str] = (), **config: Any) -> Any:
            if regions:
                for name, value in aws.environ.items():
                    monkeypatch.setenv(name, value)
            elif client is None and source is None:
                client = make_client()
            options: dict[str, Any] = {
                "source": source,
                "regions": regions,
                "config": CacheConfig(**{"jitter": 0.0, **config}),
                "clock": clock,
                "jitter": lambda: 0.5,
            }
            cache: Any
            if kind == "threads":
                cache = SecretCache(client, sleep=clock.sleep, **options)
            else:
                cache = BlockingCache(AsyncSecretCache(client, sleep=clock.async_sleep, **options), loop_thread)
            stack.callback(cache.close)
            return cache

        yield make


class WaitUntilIdle(Protocol):
    def __call__(self, cache: SecretCache) -> None: ...


@pytest.fixture
def wait_until_idle() -> WaitUntilIdle:
    """Wait for the fetches and listeners of a cache that no reader waits for."""

    def wait(cache: Any) -> None:
        if isinstance(cache, BlockingCache):

            async def tasks_end() -> None:
                while tasks := cache.cache._fetching | cache.cache._telling:
                    await asyncio.gather(*tasks, return_exceptions=True)
                    await asyncio.sleep(0)  # gather() of what has ended does not let them leave the set

            cache.loop.run(tasks_end())
        while ours := our_threads():
            ours[0].join(30)

    return wait


def our_threads() -> list[threading.Thread]:
    """Return the threads that caches have started."""
    return [thread for thread in threading.enumerate() if thread.name in ("smcache-fetch", "smcache-events")]


class Together(Protocol):
    def __call__(self, count: int, call: Callable[[], Any], *, meanwhile: Callable[[], None] = ...) -> list[Any]: ...


@pytest.fixture
def together() -> Together:
    """Call something from many threads at the same moment; return what each got, exceptions included.

    ``meanwhile`` runs when all threads have been started.
    """

    def run(count: int, call: Callable[[], Any], *, meanwhile: Callable[[], None] = lambda: None) -> list[Any]:
        barrier = threading.Barrier(count)
        results: list[Any] = []

        def one() -> None:
            barrier.wait(30)
            try:
                results.append(call())
            except Exception as error:  # noqa: BLE001 - the test looks at it
                results.append(error)

        threads = [threading.Thread(target=one, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        meanwhile()
        for thread in threads:
            thread.join(30)
        assert len(results) == count
        return results

    return run
