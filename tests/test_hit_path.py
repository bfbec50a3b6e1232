"""What a hit costs, in counts that no machine changes: bytecodes, objects that stay, requests. No times."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from smcache import AsyncSecretCache, CacheConfig, Secret, SecretCache
from smcache.sources import Answer

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from conftest import Clock

    from smcache.testing import SecretsManager


NAME = "prod/db"
HITS = 10_000
FEW = 22  # of some 35 in all, on Python 3.10 to 3.13


def test_a_hit_executes_few_bytecodes_more_than_one_look_up_and_one_comparison() -> None:
    assert bytecodes(sync_hit().get) <= bytecodes(floor()) + FEW


def test_an_awaited_hit_executes_as_few() -> None:
    assert bytecodes(awaited(async_hit().get)) <= bytecodes(floor()) + FEW


@pytest.mark.parametrize("method", ["get_string", "get_json"])
def test_a_value_takes_few_bytecodes_more_than_its_secret(method: str) -> None:
    cache = sync_hit()
    assert bytecodes(getattr(cache, method)) <= bytecodes(cache.get) + FEW


@pytest.mark.parametrize("method", ["get", "get_string", "get_json"])
def test_a_hit_leaves_nothing_behind(method: str) -> None:
    sync_cache, async_cache = sync_hit(), async_hit()
    assert kept_blocks(getattr(sync_cache, method)) < HITS / 100
    assert kept_blocks(awaited(getattr(async_cache, method))) < HITS / 100


def test_a_hit_runs_no_function_but_get() -> None:
    """No lock of ours, no call of the core: what is called besides is written in C."""
    assert functions(sync_hit().get) == functions(awaited(async_hit().get)) == ["get"]


def test_a_cold_read_one_ttl_later_and_one_rotation_later_take_one_request_each(
    aws: SecretsManager, clock: Clock
) -> None:
    aws.create(NAME, "first")
    with SecretCache(aws.client(), config=CacheConfig(ttl=300), clock=clock) as cache:
        counts = []
        for situation in ("cold", "one TTL later", "one rotation later"):
            if situation == "one rotation later":
                aws.put(NAME, "second")
            value = [cache.get_string(NAME) for _ in range(100)][-1]
            counts.append(sum(aws.requests.values()))
            clock.advance(300)
    assert counts == [1, 2, 3]
    assert value == "second"


def test_asynchronous_reads_take_one_request_each_likewise(aws: SecretsManager, clock: Clock) -> None:
    aws.create(NAME, "first")

    async def main() -> None:
        async with AsyncSecretCache(aws.client(), config=CacheConfig(ttl=300), clock=clock) as cache:
            counts = []
            for situation in ("cold", "one TTL later", "one rotation later"):
                if situation == "one rotation later":
                    aws.put(NAME, "second")
                value = [await cache.get_string(NAME) for _ in range(100)][-1]
                counts.append(sum(aws.requests.values()))
                clock.advance(300)
        assert counts == [1, 2, 3]
        assert value == "second"

    asyncio.run(main())


class Source:
    """Answers at once: a hit does not depend on where the value came from."""

    def fetch(self, *_: object) -> Answer[Secret]:
        return Answer(Secret('{"password": "p"}', name=NAME, version_id="v"))

    def close(self) -> None: ...


class AsyncSource:
    """The same for asyncio."""

    async def fetch(self, *_: object) -> Answer[Secret]:
        return Source().fetch()

    def leave_loop(self) -> None: ...

    async def close(self) -> None: ...


def sync_hit() -> SecretCache:
    """Return a cache that holds the secret, its JSON parsed."""
    cache = SecretCache(source=Source())
    cache.get_json(NAME)
    return cache


def async_hit() -> AsyncSecretCache:
    cache = AsyncSecretCache(source=AsyncSource())
    asyncio.run(read_json(cache))
    return cache


async def read_json(cache: AsyncSecretCache) -> None:
    await cache.get_json(NAME)


def awaited(read: Callable[[str], Any]) -> Callable[[str], object]:
    """Return a plain function for a coroutine function that never waits: no event loop is needed."""

    def hit(name: str) -> object:
        try:
            read(name).send(None)
        except StopIteration as end:
            return end.value
        raise AssertionError("a hit has yielded to the loop")

    return hit


def floor() -> Callable[[str], object]:
    """Return the least that a cache with a TTL can do."""
    table = {NAME: SimpleNamespace(value="", deadline=math.inf)}
    clock = time.monotonic

    def look_up(name: str) -> object:
        entry = table[name]
        if clock() < entry.deadline:
            return entry.value
        raise AssertionError

    return look_up


def bytecodes(read: Callable[[str], object]) -> int:
    """Return how many bytecodes a read executes."""
    return [event for event, _ in traced(read)].count("opcode")


def functions(read: Callable[[str], object]) -> list[str]:
    """Return the names of the Python functions a read runs."""
    return [name for event, name in traced(read) if event == "call"]


def traced(read: Callable[[str], object]) -> list[tuple[str, str]]:
    """Return each event of a read and the function it was in, those of `awaited` left out."""
    events: list[tuple[str, str]] = []

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        frame.f_trace_opcodes = True
        if frame.f_code.co_name != "hit":
            events.append((event, frame.f_code.co_name))
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 looks for it when tracing begins
    sys.settrace(trace)
    try:
        read(NAME)
    finally:
        sys.settrace(before)
    return events


def kept_blocks(read: Callable[[str], object]) -> int:
    """Return how many blocks of memory many hits leave allocated; the least of five, as other threads run too."""

    def grown() -> int:
        before = sys.getallocatedblocks()
        for _ in range(HITS):
            read(NAME)
        return sys.getallocatedblocks() - before

    return min(grown() for _ in range(5))
