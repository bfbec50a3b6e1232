"""PyMySQL: connections that log in with a secret, alone or in a pool of DBUtils.

    connect = Connector(cache, "prod/db", read_timeout=30)
    pool = PooledDB(creator=connect)

Connections that are open stay logged in when a password changes; MySQL and MariaDB do not ask again. PyMySQL's
``ping(reconnect=True)`` opens a new one with the password of the old; DBUtils does without it.

PyMySQL 1.2 reads the system's certificates anew for each connection, tens of milliseconds of CPU that add up when many
connect at once. It does not with ``ssl=``, an SSLContext made once, which also makes TLS mandatory, or with
``ssl_disabled=True``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pymysql

from smcache.integrations import _mysql

if TYPE_CHECKING:
    from smcache.cache import SecretCache
    from smcache.secret import Secret

__all__ = ["Connector"]


class Connector:
    """Open connections to MySQL or MariaDB: call it, or give it to DBUtils.

    User and password always come from the secret; host, port and database do where the options leave them out. A
    rejected credential is replaced as `retry_on_auth_error` does it, so that the pool's caller sees no error, and
    none that was rejected is tried by the next connection: an account that locks after two failed logins survives
    a rotation.

    Args:
        cache: A SecretCache.
        secret_id: The secret's name or ARN.
        options: Of `pymysql.connect`. Its `connect_timeout` ends when the server accepts: set `read_timeout` too,
            for one that then says nothing.

    Raises:
        InvalidArgument: The id is none that AWS could accept, or the cache is an AsyncSecretCache.

    A call raises what `pymysql.connect` and `cache.get` raise, and NoSuchKey for a secret without username or
    password, or without host where the options name none.
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
    return pymysql.connect(**{**options, **_mysql.arguments(secret, options)})
