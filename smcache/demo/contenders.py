"""The two ways to connect that the demo compares. Each opens a new, real connection at every call.

Each is there twice: for threads, and for the tasks of one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg
from cachetools import TTLCache

from smcache import AsyncSecretCache, SecretCache

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from smcache import Secret
    from smcache.testing import PostgreSQL, SecretsManager

__all__ = [
    "PLAIN_TTL",
    "Contender",
    "Logins",
    "async_smcache",
    "async_ttl_cache",
    "new_password",
    "open_connection",
    "smcache",
    "ttl_cache",
]

#: Seconds. 300 is usual. It is short here so that it is shorter than the time between two rotations, as in
#: real life: else it would fail under alternating users too, which it does not deserve.
PLAIN_TTL = 1.0


def open_connection(values: Mapping[str, Any]) -> psycopg.Connection[Any]:
    """Log in with the values of a secret."""
    return psycopg.connect(**_parameters(values))


async def open_async_connection(values: Mapping[str, Any]) -> psycopg.AsyncConnection[Any]:
    """Log in with the values of a secret."""
    return await psycopg.AsyncConnection.connect(**_parameters(values))


def _parameters(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "host": values["host"],
        "port": values["port"],
        "dbname": values["dbname"],
        "user": values["username"],
        "password": values["password"],
        "connect_timeout": 30,  # a busy machine is no failed connection
    }


@dataclass
class Logins:
    """The logins at the database, which are more than the connections asked for when some are rejected."""

    version_id: str = ""  # of the last good one
    good: list[float] = field(default_factory=list)  # seconds each took
    rejected: list[float] = field(default_factory=list)

    @contextlib.contextmanager
    def one(self, version_id: str) -> Iterator[None]:
        """Take down the login that the block makes with one version of the secret."""
        started = time.perf_counter()
        try:
            yield
        except psycopg.OperationalError:
            self.rejected.append(time.perf_counter() - started)
            raise
        self.good.append(time.perf_counter() - started)
        self.version_id = version_id


@dataclass(frozen=True)
class Contender:
    """One way to connect.

    Attributes:
        name: What it is called.
        secret_id: The secret it reads, which nobody else does.
        connect: Opens a connection; for tasks, a coroutine function that does.
        api_calls: Tells how many requests it has sent.
        logins: The logins it made.
    """

    name: str
    secret_id: str
    connect: Callable[[], Any]
    api_calls: Callable[[], int]
    logins: Logins


@contextlib.contextmanager
def smcache(aws: SecretsManager, database: PostgreSQL) -> Iterator[Contender]:
    """Connect through smcache, as its users do, with its default settings."""
    secret_id = _new_secret("demo/smcache", aws, database)
    logins = Logins()
    with SecretCache(aws.client()) as cache:

        @cache.retry_on_auth_error(secret_id)
        def connect(secret: Secret) -> psycopg.Connection[Any]:
            with logins.one(secret.version_id):
                return open_connection(secret.json())

        yield Contender("smcache", secret_id, connect, lambda: cache.metrics.snapshot().api_calls, logins)


@contextlib.asynccontextmanager
async def async_smcache(aws: SecretsManager, database: PostgreSQL) -> AsyncIterator[Contender]:
    """Connect through smcache from tasks."""
    secret_id = _new_secret("demo/smcache", aws, database)
    logins = Logins()
    async with AsyncSecretCache(aws.client()) as cache:

        @cache.retry_on_auth_error(secret_id)
        async def connect(secret: Secret) -> psycopg.AsyncConnection[Any]:
            with logins.one(secret.version_id):
                return await open_async_connection(secret.json())

        yield Contender("smcache", secret_id, connect, lambda: cache.metrics.snapshot().api_calls, logins)


@contextlib.contextmanager
def ttl_cache(aws: SecretsManager, database: PostgreSQL) -> Iterator[Contender]:
    """Connect the way it is done today: a TTL cache around GetSecretValue, one request at a time."""
    secret_id = _new_secret("demo/ttl-cache", aws, database)
    client = aws.client()
    cached: TTLCache[str, Any] = TTLCache(maxsize=100, ttl=PLAIN_TTL)
    lock = threading.Lock()
    logins = Logins()
    calls = 0

    def get_secret(secret_id: str) -> Any:
        nonlocal calls
        with lock:
            answer = cached.get(secret_id)
            if answer is None:
                calls += 1
                answer = cached[secret_id] = client.get_secret_value(SecretId=secret_id)
            return answer

    def connect() -> psycopg.Connection[Any]:
        answer = get_secret(secret_id)
        with logins.one(answer["VersionId"]):
            return open_connection(json.loads(answer["SecretString"]))

    yield Contender("TTL cache", secret_id, connect, lambda: calls, logins)


@contextlib.asynccontextmanager
async def async_ttl_cache(aws: SecretsManager, database: PostgreSQL) -> AsyncIterator[Contender]:
    """Connect the way it is done today from tasks: the same cache, with boto3 in a thread."""
    secret_id = _new_secret("demo/ttl-cache", aws, database)
    client = aws.client()
    cached: TTLCache[str, Any] = TTLCache(maxsize=100, ttl=PLAIN_TTL)
    lock = asyncio.Lock()
    logins = Logins()
    calls = 0

    async def get_secret(secret_id: str) -> Any:
        nonlocal calls
        async with lock:
            answer = cached.get(secret_id)
            if answer is None:
                calls += 1
                answer = cached[secret_id] = await asyncio.to_thread(client.get_secret_value, SecretId=secret_id)
            return answer

    async def connect() -> psycopg.AsyncConnection[Any]:
        answer = await get_secret(secret_id)
        with logins.one(answer["VersionId"]):
            return await open_async_connection(json.loads(answer["SecretString"]))

    yield Contender("TTL cache", secret_id, connect, lambda: calls, logins)


def new_password() -> str:
    """Make up the password that a role begins with."""
    return secrets.token_urlsafe()


def _new_secret(secret_id: str, aws: SecretsManager, database: PostgreSQL) -> str:
    """Make a role and its secret."""
    role, password = secret_id.replace("/", "_"), new_password()
    database.create_role(role, password)
    aws.create(secret_id, database.secret(role, password))
    return secret_id
