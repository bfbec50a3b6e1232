"""Many readers at once: all cold, and while a refresh is due."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import peers
from report import Case, Goal, ratios
from sampling import at_once, in_turns

from smcache import AsyncSecretCache
from smcache.testing import latency, secrets_manager

if TYPE_CHECKING:
    from collections.abc import Callable

    from smcache.testing import SecretsManager

NAME = "prod/db"
THREADS = 200
TASKS = 1_000
LATENCY = 0.5  # seconds that AWS takes
READERS = 16
PAUSE = 0.002  # seconds between the reads of one reader: 16 of them do not fight for the interpreter
SHORT_TTL = 4.0  # seconds; a fifth of it, in which a refresh ahead has to be done, is longer than the latency


def cold_threads(*, quick: bool) -> Case:
    """Let 200 threads need one secret that nobody has yet."""
    case = Case(f"{THREADS} threads cold on one secret", note=f"AWS takes {LATENCY} s. Requests are per herd.")
    requests: dict[str, list[float]] = {name: [] for name in peers.ALL}
    with secrets_manager() as aws:
        aws.create(NAME, {"username": "app", "password": "p"})

        def herd(name: str, count: int) -> float:
            client = aws.client()
            client.describe_secret(SecretId=NAME)  # its first request takes longer, and that is not the cache's doing
            read = peers.ALL[name](client, peers.TTL)
            before = sum(aws.requests.values())
            with aws.inject(latency(LATENCY), times=None, operation=None):
                seconds = at_once(count, lambda: read(NAME))
            if count > 1:
                requests[name].append(sum(aws.requests.values()) - before)
            return seconds

        def measuring(name: str, count: int) -> Callable[[], float]:
            return lambda: herd(name, count)

        measure: dict[str, Callable[[], float]] = {
            "start and end of the threads": lambda: at_once(THREADS, lambda: None),
            "smcache, one thread": measuring(peers.SMCACHE, 1),
            **{name: measuring(name, THREADS) for name in peers.ALL},
        }
        taken = in_turns(measure, 1 if quick else 5)
    case.add(taken)
    case.add({f"requests of {name}": values for name, values in requests.items()}, "")
    case.goals = [
        Goal("1 request", requests[peers.SMCACHE], "", most=1),
        Goal(
            "wall ≤ 1.3 x one request and the start of the threads",
            herd_ratios(taken[peers.SMCACHE], taken["smcache, one thread"], taken["start and end of the threads"]),
            most=1.3,
        ),
    ]
    return case


def herd_ratios(herd: list[float], alone: list[float], start: list[float]) -> list[float]:
    """Return how much longer a herd takes than one reader, once its readers have started."""
    return ratios((h - s for h, s in zip(herd, start, strict=True)), alone)


def cold_tasks(*, quick: bool) -> Case:
    """Let 1,000 tasks need one secret that nobody has yet."""
    case = Case(f"{TASKS:,} tasks cold on one secret", note=f"AWS takes {LATENCY} s. Requests are per herd.")
    requests: list[float] = []
    with secrets_manager() as aws:
        aws.create(NAME, {"username": "app", "password": "p"})
        client = aws.client()
        client.describe_secret(SecretId=NAME)

        def herd(count: int) -> float:
            before = sum(aws.requests.values())
            with aws.inject(latency(LATENCY), times=None):
                seconds = asyncio.run(cold_reads(client, count))
            if count > 1:
                requests.append(sum(aws.requests.values()) - before)
            return seconds

        measure: dict[str, Callable[[], float]] = {
            "start and end of the tasks": lambda: asyncio.run(gather(lambda: asyncio.sleep(0), TASKS)),
            "smcache, one task": lambda: herd(1),
            "smcache": lambda: herd(TASKS),
        }
        taken = in_turns(measure, 1 if quick else 5)
    case.add(taken)
    case.add({"requests of smcache": requests}, "")
    case.goals = [
        Goal("1 request", requests, "", most=1),
        Goal(
            "wall ≤ 1.3 x one request and the start of the tasks",
            herd_ratios(taken["smcache"], taken["smcache, one task"], taken["start and end of the tasks"]),
            most=1.3,
        ),
    ]
    return case


async def cold_reads(client: Any, count: int) -> float:
    """Return the seconds that so many tasks take to read from a new cache."""
    async with AsyncSecretCache(client) as cache:
        return await gather(lambda: cache.get(NAME), count)


async def gather(work: Callable[[], Any], count: int) -> float:
    """Return the seconds that so many tasks take."""
    start = time.perf_counter()
    await asyncio.gather(*(asyncio.create_task(work()) for _ in range(count)))
    return time.perf_counter() - start


def refresh_under_load(*, quick: bool) -> Case:
    """Let 16 threads read while the value falls due, and note the longest read."""
    case = Case(
        f"refresh due while {READERS} threads read",
        note=f"AWS takes {LATENCY} s; the TTL is {SHORT_TTL} s. Each figure is the longest read of any thread.",
    )
    with secrets_manager() as aws:
        aws.create(NAME, {"username": "app", "password": "p"})

        def measuring(name: str) -> Callable[[], float]:
            return lambda: longest_read(aws, peers.ALL[name](aws.client(), SHORT_TTL))

        names = (peers.SMCACHE, peers.AWS, peers.POWERTOOLS, peers.CACHETOOLS)
        taken = in_turns({name: measuring(name) for name in names}, 1 if quick else 3)
    case.add(taken)
    case.goals = [Goal("no read as long as 100 ms: nobody waits for AWS", taken[peers.SMCACHE], "s", most=0.1)]
    return case


def longest_read(aws: SecretsManager, read: Callable[[str], Any]) -> float:
    """Return the longest read in a little more than one TTL, in which the value falls due."""
    read(NAME)
    end = time.perf_counter() + SHORT_TTL + 2 * LATENCY
    longest: list[float] = []

    def reader() -> None:
        mine = 0.0
        while (start := time.perf_counter()) < end:
            read(NAME)
            mine = max(mine, time.perf_counter() - start)
            time.sleep(PAUSE)
        longest.append(mine)

    before = sum(aws.requests.values())
    with aws.inject(latency(LATENCY), times=None, operation=None):
        at_once(READERS, reader)
    if sum(aws.requests.values()) == before:
        raise RuntimeError("nothing was refreshed")
    return max(longest)
