"""Minutes of trouble: AWS with faults of every kind, rotations of a real PostgreSQL role, and forks, under load.

    uv run --group bench python benchmarks/soak.py                         # two minutes
    uv run --group bench python benchmarks/soak.py --seconds 10 --seed 7

16 threads and 200 tasks of one process read secrets and open connections all the time. Trouble is bounded, so that
at every moment there is a value in the cache or a credential to be had within the deadline of a fetch: one spell of
it hits each secret at most four times, and AWS then stays well for longer than the longest pause after a fourth
failure. So no read and no connection may fail: the exit code is 1 if one does. The seed says what happens, not how
fast.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import psycopg

from smcache import AsyncSecretCache, CacheConfig, SecretCache
from smcache.testing import (
    hang,
    latency,
    malformed,
    postgres,
    rotate,
    secrets_manager,
    server_error,
    tcp_reset,
    throttle,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from multiprocessing.connection import Connection

    from smcache import Secret
    from smcache.testing import Fault, PostgreSQL, SecretsManager

THREADS = 16
TASKS = 200
NAME = "prod/db"
NAMES = [NAME, *(f"prod/api-{number}" for number in range(8))]
CONFIG = CacheConfig(ttl=1.0)  # seconds: something is always due
CONNECTIONS = 0.05  # the share of operations that open a connection
TASKS_CONNECTING = 40  # at a time: the server takes 220
LONGEST_SPELL = 2.0  # seconds
HITS = 4  # of one spell, for each secret
WELL = 1.0  # seconds between two spells, at least; after the fourth failure a fetch pauses for at most 0.8
CHILD_HANGS = 60.0  # seconds

FAULTS: Mapping[str, Callable[[random.Random], Fault]] = {
    "latency": lambda chance: latency(chance.uniform(0.05, 0.5)),
    "throttle": lambda _: throttle(),
    "5xx": lambda chance: server_error(chance.choice([500, 502, 503])),
    "reset": lambda _: tcp_reset(),
    "garbage": lambda _: malformed(),
    "hang": lambda _: hang(),
}


def chance_of(seed: int, who: str) -> random.Random:
    """Return a generator that draws the same in each run with this seed."""
    return random.Random(f"{seed} {who}")  # noqa: S311 - it picks faults, not passwords


# --- the process that uses the caches -----------------------------------------------------------------------------


@dataclass
class Figures:
    """What the users of the caches have seen."""

    operations: Counter[str] = field(default_factory=Counter)
    longest: dict[str, float] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    calls: dict[str, dict[str, int]] = field(default_factory=dict)


def use(seed: int, seconds: float, report: Connection) -> None:
    """Use the caches for so many seconds; tell when they are warm, and then what happened."""
    logging.getLogger("smcache").addHandler(logging.NullHandler())  # each change of state would be a line
    users = Users(seed)
    users.run(seconds, lambda: report.send("warm"))
    report.send(users.figures)


class Users:
    """Threads, tasks and children that use a cache of each kind."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.figures = Figures()
        self.warm = threading.Event()
        self.over = threading.Event()
        self._lock = threading.Lock()
        # With clients of their own, for the sake of the children.
        self.cache = SecretCache(config=CONFIG)
        self.async_cache = AsyncSecretCache(config=CONFIG)
        self.connect = self.cache.retry_on_auth_error(NAME)(open_connection)
        self.connect_async = self.async_cache.retry_on_auth_error(NAME)(open_async_connection)

    def run(self, seconds: float, begin: Callable[[], object]) -> None:
        """Fill the caches, begin, and go on for so many seconds."""
        for name in NAMES:
            self.cache.get(name)
        self.connect().close()
        tasks = threading.Thread(target=asyncio.run, args=(self._tasks(),))
        tasks.start()
        self.warm.wait()
        begin()
        timer = threading.Timer(seconds, self.over.set)
        threads = [threading.Thread(target=self._thread, args=(number,)) for number in range(THREADS)]
        for thread in [timer, *threads]:
            thread.start()
        self._forks()
        for thread in [timer, tasks, *threads]:
            thread.join()
        self.cache.close()
        metrics = {"threads": self.cache.metrics, "tasks": self.async_cache.metrics}
        self.figures.calls = {who: dict(each.snapshot().calls_by_operation) for who, each in metrics.items()}

    @contextlib.contextmanager
    def _operation(self, kind: str) -> Iterator[None]:
        """Note one operation, how long it takes, and whether it fails."""
        figures, failure = self.figures, ""
        start = time.monotonic()
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever a caller sees is a failure
            failure = f"{kind}: {type(error).__name__}: {error}".strip()
        seconds = time.monotonic() - start
        with self._lock:
            figures.operations[kind] += 1
            figures.longest[kind] = max(seconds, figures.longest.get(kind, 0.0))
            if failure:
                figures.failures[failure] += 1

    def _thread(self, number: int) -> None:
        chance = chance_of(self.seed, f"thread {number}")
        while not self.over.wait(chance.uniform(0, 0.05)):
            if chance.random() < CONNECTIONS:
                with self._operation("connection by a thread"):
                    self.connect().close()
            else:
                with self._operation("read by a thread"):
                    self.cache.get(chance.choice(NAMES))

    async def _tasks(self) -> None:
        room = asyncio.Semaphore(TASKS_CONNECTING)
        async with self.async_cache:
            for name in NAMES:
                await self.async_cache.get(name)
            await (await self.connect_async()).close()
            self.warm.set()
            await asyncio.gather(*(self._task(number, room) for number in range(TASKS)))

    async def _task(self, number: int, room: asyncio.Semaphore) -> None:
        chance = chance_of(self.seed, f"task {number}")
        while not self.over.is_set():
            await asyncio.sleep(chance.uniform(0, 0.6))
            if chance.random() < CONNECTIONS:
                async with room:
                    with self._operation("connection by a task"):
                        await (await self.connect_async()).close()
            else:
                with self._operation("read by a task"):
                    await self.async_cache.get(chance.choice(NAMES))

    def _forks(self) -> None:
        chance = chance_of(self.seed, "forks")
        while not self.over.wait(chance.uniform(0.2, 2)):
            with self._operation("life of a child"):
                self._fork()

    def _fork(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # to fork beside threads is the point
            child = os.fork()
        if not child:
            self._child()
        reaper = threading.Timer(CHILD_HANGS, os.kill, (child, signal.SIGKILL))
        reaper.start()
        _, status = os.waitpid(child, 0)
        reaper.cancel()
        if status:
            raise RuntimeError("it hung" if os.WIFSIGNALED(status) else "it failed")

    def _child(self) -> NoReturn:
        try:
            self.cache.get(NAME)
            self.connect().close()
            self.cache.refresh(NAME)
            asyncio.run(self._tasks_of_child())
        except BaseException:  # noqa: BLE001 - nothing of the parent's may run in it
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    async def _tasks_of_child(self) -> None:
        await self.async_cache.get(NAME)
        await (await self.connect_async()).close()
        await self.async_cache.refresh(NAME)


def open_connection(secret: Secret) -> psycopg.Connection[Any]:
    """Log in with the fields of a secret."""
    return psycopg.connect(**login(secret))


async def open_async_connection(secret: Secret) -> psycopg.AsyncConnection[Any]:
    """Log in with the fields of a secret."""
    return await psycopg.AsyncConnection.connect(**login(secret))


def login(secret: Secret) -> dict[str, Any]:
    """Return the arguments of ``connect``."""
    return {
        "host": secret["host"],
        "port": secret["port"],
        "dbname": secret["dbname"],
        "user": secret["username"],
        "password": secret["password"],
        "sslmode": "disable",
        "connect_timeout": 30,
    }


# --- the process that troubles them ---------------------------------------------------------------------------------


class Trouble:
    """What befalls the users, from a process of its own: a child of theirs would keep the servers' sockets open."""

    def __init__(self, aws: SecretsManager, server: PostgreSQL, seed: int) -> None:
        self.aws = aws
        self.server = server
        self.seed = seed
        self.faults: Counter[str] = Counter()
        self.rotations = 0
        self._over = threading.Event()

    def run(self, seconds: float) -> Figures:
        """Let the users loose for so many seconds, and return what they have seen."""
        self.server.create_role("soak", "first")
        arn = self.aws.create(NAME, self.server.secret("soak", "first"))
        for name in NAMES[1:]:
            self.aws.create(name, "key")
        spawn = multiprocessing.get_context("spawn")
        report, theirs = spawn.Pipe(duplex=False)
        users = spawn.Process(target=use, args=(self.seed, seconds, theirs), daemon=True)
        users.start()
        theirs.close()
        report.recv()
        threads = [threading.Thread(target=self._spells), threading.Thread(target=self._rotations, args=(arn,))]
        for thread in threads:
            thread.start()
        try:
            figures: Figures = report.recv()
        finally:
            self._over.set()
            for thread in threads:
                thread.join()
        users.join()
        return figures

    def _spells(self) -> None:
        """Let AWS be in trouble now and then; those who rotate say the ARN, and are spared."""
        chance = chance_of(self.seed, "spells")
        while True:
            kind, lasts = chance.choice(list(FAULTS)), chance.uniform(0.1, LONGEST_SPELL)
            fault = FAULTS[kind](chance)
            with contextlib.ExitStack() as stack:
                injections = [self.aws.inject(fault, HITS, operation=None, secret_id=name) for name in NAMES]
                for injection in injections:
                    stack.enter_context(injection)
                self._over.wait(lasts)
            self.faults[kind] += sum(injection.used for injection in injections)
            if self._over.wait(chance.uniform(WELL, 2 * WELL)):
                return

    def _rotations(self, arn: str) -> None:
        chance = chance_of(self.seed, "rotations")
        client = self.aws.client()
        with self.server.admin() as admin:
            while not self._over.wait(chance.uniform(0.5, 3)):
                rotate(client, arn, admin, dwell=chance.uniform(0, 0.5))
                self.rotations += 1


def listed(counts: Mapping[str, int]) -> str:
    """Return a total and what it is made of."""
    parts = ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))
    return f"{sum(counts.values()):,}" + (f" ({parts})" if parts else "")


def main() -> int:
    """Run a soak and print what happened; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with secrets_manager() as aws, postgres() as server:
        os.environ.update(aws.environ)
        trouble = Trouble(aws, server, arguments.seed)
        figures = trouble.run(arguments.seconds)
    print("operations:", listed(figures.operations))
    print("faults:", listed(trouble.faults))
    print("rotations:", trouble.rotations)
    for who, calls in figures.calls.items():
        print(f"API calls of {who}:", listed(calls))
    print("failures while a valid credential existed:", listed(figures.failures))
    for kind, seconds in sorted(figures.longest.items()):
        print(f"longest {kind}: {seconds:.3f} s")
    return 1 if figures.failures else 0


if __name__ == "__main__":
    sys.exit(main())
