"""Connecting to a real PostgreSQL while its password is rotated for a single user, in half-second steps."""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import peers
import psycopg
from aws_secretsmanager_caching import SecretCache as AWSSecretCache
from report import Case, Goal, ratios

from smcache import SecretCache
from smcache.testing import postgres, rotate, secrets_manager

if TYPE_CHECKING:
    from collections.abc import Callable

    from smcache import Secret
    from smcache.testing import PostgreSQL, SecretsManager

THREADS = 4
PAUSE = 0.02  # seconds between the connections of one thread
DWELL = 0.5  # seconds between the steps of a rotation
POLL = 0.25

REFRESH_AND_RETRY = f"{peers.AWS}, refresh and retry"
REFETCH_AND_WAIT = "boto3, fetch again and wait"
NEVER = f"{peers.CACHETOOLS}, no retry"


def connects(*, quick: bool) -> Case:
    """Let threads connect in turns with and without a rotation, through each contender."""
    case = Case(
        "connect through a rotation",
        note=f"{THREADS} threads open {1 / PAUSE:.0f} connections a second each. 'quiet' is the time before a rotation "
        "of the same length.",
    )
    runs: dict[str, list[Run]] = {name: [] for name in CONTENDERS}
    with secrets_manager() as aws, postgres() as server:
        users = {name: f"app{number}" for number, name in enumerate(CONTENDERS)}
        for user in users.values():
            server.create_role(user, "first")
            aws.create(user, server.secret(user, "first"))
        for _ in range(1 if quick else 5):
            for name, contender in CONTENDERS.items():
                connect = contender(aws.client(), users[name])  # anew: not all of them live to see a second rotation
                runs[name].append(through_a_rotation(aws, server, users[name], connect))
    for name, each in runs.items():
        case.add({f"{name}: p99 quiet": [p99(run.quiet) for run in each]})
        case.add({f"{name}: p99 in a rotation": [p99(run.rotating) for run in each]})
        case.add({f"{name}: slowest in a rotation": [max(run.rotating) for run in each]})
        case.add({f"{name}: connections failed": [float(run.failed) for run in each]}, "")
    ours, theirs = runs[peers.SMCACHE], runs[REFRESH_AND_RETRY]
    slowdown = ratios((p99(run.rotating) for run in ours), (p99(run.quiet) for run in ours))
    case.goals = [
        Goal("0 failures", [sum(float(run.failed) for run in ours)], "", most=0),
        Goal("p99 ≤ 3 x p99 without rotation", slowdown, most=3),
        Goal(f"the peer takes 2.5 to 5 s: {REFRESH_AND_RETRY}", [max(run.rotating) for run in theirs], "s", 2.5, 5.2),
    ]
    return case


@dataclass
class Run:
    """The seconds that connections took to open, and how many failed."""

    quiet: list[float]
    rotating: list[float]
    failed: int


def p99(seconds: list[float]) -> float:
    """Return the time that 99 % of connections stay under."""
    return statistics.quantiles(seconds, n=100, method="inclusive")[98]


def through_a_rotation(aws: SecretsManager, server: PostgreSQL, user: str, connect: Callable[[], Any]) -> Run:
    """Connect all the time: for the length of a rotation before it, and while it lasts."""
    done = threading.Event()
    taken: list[tuple[float, float]] = []
    failed = itertools.count()

    def worker() -> None:
        while not done.wait(PAUSE):
            start = time.perf_counter()
            try:
                connection = connect()
            except psycopg.OperationalError:
                next(failed)
                continue
            taken.append((start, time.perf_counter() - start))
            connection.close()

    threads = [threading.Thread(target=worker) for _ in range(THREADS)]
    with contextlib.closing(server.admin()) as admin:
        connect().close()
        for thread in threads:
            thread.start()
        time.sleep(4 * DWELL)
        began = time.perf_counter()
        rotate(aws.client(), user, admin, dwell=DWELL)
        time.sleep(DWELL)
        done.set()
        for thread in threads:
            thread.join()
    return Run(
        [seconds for start, seconds in taken if start < began],
        [seconds for start, seconds in taken if start >= began],
        next(failed),
    )


def open_connection(login: Any) -> psycopg.Connection[Any]:
    """Log in with the fields of a secret."""
    return psycopg.connect(
        host=login["host"],
        port=login["port"],
        dbname=login["dbname"],
        user=login["username"],
        password=login["password"],
    )


def smcache(client: Any, secret_id: str) -> Callable[[], Any]:
    """Return a decorated function."""

    @SecretCache(client).retry_on_auth_error(secret_id)
    def connect(secret: Secret) -> psycopg.Connection[Any]:
        return open_connection(secret)

    return connect


def refresh_and_retry(client: Any, secret_id: str) -> Callable[[], Any]:
    """Return what users of AWS's library write: refresh once after a failure, and try again."""
    cache = AWSSecretCache(client=client)

    def connect() -> psycopg.Connection[Any]:
        try:
            return open_connection(json.loads(cache.get_secret_string(secret_id)))
        except psycopg.OperationalError:
            cache.refresh_secret_now(secret_id)
            return open_connection(json.loads(cache.get_secret_string(secret_id)))

    return connect


def refetch_and_wait(client: Any, secret_id: str) -> Callable[[], Any]:
    """Return what careful people write for themselves: poll AWS until the login succeeds."""
    cached = client.get_secret_value(SecretId=secret_id)["SecretString"]

    def connect() -> psycopg.Connection[Any]:
        nonlocal cached
        end = time.monotonic() + 60
        while True:
            try:
                return open_connection(json.loads(cached))
            except psycopg.OperationalError:
                if time.monotonic() > end:
                    raise
            time.sleep(POLL)
            cached = client.get_secret_value(SecretId=secret_id)["SecretString"]

    return connect


def never(client: Any, secret_id: str) -> Callable[[], Any]:
    """Return what most services have: a cache with a TTL, and no thought of rotation."""
    read = peers.cachetools(client, peers.TTL)
    return lambda: open_connection(json.loads(read(secret_id)))


CONTENDERS: dict[str, Callable[[Any, str], Callable[[], Any]]] = {
    peers.SMCACHE: smcache,
    REFRESH_AND_RETRY: refresh_and_retry,
    REFETCH_AND_WAIT: refetch_and_wait,
    NEVER: never,
}
