"""What type checkers make of the public API: checked by mypy, never run."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from typing_extensions import assert_type

from smcache import AsyncSecretCache, CacheConfig, MetricsSnapshot, Secret, SecretCache, SecretCacheError, is_auth_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

cache = SecretCache(config=CacheConfig(ttl=60))

assert_type(cache.get("prod/db"), Secret)
assert_type(cache.get_string("prod/db"), str)
assert_type(cache.get_binary("prod/db"), bytes)
assert_type(cache.refresh("prod/db"), Secret)
assert_type(cache.renew(cache.get("prod/db")), Secret)
assert_type(cache.prefetch(["prod/db"]), dict[str, SecretCacheError])
assert_type(cache.metrics.snapshot(), MetricsSnapshot)
assert_type(is_auth_error(ValueError()), bool)


@cache.retry_on_auth_error("prod/db")
def connect(secret: Secret, dbname: str, *, timeout: float = 5) -> psycopg.Connection[Any]:
    raise NotImplementedError


assert_type(connect("app", timeout=2), "psycopg.Connection[Any]")
connect()  # type: ignore[call-arg]
connect("app", timeout="2")  # type: ignore[arg-type]


class Pool:
    @cache.retry_on_auth_error("prod/db", parameter="creds")
    def connect(self, creds: Secret, dbname: str) -> int:
        raise NotImplementedError


assert_type(Pool().connect("app"), int)
Pool().connect(7)  # type: ignore[arg-type]


@contextlib.contextmanager
@cache.retry_on_auth_error("prod/db")
def session(secret: Secret) -> Iterator[str]:
    raise NotImplementedError


with session() as name:
    assert_type(name, str)


async def use_async_cache() -> None:
    async with AsyncSecretCache() as cache:
        assert_type(await cache.get("prod/db"), Secret)
        assert_type(await cache.prefetch(["prod/db"]), dict[str, SecretCacheError])

        @cache.retry_on_auth_error("prod/db")
        async def connect(secret: Secret, dbname: str) -> psycopg.AsyncConnection[Any]:
            raise NotImplementedError

        assert_type(await connect("app"), "psycopg.AsyncConnection[Any]")
        await connect()  # type: ignore[call-arg]
