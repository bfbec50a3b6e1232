"""What a read costs that needs no request."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import peers
from report import Case, Goal, bars, ratios
from sampling import at_once, awaiting, in_processes, in_turns, statement

from smcache import AsyncSecretCache, CacheConfig, Secret, SecretCache
from smcache.sources import Answer
from smcache.testing import secrets_manager

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "prod/db"
FLOOR = "floor: one look-up, one comparison"
GET = "smcache get"
LONG = peers.TTL * 1000  # nothing expires meanwhile
PROCESSES = 10


def one_thread(*, quick: bool) -> Case:
    """Compare all contenders, each read as its users write it."""
    note = "boto3 asks the test server, which is nearer than AWS and slower."
    case = Case("hit, one thread", note=note, file="hit.svg", draw=bars)
    taken = in_processes(_one_thread, 5 if quick else 10, 1 if quick else PROCESSES)
    case.add(taken)
    ours = taken[GET]
    case.goals = [
        Goal("get ≤ 1.7 x the floor", ratios(ours, taken[FLOOR]), most=1.7),
        Goal(f"≥ 50 x faster than {peers.AWS}", ratios(taken[peers.AWS], ours), least=50),
        Goal(f"≥ 6 x faster than {peers.POWERTOOLS}", ratios(taken[peers.POWERTOOLS], ours), least=6),
        *(
            Goal(f"{name.removeprefix('smcache ')} ≤ 1.5 x get", ratios(taken[name], ours), most=1.5)
            for name in ("smcache get_string", 'smcache get_json(...)["password"]')
        ),
    ]
    return case


def _one_thread(rounds: int) -> dict[str, list[float]]:
    with secrets_manager() as aws, SecretCache(aws.client()) as cache:
        aws.create(NAME, {"username": "app", "password": "p"})
        measure = {
            FLOOR: statement("read(name)", read=peers.floor([NAME]), name=NAME),
            GET: warm(cache.get),
            "smcache get_string": warm(cache.get_string),
            'smcache get_json(...)["password"]': warm(cache.get_json, 'read(name)["password"]'),
            **{name: warm(make(aws.client(), LONG)) for name, make in peers.ALL.items() if name != peers.SMCACHE},
        }
        return in_turns(measure, rounds)


def warm(read: Callable[[str], Any], code: str = "read(name)") -> Callable[[], float]:
    """Read once, so that all others are hits; return what measures them."""
    read(NAME)
    return statement(code, read=read, name=NAME)


def asynchronous(*, quick: bool) -> Case:
    """Compare an awaited hit with the floor."""
    case = Case("hit, async")
    taken = in_processes(_asynchronous, 5 if quick else 10, 1 if quick else PROCESSES)
    case.add(taken)
    case.goals = [Goal("≤ 2.5 x the floor", ratios(taken["smcache await get"], taken[FLOOR]), most=2.5)]
    return case


def _asynchronous(rounds: int) -> dict[str, list[float]]:
    loop = asyncio.new_event_loop()
    cache = AsyncSecretCache(source=AsyncSource())
    loop.run_until_complete(cache.get(NAME))
    measure = {
        FLOOR: statement("read(name)", read=peers.floor([NAME]), name=NAME),
        "smcache await get": awaiting(cache.get, NAME, loop),
    }
    taken = in_turns(measure, rounds)
    loop.run_until_complete(cache.close())
    loop.close()
    return taken


def threads(*, quick: bool) -> Case:
    """Compare 1, 4 and 16 threads that share the same reads."""
    case = Case("hits from 1, 4, 16 threads", note="Seconds per read, all threads together.")
    # By speed: each takes some 100 ms, of which starting 16 threads is less than one.
    reads = {peers.SMCACHE: 800_000, peers.CACHETOOLS: 100_000, peers.AWS: 3_000}
    with secrets_manager() as aws:
        aws.create(NAME, {"username": "app", "password": "p"})
        measure = {}
        for name, shared_reads in reads.items():
            read = peers.ALL[name](aws.client(), LONG)
            read(NAME)
            for count in (1, 4, 16):
                measure[f"{name}, {count} threads"] = shared(read, shared_reads, count)
        taken = in_turns(measure, 3 if quick else 30)
    case.add(taken)
    alone = taken["smcache, 1 threads"]
    for count in (4, 16):
        throughput = ratios(alone, taken[f"smcache, {count} threads"])
        # 5 % are the switches between threads.
        case.goals.append(Goal(f"throughput of {count} threads ≥ that of one (less 5 %)", throughput, least=0.95))
    return case


def shared(read: Callable[[str], Any], reads: int, count: int) -> Callable[[], float]:
    """Return what measures the seconds per read when so many threads share the reads."""
    share = reads // count

    def work() -> None:
        for _ in range(share):
            read(NAME)

    return lambda: at_once(count, work) / (share * count)


def table_size(*, quick: bool) -> Case:
    """Compare tables of 1, 1,000 and 10,000 secrets."""
    case = Case("hit with 1, 1,000, 10,000 secrets", note="Each read is of another secret than the one before.")
    taken = in_processes(_table_size, 5, 1 if quick else PROCESSES)
    case.add(taken)
    for more in ("1,000", "10,000"):
        growth = ratios(taken[f"smcache get, {more}"], taken["smcache get, 1"])
        floors = ratios(taken[f"floor, {more}"], taken["floor, 1"])
        title = f"with {more} as fast as with 1: grows no more than a dictionary"
        case.goals.append(Goal(title, ratios(growth, floors), most=1.1))
    return case


def _table_size(rounds: int) -> dict[str, list[float]]:
    measure = {}
    for size in (1, 1_000, 10_000):
        names = [f"prod/db-{number}" for number in range(size)] * (10_000 // size)
        cache = SecretCache(source=Source(), config=CacheConfig(max_size=size))
        floor = peers.floor(names)
        for name in names[:size]:
            cache.get(name)
        for title, read in ((f"smcache get, {size:,}", cache.get), (f"floor, {size:,}", floor)):
            measure[title] = statement("for name in names: read(name)", read=read, names=names)
    return {name: [each / 10_000 for each in values] for name, values in in_turns(measure, rounds).items()}


def secret(name: str) -> Secret:
    """Return a secret as AWS might have it."""
    return Secret('{"password": "p"}', name=name, version_id="v", arn=f"arn:{name}")


class Source:
    """Answers at once: hits do not depend on where the first read got the value."""

    def fetch(self, secret_id: str, *_: object) -> Answer[Secret]:
        return Answer(secret(secret_id))

    def close(self) -> None: ...


class AsyncSource:
    """The same for asyncio."""

    async def fetch(self, secret_id: str, *_: object) -> Answer[Secret]:
        return Answer(secret(secret_id))

    def leave_loop(self) -> None: ...

    async def close(self) -> None: ...
