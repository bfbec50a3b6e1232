"""A WSGI service of threads that share a psycopg pool, which survives rotations.

psycopg_pool opens connections with the `connect` of its `connection_class`: ours is decorated. Start it by
`SECRET_ID=prod/db gunicorn --threads 10 psycopg_pool_service:app`; other settings: AWS_* as usual.
"""

import atexit
import os
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg_pool import ConnectionPool

from smcache import Secret, SecretCache

SECRET_ID = os.environ["SECRET_ID"]

cache = SecretCache()


class Connection(psycopg.Connection[Any]):
    """A connection with the login of the secret."""

    @classmethod
    @cache.retry_on_auth_error(SECRET_ID)
    def connect(cls, secret: Secret, /, conninfo: str = "", **options: Any) -> "Connection":
        """Open a connection; the options are those of psycopg.connect."""
        options |= {"host": secret["host"], "port": secret["port"], "dbname": secret["dbname"]}
        return super().connect(conninfo, user=secret["username"], password=secret["password"], **options)


pool = ConnectionPool(connection_class=Connection, min_size=2, max_size=10, open=True)
atexit.register(pool.close)
cache.on_rotation(SECRET_ID, lambda _old, _new: pool.drain())  # replaces connections as they come free


def app(_: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]) -> list[bytes]:
    """Ask the server who we are."""
    with pool.connection() as connection:
        [(user,)] = connection.execute("select current_user").fetchall()
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return [user.encode()]
