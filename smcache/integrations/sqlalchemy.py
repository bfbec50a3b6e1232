"""SQLAlchemy: an ``Engine`` or ``AsyncEngine`` that logs in with a secret, whatever the driver.

    engine = create_engine("postgresql+psycopg://")
    use_secret(engine, cache, "prod/db")

To retire old connections after a rotation as well: ``cache.on_rotation("prod/db", lambda old, new: engine.dispose())``
closes those that are idle; those in use are not pooled again, and end when they are garbage-collected. An
AsyncEngine's ``await engine.dispose()`` goes into a coroutine function, which ``AsyncSecretCache`` awaits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy import URL, Engine, event
from sqlalchemy.util import await_only, greenlet_spawn

from smcache import _url
from smcache.aio import AsyncSecretCache
from smcache.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Dialect
    from sqlalchemy.ext.asyncio import AsyncEngine

    from smcache.cache import SecretCache
    from smcache.secret import Secret

__all__ = ["use_secret"]

_A_PORT = 54321  # a mark, as are the names of the fields below
_URLS_OWN = {"username": "username", "password": "password", "host": "host", "port": "port", "dbname": "database"}
# What says where the server is to those that take no host by itself: pymssql, oracledb, cx_Oracle.
_PLACES = ("host", "server", "dsn", "params", "pool")
_SQLALCHEMYS_OWN = "sqlalchemy.engine.create"  # the module of the creator that fires do_connect
_secret_ids: WeakKeyDictionary[Dialect, str] = WeakKeyDictionary()  # of engines, which have a dialect each


def use_secret(engine: Engine | AsyncEngine, cache: SecretCache | AsyncSecretCache, secret_id: str) -> None:
    """Have the engine open its connections with what a secret holds, and with the next version when it is rejected.

    Username and password always come from the secret; host, port and database do where the engine's URL and
    ``connect_args`` leave them out; pymssql's port and Oracle's port and service name are part of the host, and the
    secret's where the host is. An engine may have connected before: what is open stays as it is, and each new
    connection takes the secret.

    It listens to ``do_connect``
    (https://docs.sqlalchemy.org/en/20/core/engines.html#generating-dynamic-authentication-tokens), which an engine
    made with ``creator=`` or ``async_creator=`` never fires. Listeners of your own that change the arguments go
    before it.

    Args:
        engine: An Engine, or an AsyncEngine.
        cache: A SecretCache for an Engine; an AsyncSecretCache for an AsyncEngine, whose loop a SecretCache would
            block while it waits for AWS.
        secret_id: The secret's name or ARN.

    Raises:
        InvalidArgument: The cache is of the wrong kind, the engine uses a secret already or a creator of its own, or
            the driver takes no password by name (pyodbc, which has it within a connection string).

    Connecting raises what the driver raises, as SQLAlchemy wraps it, what ``cache.get`` raises, and NoSuchKey for
    a secret without username or password. pymssql would look on this machine where nobody names a host, so that this
    is NoSuchKey as well; so is, with Oracle, a secret that has the host but no ``dbname``.
    """
    # Importing AsyncEngine takes greenlet, which those who have an Engine may do without.
    sync_engine = engine if isinstance(engine, Engine) else engine.sync_engine
    dialect = sync_engine.dialect
    if dialect.is_async is not isinstance(cache, AsyncSecretCache):
        wanted = "AsyncSecretCache" if dialect.is_async else "SecretCache"
        raise InvalidArgument(f"this engine needs a {wanted}, not a {type(cache).__name__}")
    if dialect in _secret_ids:
        raise InvalidArgument(
            f"this engine uses the secret {_secret_ids[dialect]!r} already", hint="make an engine for each secret"
        )
    creator = getattr(sync_engine.pool, "_creator", None)
    if getattr(creator, "__module__", _SQLALCHEMYS_OWN) != _SQLALCHEMYS_OWN:
        raise InvalidArgument(
            "an engine made with creator= connects without asking for a secret",
            hint="decorate the creator with retry_on_auth_error, or leave it out",
        )
    url = sync_engine.url
    names = _names(url.drivername, dialect)

    if isinstance(cache, AsyncSecretCache):

        @cache.retry_on_auth_error(secret_id)
        async def connect_async(
            secret: Secret, dialect: Dialect, cargs: Sequence[Any], cparams: Mapping[str, Any]
        ) -> Any:
            return await greenlet_spawn(dialect.connect, *cargs, **_arguments(secret, names, url, dialect, cparams))

        def do_connect(dialect: Dialect, _record: object, cargs: Sequence[Any], cparams: Mapping[str, Any]) -> Any:
            return await_only(connect_async(dialect, cargs, cparams))

    else:

        @cache.retry_on_auth_error(secret_id)
        def connect(secret: Secret, dialect: Dialect, cargs: Sequence[Any], cparams: Mapping[str, Any]) -> Any:
            return dialect.connect(*cargs, **_arguments(secret, names, url, dialect, cparams))

        def do_connect(dialect: Dialect, _record: object, cargs: Sequence[Any], cparams: Mapping[str, Any]) -> Any:
            return connect(dialect, cargs, cparams)

    event.listen(sync_engine, "do_connect", do_connect)
    _secret_ids[dialect] = secret_id


def _names(drivername: str, dialect: Dialect) -> dict[str, str]:
    """Return what the driver calls each field: asked of the dialect, since ``password`` is ``passwd`` to mysqldb."""
    # pyodbc warns where its driver is not named.
    marked = URL.create(drivername, "username", "password", "host", _A_PORT, "dbname", {"driver": "a driver"})
    _, arguments = dialect.create_connect_args(marked)
    fields = {"username": "username", "password": "password", "host": "host", _A_PORT: "port", "dbname": "dbname"}
    names = {fields[mark]: name for name, mark in arguments.items() if isinstance(mark, (str, int)) and mark in fields}
    if not {"username", "password"} <= names.keys():
        raise InvalidArgument(
            f"{drivername} takes no password by name",
            hint="decorate a function that connects with retry_on_auth_error, and pass it as creator=",
        )
    return names


def _arguments(
    secret: Secret, names: Mapping[str, str], url: URL, dialect: Dialect, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what to call the driver with: what it was given, and over it what is the secret's to say."""
    found = {**given, **_url.arguments(secret, names, given)}
    if "host" in names or any(map(given.get, _PLACES)):
        return found
    secret["host"]  # pymssql would look for a server on this machine
    place = _url.arguments(secret, _URLS_OWN, {"port": url.port or given.get("port"), "database": url.database})
    if dialect.name == "oracle":
        place.pop("database", None)  # to SQLAlchemy a SID; AWS's rotation takes it for a service
        url = url.update_query_dict({"service_name": secret["dbname"]})
    _, made = dialect.create_connect_args(url.set(**place))
    return {**made, **found}
