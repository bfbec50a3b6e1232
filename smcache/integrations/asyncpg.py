"""asyncpg: what its pool connects with.

    pool = await asyncpg.create_pool(connect=connector(cache, "prod/db"))

To retire old connections after a rotation as well, ``cache.on_rotation("prod/db", retire)`` with

    async def retire(old, new):
        await pool.expire_connections()  # each is replaced when it is next acquired
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import asyncpg

from smcache import _url

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from smcache.aio import AsyncSecretCache
    from smcache.secret import Secret

__all__ = ["connector"]

_NAMES = {**_url.LIBPQ, "dbname": "database"}


def connector(cache: AsyncSecretCache, secret_id: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return a coroutine function for ``asyncpg.create_pool(connect=...)``, or to be called like ``asyncpg.connect``.

    It logs in with a secret, and with the next version when the server rejects it. User and password always come from
    the secret; host, port and database do where ``create_pool`` is given none, neither by name nor in a DSN.

    Args:
        cache: An AsyncSecretCache.
        secret_id: The secret's name or ARN.

    Raises:
        InvalidArgument: The cache is a SecretCache, which would block the loop.

    Connecting raises what asyncpg raises, what ``cache.get`` raises, and NoSuchKey for a secret without username or
    password.
    """

    @cache.retry_on_auth_error(secret_id)
    async def connect(secret: Secret, /, dsn: str | None = None, **kwargs: Any) -> Any:
        return await asyncpg.connect(dsn, **_arguments(secret, dsn, kwargs))

    return connect


def _arguments(secret: Secret, dsn: str | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    given = {**_named_in(dsn or ""), **{name: value for name, value in kwargs.items() if value is not None}}
    return {**kwargs, **_url.arguments(secret, _NAMES, given)}


def _named_in(dsn: str) -> dict[str, str]:
    """Return what a DSN names: keywords would take precedence over it."""
    parts = urlsplit(dsn)
    query = dict(parse_qsl(parts.query))
    place = parts.netloc.rpartition("@")[2]
    return {
        "host": query.get("host") or place.partition(":")[0],
        "port": query.get("port") or place.rpartition("]")[2].partition(":")[2],
        "database": query.get("dbname") or query.get("database") or parts.path.strip("/"),
    }
