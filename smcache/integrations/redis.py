"""Credentials for redis-py's pools, threads and asyncio, from a cache: a rejected one is replaced inside the pool.

Why a connection class and not a `CredentialProvider`: a provider is asked for a value and never learns what became
of it, so of two questions in a row it cannot tell a rejected credential from a second connection. The class sees
the rejection. It overrides `connect_check_health`, through which every login goes; `connect` is not enough, for a
command that finds its connection closed reconnects without it.

It also ends what redis-py makes of a rejection: its AuthenticationError is a ConnectionError, which `redis.Redis()`
repeats ten times with pauses (measured with redis-py 8.1: 11 logins and 3.8 seconds for each command). It is
written for redis-py 8.1 and later.

Of Redis Cluster, `redis.RedisCluster.from_url(url, connection_class=...)` works. `redis.asyncio.RedisCluster` does not:
it has connections of its own, and discards the class without a word.
"""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, Any

import redis
import redis.asyncio
from redis.credentials import UsernamePasswordCredentialProvider
from redis.exceptions import AuthenticationError

from smcache._core import Key, check_key
from smcache.cache import SecretCache
from smcache.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from smcache.aio import AsyncSecretCache
    from smcache.secret import Secret

__all__ = ["connection_class"]


def connection_class(cache: SecretCache | AsyncSecretCache, secret_id: str, base: type[Any] | None = None) -> type[Any]:
    """Make a class of connections that log in with a secret, for a redis-py pool's `connection_class`.

    `redis.Redis.from_pool(redis.ConnectionPool(connection_class=connection_class(cache, "prod/redis"), host=...))`

    Each new connection logs in with the current credential, in the fields `username` (optional) and `password`. A
    rejected one is replaced as `retry_on_auth_error` does it, by the AWSPENDING of a rotation under way if need be,
    and the command goes on. Connections that are open stay logged in; Redis does not ask again. Host and port
    are the pool's; those of the secret are not looked at.

    A password that is simply wrong raises redis-py's AuthenticationError after one login for each command.

    Args:
        cache: A `SecretCache` for pools of `redis`, an `AsyncSecretCache` for pools of `redis.asyncio`.
        secret_id: The secret's name or ARN.
        base: The class to build on; by default, the plain `Connection`. TLS takes `redis.SSLConnection`, a socket
            `redis.UnixDomainSocketConnection`, or those of `redis.asyncio`, also where a URL says `rediss://` or
            `unix://`: `redis.Redis.from_url` would connect WITHOUT TLS with a class that is built on another.
            `redis.asyncio` uses no class but its own for such URLs: give its pool `host` or `path` by name.

    Raises:
        InvalidArgument: The id is none that AWS could accept, or base is of the other kind than the cache.

    A command raises what `cache.get` raises, and NoSuchKey for a secret without a password.
    """
    check_key(Key(secret_id))
    threads = isinstance(cache, SecretCache)
    root, plain = (_SYNC, redis.Connection) if threads else (_ASYNC, redis.asyncio.Connection)
    base = base or plain
    if not issubclass(base, root):
        kind = "threads" if threads else "asyncio"
        raise InvalidArgument(f"{base.__module__}.{base.__name__} is no class for {kind}, as the cache is")
    return (
        _sync_class(cache, secret_id, base) if isinstance(cache, SecretCache) else _async_class(cache, secret_id, base)
    )


_SYNC = redis.connection.AbstractConnection
_ASYNC = redis.asyncio.connection.AbstractConnection


def _sync_class(cache: SecretCache, secret_id: str, base: type[Any]) -> type[Any]:
    class SecretConnection(base):  # type: ignore[misc] # of a class known only when it runs
        retry = _guarded(_unless_rejected)

        def connect_check_health(self, *args: Any, **kwargs: Any) -> None:
            if not self.is_connected:
                self._connect_with(*args, **kwargs)

        @cache.retry_on_auth_error(secret_id)
        def _connect_with(self, secret: Secret, *args: Any, **kwargs: Any) -> None:
            self.credential_provider = _provider(secret)
            super().connect_check_health(*args, **kwargs)

    return SecretConnection


def _async_class(cache: AsyncSecretCache, secret_id: str, base: type[Any]) -> type[Any]:
    class SecretConnection(base):  # type: ignore[misc] # of a class known only when it runs
        retry = _guarded(_async_unless_rejected)

        async def connect_check_health(self, *args: Any, **kwargs: Any) -> None:
            if not self.is_connected:
                await self._connect_with(*args, **kwargs)

        @cache.retry_on_auth_error(secret_id)
        async def _connect_with(self, secret: Secret, *args: Any, **kwargs: Any) -> None:
            self.credential_provider = _provider(secret)
            await super().connect_check_health(*args, **kwargs)

    return SecretConnection


def _provider(secret: Secret) -> UsernamePasswordCredentialProvider:
    return UsernamePasswordCredentialProvider(secret.json().get("username"), secret["password"])


def _guarded(unless_rejected: Callable[[Any, Callable[..., Any]], Callable[..., Any]]) -> property:
    """Make a connection's `retry`, which is set when it is made and again by `set_retry` of its client or pool."""

    def set_copy(connection: Any, retry: Any) -> None:
        guarded = copy.copy(retry)  # the pool gives the same to all of its connections
        guarded.call_with_retry = unless_rejected(connection, guarded.call_with_retry)
        vars(connection)["retry"] = guarded

    return property(lambda connection: vars(connection)["retry"], set_copy)


class _Rejected(Exception):
    """Carries a rejection past redis-py's retries, which are for its ConnectionError."""


def _unless_rejected(connection: Any, call_with_retry: Callable[..., Any]) -> Callable[..., Any]:
    """Let redis-py retry all but a rejected login.

    That one has closed its connection. NOAUTH leaves it open: reconnecting, as redis-py does, is right.
    """

    @functools.wraps(call_with_retry)
    def call(do: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
        def attempt() -> Any:
            try:
                return do()
            except AuthenticationError as error:
                if connection.is_connected:
                    raise
                raise _Rejected(error) from None

        try:
            return call_with_retry(attempt, *args, **kwargs)
        except _Rejected as rejected:
            (error,) = rejected.args
        raise error

    return call


def _async_unless_rejected(connection: Any, call_with_retry: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    @functools.wraps(call_with_retry)
    async def call(do: Callable[[], Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        async def attempt() -> Any:
            try:
                return await do()
            except AuthenticationError as error:
                if connection.is_connected:
                    raise
                raise _Rejected(error) from None

        try:
            return await call_with_retry(attempt, *args, **kwargs)
        except _Rejected as rejected:
            (error,) = rejected.args
        raise error

    return call
