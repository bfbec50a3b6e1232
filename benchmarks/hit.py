"""What a hit costs, beside the floor: a function with one dictionary look-up and one comparison with the clock.

    python benchmarks/hit.py

All are timed in turn in the same run; the figures are medians of the rounds, and ratios to the floor.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smcache import AsyncSecretCache, Secret, SecretCache
from smcache.sources import Answer

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "prod/db"
ROUNDS = 30
CALLS = 20_000
SECRET = Secret('{"password": "p"}', name=NAME, version_id="v")


class Source:
    """Always the same value."""

    def fetch(self, *_: object) -> Answer[Secret]:
        return Answer(SECRET)

    def close(self) -> None: ...


class AsyncSource:
    """Always the same value, for asyncio."""

    async def fetch(self, *_: object) -> Answer[Secret]:
        return Answer(SECRET)

    def leave_loop(self) -> None: ...

    async def close(self) -> None: ...


@dataclass
class Entry:
    """What the floor looks up."""

    value: Secret
    deadline: float


def make_floor() -> Callable[[str], Secret]:
    """Return the least that a cache with a TTL can do."""
    table = {NAME: Entry(SECRET, float("inf"))}
    clock = time.monotonic

    def floor(name: str) -> Secret:
        entry = table[name]
        if clock() < entry.deadline:
            return entry.value
        raise AssertionError

    return floor


def time_calls(call: Callable[[str], object]) -> float:
    """Return nanoseconds per call."""
    rounds = range(CALLS)
    start = time.perf_counter_ns()
    for _ in rounds:
        call(NAME)
    return (time.perf_counter_ns() - start) / CALLS


async def time_awaits(call: Callable[[str], Any]) -> float:
    """Return nanoseconds per awaited call."""
    rounds = range(CALLS)
    start = time.perf_counter_ns()
    for _ in rounds:
        await call(NAME)
    return (time.perf_counter_ns() - start) / CALLS


async def main() -> None:
    """Time all in turn, and print them beside each other."""
    floor = make_floor()
    with SecretCache(source=Source()) as cache:
        async with AsyncSecretCache(source=AsyncSource()) as async_cache:
            calls: dict[str, Callable[[str], object]] = {
                "floor": floor,
                "get": cache.get,
                "get_string": cache.get_string,
                'get_json(...)["password"]': lambda name: cache.get_json(name)["password"],
            }
            times: dict[str, list[float]] = {name: [] for name in [*calls, "await get"]}
            cache.get(NAME)
            await async_cache.get(NAME)
            for _ in range(ROUNDS):
                for name, call in calls.items():
                    times[name].append(time_calls(call))
                times["await get"].append(await time_awaits(async_cache.get))
    least = statistics.median(times["floor"])
    for name, figures in times.items():
        middle = statistics.median(figures)
        print(f"{name:28} {middle:6.0f} ns   {min(figures):6.0f}-{max(figures):.0f}   {middle / least:.2f} x the floor")


if __name__ == "__main__":
    asyncio.run(main())
