"""psycopg_pool: a class of connections that log in with a secret, for its pools of either kind.

pool = ConnectionPool(connection_class=connection_class(cache, "prod/db"))
pool = AsyncConnectionPool(connection_class=connection_class(async_cache, "prod/db"), open=False)

A login that fails with every version there is, psycopg_pool does not report to those who wait for a connection: they
get PoolTimeout after ``timeout`` (30 s unless you say less), and the driver's error is a warning of the logger
``psycopg.pool``. No hook of the pool is given that error, not even ``reconnect_failed``; the class keeps the last one:

    try:
        with pool.connection() as connection:
            ...
    except PoolTimeout as timeout:
        raise timeout from last_failure(pool)

The pool's workers try again after 1, 2, 4 ... seconds until ``reconnect_timeout`` (300 s), for each connection that
the pool wants to have; how many wait makes no difference. A NullConnectionPool connects in the thread that asks, and
raises the driver's error there.

To retire old connections after a rotation as well: ``cache.on_rotation("prod/db", lambda old, new: pool.drain())``
(psycopg_pool 3.3) replaces those that are idle, and those in use when they come back. ``await pool.drain()`` goes into
a coroutine function, which ``AsyncSecretCache`` awaits.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeVar, overload

import psycopg
from psycopg.conninfo import conninfo_to_dict

from smcache import _url
from smcache.aio import AsyncSecretCache
from smcache.errors import InvalidArgument, SecretCacheError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from psycopg.rows import TupleRow
    from psycopg_pool import AsyncConnectionPool, ConnectionPool

    from smcache.cache import SecretCache
    from smcache.secret import Secret

__all__ = ["connection_class", "last_failure"]

Connection = TypeVar("Connection", bound=psycopg.Connection[Any])
AsyncConnection = TypeVar("AsyncConnection", bound=psycopg.AsyncConnection[Any])


@overload
def connection_class(cache: SecretCache, secret_id: str) -> type[psycopg.Connection[TupleRow]]: ...
@overload
def connection_class(cache: SecretCache, secret_id: str, base: type[Connection]) -> type[Connection]: ...
@overload
def connection_class(cache: AsyncSecretCache, secret_id: str) -> type[psycopg.AsyncConnection[TupleRow]]: ...
@overload
def connection_class(cache: AsyncSecretCache, secret_id: str, base: type[AsyncConnection]) -> type[AsyncConnection]: ...
def connection_class(cache: SecretCache | AsyncSecretCache, secret_id: str, base: Any = None) -> Any:
    """Return a class whose ``connect`` logs in with a secret, and with the next version when it is rejected.

    Username and password always come from the secret; host, port and dbname do where the pool's ``conninfo`` and
    ``kwargs`` leave them out.

    Args:
        cache: A SecretCache, or an AsyncSecretCache for an AsyncConnectionPool.
        secret_id: The secret's name or ARN.
        base: The class to derive from; by default ``psycopg.Connection`` or ``psycopg.AsyncConnection``.

    Raises:
        InvalidArgument: The base is asynchronous and the cache is not, or the reverse.

    ``connect`` raises what the driver raises, what ``cache.get`` raises, and NoSuchKey for a secret without username
    or password.
    """
    wanted = psycopg.AsyncConnection if isinstance(cache, AsyncSecretCache) else psycopg.Connection
    base = wanted if base is None else base
    if not issubclass(base, wanted):
        raise InvalidArgument(f"with {type(cache).__name__}, base is a {wanted.__name__}, not {base.__name__}")
    if isinstance(cache, AsyncSecretCache):
        return _async_class(cache, secret_id, base)
    return _class(cache, secret_id, base)


def last_failure(pool: ConnectionPool[Any] | AsyncConnectionPool[Any]) -> Exception | None:
    """Return why the last login of a pool's ``connection_class`` failed: what the driver or the cache raised.

    It is a copy, without traceback. None if the last login succeeded, or if the class is none of ours.
    """
    failure: Exception | None = getattr(pool.connection_class, "_last_failure", None)
    return failure


@contextlib.contextmanager
def _remembering_failure(cls: Any) -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        # Not the error itself: its traceback keeps frames alive that hold the password.
        cls._last_failure = type(error)(*error.args)
        raise
    except SecretCacheError as error:
        cls._last_failure = error.fresh()
        raise
    cls._last_failure = None


def _class(cache: SecretCache, secret_id: str, base: Any) -> Any:
    class SecretConnection(base):  # type: ignore[misc]  # a class of the caller's
        @classmethod
        def connect(cls: Any, /, conninfo: str = "", **kwargs: Any) -> Any:
            with _remembering_failure(cls):
                return cls._log_in(conninfo, **kwargs)

        @classmethod
        @cache.retry_on_auth_error(secret_id)
        def _log_in(cls: Any, secret: Secret, /, conninfo: str, **kwargs: Any) -> Any:
            return super().connect(conninfo, **_arguments(secret, conninfo, kwargs))

    return SecretConnection


def _async_class(cache: AsyncSecretCache, secret_id: str, base: Any) -> Any:
    class AsyncSecretConnection(base):  # type: ignore[misc]  # a class of the caller's
        @classmethod
        async def connect(cls: Any, /, conninfo: str = "", **kwargs: Any) -> Any:
            with _remembering_failure(cls):
                return await cls._log_in(conninfo, **kwargs)

        @classmethod
        @cache.retry_on_auth_error(secret_id)
        async def _log_in(cls: Any, secret: Secret, /, conninfo: str, **kwargs: Any) -> Any:
            return await super().connect(conninfo, **_arguments(secret, conninfo, kwargs))

    return AsyncSecretConnection


def _arguments(secret: Secret, conninfo: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    given = {**conninfo_to_dict(conninfo), **kwargs}
    return {**kwargs, **_url.arguments(secret, _url.LIBPQ, given)}
