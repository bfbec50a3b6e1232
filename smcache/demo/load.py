"""Threads or tasks that connect, rotations meanwhile, and what was measured of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from smcache.demo.contenders import open_connection
from smcache.metrics import CostModel
from smcache.testing import rotate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from smcache.demo.contenders import Contender
    from smcache.demo.view import Display
    from smcache.testing import PostgreSQL, SecretsManager

__all__ = [
    "PLAN",
    "Attempt",
    "Figures",
    "Kind",
    "Report",
    "Rotation",
    "Run",
    "Scene",
    "in_tasks",
    "in_threads",
    "join_tasks",
    "join_threads",
    "measure",
]

Kind: TypeAlias = Literal["threads", "tasks"]
Strategy: TypeAlias = Literal["single-user", "alternating-users"]

PLAN: tuple[Strategy, ...] = (*("single-user",) * 3, *("alternating-users",) * 2)
DWELL = 0.5  # seconds between the steps of a rotation
REST = 1.1  # seconds between rotations: a little more than PLAIN_TTL
EDGE = 0.5  # seconds before the first rotation and after the last
PACE = 0.004  # seconds between connections, of all workers together: two slow cores do no more without a queue
WAIT_PROMISED = 0.5  # seconds, besides one failed and one good login
END_WITHIN = 40.0  # seconds that workers have to finish their last connection


@dataclass(frozen=True)
class Scene:
    """What both contenders meet with.

    Attributes:
        aws: Where the secrets are.
        database: Where the passwords are.
        workers: How many threads or tasks connect.
        display: Shows how it goes.
        sleep: Waits so many seconds, and meanwhile calls what it is given now and then.
    """

    aws: SecretsManager
    database: PostgreSQL
    workers: int
    display: Display
    sleep: Callable[[float, Callable[[], object]], None]

    @property
    def first_pauses(self) -> list[float]:
        """How long each worker waits before its first connection, in seconds."""
        return [number * PACE for number in range(self.workers)]

    @property
    def pause(self) -> float:
        """How long each worker waits between two connections, in seconds."""
        return self.workers * PACE


@dataclass(frozen=True, slots=True)
class Attempt:
    """One connection that a worker asked for; times are of ``time.perf_counter``."""

    started: float
    ended: float
    failure: str  # empty if there was none


@dataclass(slots=True)
class Rotation:
    """One rotation, under way or done."""

    strategy: Strategy
    started: float
    calls_before: int  # API calls
    step: str = ""  # the last one done
    version_id: str = ""  # the new one
    ended: float | None = None


@dataclass
class Run:
    """The run of one contender."""

    contender: Contender
    attempts: list[Attempt] = field(default_factory=list)
    rotations: list[Rotation] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured of a run so far. Times are in seconds, and None before there is any.

    Attributes:
        name: The contender.
        rotations: How many rotations have ended.
        connections_made: Connections opened, after a retry or without.
        connections_failed: Connections that failed in the eyes of the caller.
        failed_percent: The share of those.
        failed_single_user: Those that failed while a single user's password was rotated.
        failed_alternating_users: Those that failed while users alternated.
        first_failure: What the first one failed of; empty if none did.
        logins_rejected: Logins the database refused, callers having noticed or not.
        longest_outage_seconds: The longest time in which no attempt succeeded and at least one failed.
        median_connect_seconds: Of the connections made.
        worst_connect_seconds: Of the connections made.
        worst_connect_in_rotation_seconds: Of those made during a rotation.
        promised_connect_seconds: What that stays under: 0.5 s, a failed and a good login (medians).
        api_calls: Requests sent to Secrets Manager.
        api_calls_by_rotation: The same, from the start of each rotation to the next.
        cost_usd: What AWS takes for them.
    """

    name: str
    rotations: int
    connections_made: int
    connections_failed: int
    failed_percent: float
    failed_single_user: int
    failed_alternating_users: int
    first_failure: str
    logins_rejected: int
    longest_outage_seconds: float
    median_connect_seconds: float | None
    worst_connect_seconds: float | None
    worst_connect_in_rotation_seconds: float | None
    promised_connect_seconds: float | None
    api_calls: int
    api_calls_by_rotation: tuple[int, ...]
    cost_usd: float


@dataclass(frozen=True)
class Report:
    """How the demo went."""

    workers: int
    kind: Kind
    seconds: float
    smcache: Figures
    ttl_cache: Figures

    @property
    def ok(self) -> bool:
        """Whether smcache connected and never failed to."""
        return self.smcache.connections_made > 0 and self.smcache.connections_failed == 0


def in_threads(contend: Callable[..., AbstractContextManager[Contender]], scene: Scene) -> Figures:
    """Let threads connect through a contender during all rotations of the plan."""
    with contend(scene.aws, scene.database) as contender:
        run = Run(contender)
        done = threading.Event()
        threads = [
            threading.Thread(
                target=_connect_in_thread, args=(run, done, first, scene.pause), name="smcache-demo", daemon=True
            )
            for first in scene.first_pauses
        ]
        for thread in threads:
            thread.start()
        try:
            _rotate_by_plan(run, scene)
        finally:
            done.set()
            join_threads(threads, run)
    return measure(run)


def in_tasks(contend: Callable[..., AbstractAsyncContextManager[Contender]], scene: Scene) -> Figures:
    """Let the tasks of one event loop connect through a contender during all rotations of the plan."""

    async def main() -> Run:
        async with contend(scene.aws, scene.database) as contender:
            run = Run(contender)
            done = asyncio.Event()
            tasks = [
                asyncio.create_task(_connect_in_task(run, done, first, scene.pause)) for first in scene.first_pauses
            ]
            try:
                await asyncio.to_thread(_rotate_by_plan, run, scene)
            finally:
                done.set()
                await join_tasks(tasks, run)
        return run

    return measure(asyncio.run(main()))


def _connect_in_thread(run: Run, done: threading.Event, first: float, pause: float) -> None:
    """Open and use connections, as one thread of an application."""
    done.wait(first)
    while not done.is_set():
        with _attempt(run) as connected:
            connection = run.contender.connect()
            connected()
            with connection:
                connection.execute("SELECT 1")
        done.wait(pause)


async def _connect_in_task(run: Run, done: asyncio.Event, first: float, pause: float) -> None:
    """Open and use connections, as one task of an application."""
    await asyncio.sleep(first)
    while not done.is_set():
        with _attempt(run) as connected:
            connection = await run.contender.connect()
            connected()
            async with connection:
                await connection.execute("SELECT 1")
        await asyncio.sleep(pause)


def join_threads(threads: Sequence[threading.Thread], run: Run) -> None:
    """Wait for threads to end; one that does not is a failed connection."""
    asked = time.perf_counter()
    for thread in threads:
        thread.join(max(0.0, asked + END_WITHIN - time.perf_counter()))
        if thread.is_alive():
            _miss(run, asked)


async def join_tasks(tasks: Sequence[asyncio.Task[None]], run: Run) -> None:
    """Wait for tasks to end; one that does not is a failed connection."""
    asked = time.perf_counter()
    _, late = await asyncio.wait(tasks, timeout=END_WITHIN)
    for task in late:
        task.cancel()
        _miss(run, asked)


def _miss(run: Run, asked: float) -> None:
    run.attempts.append(Attempt(asked, time.perf_counter(), f"no answer within {END_WITHIN:g} s"))


@contextlib.contextmanager
def _attempt(run: Run) -> Iterator[Callable[[], None]]:
    """Take down the connection that the block opens and uses; it calls what this yields when it has opened it."""
    started = time.perf_counter()
    connected: list[float] = []
    failure = ""
    try:
        yield lambda: connected.append(time.perf_counter())
    except Exception as error:  # noqa: BLE001 - whatever it is, this connection has failed
        failure = " ".join(f"{type(error).__name__}: {error}".split())
    ended = time.perf_counter() if failure else connected[0]
    run.attempts.append(Attempt(started, ended, failure))


def _rotate_by_plan(run: Run, scene: Scene) -> None:
    """Rotate the password of a contender's role, again and again."""
    client = scene.aws.client()

    def sleep(seconds: float) -> None:
        scene.sleep(seconds, lambda: scene.display.tick(run))

    with scene.database.admin() as connection:
        scene.display.begin(run)
        for strategy in PLAN:
            sleep(REST if run.rotations else EDGE)
            rotation = Rotation(strategy, time.perf_counter(), run.contender.api_calls())
            run.rotations.append(rotation)

            def on_step(step: str, version_id: str, rotation: Rotation = rotation) -> None:
                rotation.step, rotation.version_id = step, version_id

            rotate(
                client,
                run.contender.secret_id,
                connection,
                strategy=strategy,
                dwell=DWELL,
                sleep=sleep,
                on_step=on_step,
                login=open_connection,
            )
            rotation.ended = time.perf_counter()
            scene.display.rotated(run)
        sleep(EDGE)


def measure(run: Run) -> Figures:
    """Work out the figures of a run, which may still be under way."""
    attempts, rotations = list(run.attempts), list(run.rotations)
    failed = [attempt for attempt in attempts if attempt.failure]
    made = [attempt for attempt in attempts if not attempt.failure]
    times = [attempt.ended - attempt.started for attempt in made]
    in_rotation = [
        attempt.ended - attempt.started
        for attempt in made
        if any(attempt.ended > each.started and attempt.started < (each.ended or attempt.ended) for each in rotations)
    ]
    alternate_from = min((each.started for each in rotations if each.strategy == "alternating-users"), default=None)
    alternating = [each for each in failed if alternate_from is not None and each.started >= alternate_from]
    logins = run.contender.logins
    rejected, good = list(logins.rejected), list(logins.good)
    calls = run.contender.api_calls()
    marks = [*(each.calls_before for each in rotations), calls]
    return Figures(
        name=run.contender.name,
        rotations=sum(each.ended is not None for each in rotations),
        connections_made=len(made),
        connections_failed=len(failed),
        failed_percent=100 * len(failed) / max(1, len(attempts)),
        failed_single_user=len(failed) - len(alternating),
        failed_alternating_users=len(alternating),
        first_failure=min(failed, key=lambda each: each.ended).failure if failed else "",
        logins_rejected=len(rejected),
        longest_outage_seconds=_longest_outage(attempts),
        median_connect_seconds=statistics.median(times) if times else None,
        worst_connect_seconds=max(times, default=None),
        worst_connect_in_rotation_seconds=max(in_rotation, default=None),
        promised_connect_seconds=(
            WAIT_PROMISED + statistics.median(rejected) + statistics.median(good) if rejected and good else None
        ),
        api_calls=calls,
        api_calls_by_rotation=tuple(after - before for before, after in itertools.pairwise(marks)),
        cost_usd=CostModel().calls(calls),
    )


def _longest_outage(attempts: Sequence[Attempt]) -> float:
    """Return the longest time from the start of a failed attempt to the end of the next that succeeded."""
    longest, since = 0.0, None
    for attempt in sorted(attempts, key=lambda each: each.ended):
        if attempt.failure and since is None:
            since = attempt.started
        if since is not None:
            longest = max(longest, attempt.ended - since)
        if not attempt.failure:
            since = None
    return longest
