"""Connections of PyMySQL with a secret's credentials, alone or in a pool of DBUtils."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pymysql

if TYPE_CHECKING:
    from smcache.cache import SecretCache
    from smcache.secret import Secret

__all__ = ["Connector"]


class Connector:
    """Open connections to MySQL or MariaDB: call it, or give it to DBUtils.

    `connect = Connector(cache, "prod/db", connect_timeout=5)`, then `connect()` or `PooledDB(creator=connect)`.

    Each connection takes `username`, `password`, `host`, and if they are there `port` and `dbname` from the secret
    (the keys of https://docs.aws.amazon.com/secretsmanager/latest/userguide/reference_secret_json_structure.html).
    A rejected credential is replaced as `retry_on_auth_error` does it, so that the pool's caller sees no error, and
    none that was rejected is tried by the next connection: an account that locks after two failed logins survives
    a rotation. Connections that are open stay logged in; MySQL and MariaDB do not ask again.

    Args:
        cache: Where the secret comes from.
        secret_id: Its name or ARN.
        options: Of `pymysql.connect`; they go before what the secret says. Its `connect_timeout` ends when the
            server accepts: set `read_timeout` too, for one that then says nothing.

    Raises:
        InvalidArgument: The id is none that AWS could accept.

    A call raises what `pymysql.connect` and `cache.get` raise, and NoSuchKey for what the secret lacks.
    """

    dbapi = pymysql  # where DBUtils looks for the exceptions that mean a lost connection
    threadsafety = pymysql.threadsafety

    def __init__(self, cache: SecretCache, secret_id: str, **options: Any) -> None:
        self._options = options
        self._connect = cache.retry_on_auth_error(secret_id)(_connect)

    def __call__(self, **options: Any) -> pymysql.Connection[Any]:
        """Open a connection; the options are added to those given before."""
        return self._connect({**self._options, **options})


def _connect(secret: Secret, options: dict[str, Any]) -> pymysql.Connection[Any]:
    login: dict[str, Any] = {"user": secret["username"], "password": secret["password"]}
    if "host" not in options and "unix_socket" not in options:
        login["host"] = secret["host"]
    fields = secret.json()
    if "port" in fields:
        login["port"] = int(fields["port"])  # in some secrets it is a string
    if "dbname" in fields and not options.keys() & {"database", "db"}:
        login["database"] = fields["dbname"]
    return pymysql.connect(**{**login, **options})
