# ruff: noqa: SLF001 - the steps of `SecretCache._recover`, for clients that are kept between the calls
"""pymongo: a MongoClient or AsyncMongoClient for MongoDB and DocumentDB that is made anew when its login is rejected.

    mongo = RotatingClient(cache, "prod/docdb", tlsCAFile="global-bundle.pem", retryWrites=False)
    order = mongo.run(lambda client: client.shop.orders.find_one({"number": 7}))

Why `run` and no client to keep: pymongo logs in when an operation needs another connection, always with the
credentials that its client was made with, and has no hook there but for OIDC
(https://pymongo.readthedocs.io/en/stable/api/pymongo/auth_oidc.html). So another password takes another client, and
an operation whose connection was refused has to be called again with it. That is safe: a connection that is not
logged in has sent nothing.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from pymongo import AsyncMongoClient, MongoClient, ReadPreference
from pymongo.errors import PyMongoError
from pymongo.monitoring import CommandListener

from smcache import _url, auth
from smcache._core import Key, check_key
from smcache._recovery import Call
from smcache.aio import AsyncSecretCache
from smcache.cache import SecretCache
from smcache.errors import InvalidArgument, SecretCacheError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pymongo.monitoring import CommandFailedEvent
    from typing_extensions import Self

    from smcache.secret import Secret

__all__ = ["AsyncRotatingClient", "RotatingClient"]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Client = TypeVar("Client")

_AUTHENTICATION_FAILED = 18
_WHO = {"username": "username", "password": "password"}
# In the database that `dbname` names, AWS's function logs in: SecretsManagerMongoDBRotationSingleUser, get_connection.
_ALL = {**_WHO, "host": "host", "port": "port", "dbname": "authSource"}


class RotatingClient:
    """A MongoClient that is replaced by one with another version of a secret when its login is rejected.

    It connects on the first `run`. When AWSCURRENT has moved, the next `run` logs in with the new version; when that
    has succeeded, the old client is closed as the last operation that uses it ends. A new version that the server
    rejects, stored with a typo perhaps, is tried once, and the old client goes on for as long as it is accepted. Make
    one in each process, as with MongoClient.

    Args:
        cache: Where the secret comes from.
        secret_id: Its name or ARN.
        options: Of MongoClient. `username` and `password` always come from the secret; `host`, `port`, and `dbname`
            as the `authSource`, if no `host` is given here. TLS is up to the options, whatever the secret's `ssl`
            says: DocumentDB wants `tlsCAFile`, and `retryWrites=False`.

    Raises:
        InvalidArgument: The id is none that AWS could accept, or the cache is an AsyncSecretCache.
    """

    def __init__(self, cache: SecretCache, secret_id: str, **options: Any) -> None:
        if not isinstance(cache, SecretCache):
            raise InvalidArgument("RotatingClient needs a SecretCache", hint="or use AsyncRotatingClient")
        self._cache = cache
        self._key = check_key(Key(secret_id))
        self._clients: _Clients[MongoClient[Any]] = _Clients(MongoClient, options)

    def run(
        self,
        operation: Callable[Concatenate[MongoClient[Any], Parameters], Result],
        /,
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        """Call `operation(client, *args, **kwargs)` and return what it returns.

        It is called again, from its beginning, if the login of a connection that it needed was rejected and there is
        another version of the secret: a function of many operations has to bear that. The client is closed some time
        after the function has returned and the secret was rotated, so read a cursor to its end within.

        Raises what the operation raises, what `cache.get` raises while no client has logged in, and NoSuchKey for a
        secret without username, password or host.
        """
        failure: Exception | None = None
        call, lent = self._first()
        ready = lent.over is not None
        try:
            while True:
                try:
                    if not ready:
                        self._log_in(lent, call)
                    return operation(lent.client, *args, **kwargs)
                except PyMongoError as error:
                    verdict = lent.verdict(error)
                    if verdict is None:
                        raise
                    failure = error
                finally:
                    self._close(self._clients.give_back(lent))
                refused = lent.secret
                instead = None if ready else self._clients.borrow_instead(refused, call.tried)
                ready = instead is not None
                if instead is not None:
                    self._cache._refused(call, refused, verdict)
                    lent = instead
                    continue
                other = self._cache._next(call, self._key, refused, verdict)
                if other is None:
                    raise failure
                lent = self._clients.borrow(other)
        finally:
            failure = None  # its traceback refers to this frame: a cycle otherwise

    def close(self) -> None:
        """Close the client; those that operations are using, when they end."""
        self._close(self._clients.leave())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _first(self) -> tuple[Call, _Lent[MongoClient[Any]]]:
        if self._clients.logged_in is not None:
            try:
                current = self._cache.get(self._key.secret_id)
            except SecretCacheError:  # connections that are open do not depend on AWS
                current = None
            lent = self._clients.borrow_logged_in(current)
            if lent is not None:
                return Call(self._key.secret_id, lent.secret), lent
        call, secret = self._cache._first(self._key)
        return call, self._clients.borrow(secret)

    def _log_in(self, lent: _Lent[MongoClient[Any]], call: Call) -> None:
        # Of any server: one that is down is the operation's concern.
        lent.client.admin.command("ping", read_preference=ReadPreference.NEAREST)
        self._cache._accepted(call, self._key, lent.secret)
        self._close(self._clients.has_logged_in(lent, call.first))

    def _close(self, clients: list[MongoClient[Any]]) -> None:
        for client in clients:
            client.close()


class AsyncRotatingClient:
    """`RotatingClient` for asyncio, with an AsyncMongoClient and an AsyncSecretCache. Use it in one event loop."""

    def __init__(self, cache: AsyncSecretCache, secret_id: str, **options: Any) -> None:
        if not isinstance(cache, AsyncSecretCache):
            raise InvalidArgument("AsyncRotatingClient needs an AsyncSecretCache", hint="or use RotatingClient")
        self._cache = cache
        self._key = check_key(Key(secret_id))
        self._clients: _Clients[AsyncMongoClient[Any]] = _Clients(AsyncMongoClient, options)

    async def run(
        self,
        operation: Callable[Concatenate[AsyncMongoClient[Any], Parameters], Awaitable[Result]],
        /,
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        """Await `operation(client, *args, **kwargs)`; otherwise as `RotatingClient.run`."""
        failure: Exception | None = None
        call, lent = await self._first()
        ready = lent.over is not None
        try:
            while True:
                try:
                    if not ready:
                        await self._log_in(lent, call)
                    return await operation(lent.client, *args, **kwargs)
                except PyMongoError as error:
                    verdict = lent.verdict(error)
                    if verdict is None:
                        raise
                    failure = error
                finally:
                    await self._close(self._clients.give_back(lent))
                refused = lent.secret
                instead = None if ready else self._clients.borrow_instead(refused, call.tried)
                ready = instead is not None
                if instead is not None:
                    self._cache._refused(call, refused, verdict)
                    lent = instead
                    continue
                other = await self._cache._next(call, self._key, refused, verdict)
                if other is None:
                    raise failure
                lent = self._clients.borrow(other)
        finally:
            failure = None  # its traceback refers to this frame: a cycle otherwise

    async def close(self) -> None:
        """Close the client; those that operations are using, when they end."""
        await self._close(self._clients.leave())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _first(self) -> tuple[Call, _Lent[AsyncMongoClient[Any]]]:
        if self._clients.logged_in is not None:
            try:
                current = await self._cache.get(self._key.secret_id)
            except SecretCacheError:  # connections that are open do not depend on AWS
                current = None
            lent = self._clients.borrow_logged_in(current)
            if lent is not None:
                return Call(self._key.secret_id, lent.secret), lent
        call, secret = await self._cache._first(self._key)
        return call, self._clients.borrow(secret)

    async def _log_in(self, lent: _Lent[AsyncMongoClient[Any]], call: Call) -> None:
        # Of any server: one that is down is the operation's concern.
        await lent.client.admin.command("ping", read_preference=ReadPreference.NEAREST)
        self._cache._accepted(call, self._key, lent.secret)
        await self._close(self._clients.has_logged_in(lent, call.first))

    async def _close(self, clients: list[AsyncMongoClient[Any]]) -> None:
        for client in clients:
            await client.close()


class _Logins(CommandListener):
    """Notes that a login was rejected.

    pymongo tells that to one of those who wait for a connection; all others learn that "the pool is paused".
    """

    rejected = False

    def started(self, event: object) -> None:
        """Nothing."""

    def succeeded(self, event: object) -> None:
        """Nothing."""

    def failed(self, event: CommandFailedEvent) -> None:
        """Look whether a command of a login was refused."""
        if event.command_name.startswith("sasl") and event.failure.get("code") == _AUTHENTICATION_FAILED:
            self.rejected = True


class _Lent(Generic[Client]):
    """A client, the version it logs in with, and how many operations use it."""

    def __init__(self, make: Callable[..., Client], secret: Secret, options: dict[str, Any]) -> None:
        self._logins = _Logins()
        listeners = [*options.get("event_listeners", ()), self._logins]
        self.client = make(**{**_arguments(secret, options), "event_listeners": listeners})
        self.secret = secret
        self.over: str | None = None  # once it has logged in: the AWSCURRENT that it serves in place of, or is
        self.users = 0

    def verdict(self, error: PyMongoError) -> auth.Verdict | None:
        """Say what a failure means for the version; that the pool is paused means that nothing was sent."""
        paused = self._logins.rejected and "connection pool paused" in str(error)
        return "rejected" if paused else auth.verdict(error)


class _Clients(Generic[Client]):
    """One client for each version in use; what it returns as a list is for the caller to close."""

    def __init__(self, make: Callable[..., Client], options: dict[str, Any]) -> None:
        self._make = make
        self._options = options
        self._lock = threading.Lock()
        self._lent: dict[str, _Lent[Client]] = {}  # by version
        self.logged_in: _Lent[Client] | None = None

    def borrow(self, secret: Secret) -> _Lent[Client]:
        """Lend the client of a version, made if need be: that many ask for it at once makes one client."""
        with self._lock:
            return self._borrow(secret)

    def borrow_logged_in(self, current: Secret | None) -> _Lent[Client] | None:
        """Lend the client that has logged in; to the first who finds that AWSCURRENT has moved, one for that."""
        with self._lock:
            lent = self.logged_in
            if lent is None:
                return None
            if current is None or current.version_id == lent.over or current.version_id in self._lent:
                return self._borrow(lent.secret)
            return self._borrow(current)

    def borrow_instead(self, refused: Secret, tried: set[str]) -> _Lent[Client] | None:
        """Lend the client that has logged in, if it is untried, and go on doing so in place of a refused AWSCURRENT."""
        with self._lock:
            lent = self.logged_in
            if lent is None or lent.secret.version_id in (refused.version_id, *tried):
                return None
            lent.over = refused.version_id
            return self._borrow(lent.secret)

    def _borrow(self, secret: Secret) -> _Lent[Client]:
        lent = self._lent.get(secret.version_id)
        if lent is None:
            lent = self._lent[secret.version_id] = _Lent(self._make, secret, self._options)
        lent.users += 1
        return lent

    def has_logged_in(self, lent: _Lent[Client], current: Secret) -> list[Client]:
        """Make a client the one to lend."""
        with self._lock:
            lent.over = current.version_id
            self.logged_in = lent
            return self._idle()

    def give_back(self, lent: _Lent[Client]) -> list[Client]:
        """Take a client back."""
        with self._lock:
            lent.users -= 1
            return self._idle()

    def leave(self) -> list[Client]:
        """Lend none of the clients any more."""
        with self._lock:
            self.logged_in = None
            return self._idle()

    def _idle(self) -> list[Client]:
        idle = [lent for lent in self._lent.values() if not lent.users and lent is not self.logged_in]
        for lent in idle:
            del self._lent[lent.secret.version_id]
        return [lent.client for lent in idle]


def _arguments(secret: Secret, options: dict[str, Any]) -> dict[str, Any]:
    if "host" in options:
        return {**options, **_url.arguments(secret, _WHO, options)}
    secret["host"]  # MongoClient would look for a server on this machine
    return {**options, **_url.arguments(secret, _ALL, options)}
