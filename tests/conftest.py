"""What most tests stand on: real servers, a clock they move by hand, and caches that are closed at the end."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from smcache import CacheConfig, SecretCache
from smcache.testing import postgres, secrets_manager

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from smcache.testing import PostgreSQL, SecretsManager


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


class MakeCache(Protocol):
    def __call__(self, *, client: Any = None, source: Any = None, **config: Any) -> SecretCache: ...


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


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_cache(aws: SecretsManager, clock: Clock) -> Iterator[MakeCache]:
    """Make caches over HTTP that live by the test's clock, without jitter unless a test wants it."""
    with ExitStack() as stack:

        def make(*, client: Any = None, source: Any = None, **config: Any) -> SecretCache:
            if client is None and source is None:
                client = aws.client()
            config = {"jitter": 0.0, **config}
            cache = SecretCache(
                client,
                source=source,
                config=CacheConfig(**config),
                clock=clock,
                sleep=clock.sleep,
                jitter=lambda: 0.5,
            )
            stack.callback(cache.close)
            return cache

        yield make


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


CANARY = "canary-" + "7f3a" * 4


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
