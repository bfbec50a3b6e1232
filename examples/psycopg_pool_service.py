"""A WSGI service of threads that share a psycopg pool, which survives rotations.

The pool's class of connections logs in with the secret. Start it by
`SECRET_ID=prod/db gunicorn --threads 10 psycopg_pool_service:app`; other settings: AWS_* as usual.
"""

import atexit
import os
from collections.abc import Callable
from typing import Any

from psycopg_pool import ConnectionPool

from smcache import SecretCache
from smcache.integrations.psycopg_pool import connection_class

SECRET_ID = os.environ["SECRET_ID"]

cache = SecretCache()
pool = ConnectionPool(connection_class=connection_class(cache, SECRET_ID), min_size=2, max_size=10, open=True)
atexit.register(pool.close)
cache.on_rotation(SECRET_ID, lambda _old, _new: pool.drain())  # replaces connections as they come free


def app(_: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]) -> list[bytes]:
    """Ask the server who we are."""
    with pool.connection() as connection:
        [(user,)] = connection.execute("select current_user").fetchall()
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return [user.encode()]
