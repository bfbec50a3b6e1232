"""aiomysql: a pool whose connections log in with a secret.

    pool = await create_pool(cache, "prod/db", maxsize=20)

aiomysql's own ``create_pool`` has no hook for what connects, so this one makes a subclass of ``aiomysql.Pool``. To
retire old connections after a rotation as well, ``cache.on_rotation("prod/db", retire)`` with

    async def retire(old, new):
        await pool.clear()  # closes those that are idle; those in use go back to the pool

A connection's own ``ping(reconnect=True)`` logs in with the password it was opened with; the pool does without it.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import aiomysql  # type: ignore[import-untyped] # it has no types

from smcache.integrations import _mysql

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from smcache.aio import AsyncSecretCache
    from smcache.secret import Secret

__all__ = ["connector", "create_pool"]


async def create_pool(
    cache: AsyncSecretCache,
    secret_id: str,
    *,
    minsize: int = 1,
    maxsize: int = 10,
    echo: bool = False,
    pool_recycle: float = -1,
    **options: Any,
) -> Any:
    """Return an ``aiomysql.Pool`` that opens its connections with `connector`.

    Whoever acquires a connection sees no error of a login that was rejected, as long as another version is accepted.
    The pool opens one connection at a time, under its lock, so that a rotation costs it one rejected login. One that
    waits for a rotation to end, where AWSPENDING may not be read, keeps all others waiting who acquire, for up to
    ``rotation_window``: give the cache one that they can bear, ``CacheConfig(rotation_window=10)`` say.

    Args:
        cache: An AsyncSecretCache.
        secret_id: The secret's name or ARN.
        minsize: How many connections it opens at first, and keeps.
        maxsize: The most it opens; 0 means no limit.
        echo: Whether aiomysql logs each statement.
        pool_recycle: After how many seconds without use a connection is replaced; -1 means never.
        options: Of ``aiomysql.connect``, for each connection.

    Raises:
        InvalidArgument: The cache is a SecretCache, which would block the loop.
        ValueError: The sizes contradict each other.

    It raises what connecting raises, too, if ``minsize`` is not 0.
    """
    connect = connector(cache, secret_id)
    pool = _Pool(minsize, maxsize, echo, pool_recycle, asyncio.get_running_loop(), **options)
    pool.connect = connect
    await pool.fill()
    return pool


def connector(cache: AsyncSecretCache, secret_id: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return a coroutine function to be called like ``aiomysql.connect``, with arguments by name.

    It logs in with a secret, and with the next version when the server rejects it. User and password always come from
    the secret; host, port and database do where the arguments leave them out. A ``read_default_file`` must name no
    user or password, which aiomysql would prefer.

    Args:
        cache: An AsyncSecretCache.
        secret_id: The secret's name or ARN.

    Raises:
        InvalidArgument: The cache is a SecretCache, which would block the loop.

    Connecting raises what aiomysql raises, what ``cache.get`` raises, and NoSuchKey for a secret without username or
    password, or without host where the arguments name none.
    """

    @cache.retry_on_auth_error(secret_id)
    async def connect(secret: Secret, /, **options: Any) -> Any:
        return await aiomysql.connect(**{**options, **_mysql.arguments(secret, options, dbname="db")})

    return connect


class _Pool(aiomysql.Pool):  # type: ignore[misc] # it has no types
    """aiomysql's pool, with connections of another making."""

    connect: Callable[..., Coroutine[Any, Any, Any]]

    async def fill(self) -> None:
        """Open as many connections as there must be."""
        async with self._cond:
            await self._fill_free_pool(override_min=False)

    async def _fill_free_pool(self, override_min: bool) -> None:  # noqa: FBT001 - as the pool has it
        """Do what the pool relies on, under its lock: close what is dead, have ``minsize``, and one more if wanted."""
        minsize = self.minsize
        self._minsize = 0  # so that the pool's own method opens none
        try:
            await super()._fill_free_pool(override_min=False)
        finally:
            self._minsize = minsize
        limit = self.maxsize or math.inf
        while self.size < minsize or (override_min and not self._free and self.size < limit):
            self._free.append(await self.connect(echo=self._echo, loop=self._loop, **self._conn_kwargs))
            self._cond.notify()
