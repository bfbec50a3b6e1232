"""A FastAPI service whose connection pool survives rotations, with the counts of its cache at /metrics.

psycopg_pool opens connections with the `connect` of its `connection_class`: ours is decorated. Start it by
`SECRET_ID=prod/db uvicorn fastapi_service:app`; other settings: AWS_* as usual.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import psycopg
from fastapi import FastAPI
from psycopg_pool import AsyncConnectionPool

from smcache import AsyncSecretCache, Secret

SECRET_ID = os.environ["SECRET_ID"]

cache = AsyncSecretCache()


class Connection(psycopg.AsyncConnection[Any]):
    """A connection with the login of the secret."""

    @classmethod
    @cache.retry_on_auth_error(SECRET_ID)
    async def connect(cls, secret: Secret, /, conninfo: str = "", **options: Any) -> "Connection":
        """Open a connection; the options are those of psycopg.AsyncConnection.connect."""
        options |= {"host": secret["host"], "port": secret["port"], "dbname": secret["dbname"]}
        return await super().connect(conninfo, user=secret["username"], password=secret["password"], **options)


pool = AsyncConnectionPool(connection_class=Connection, min_size=2, max_size=10, open=False)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Open the pool when the service starts, and close it and the cache when it ends."""
    cache.on_rotation(SECRET_ID, lambda _old, _new: pool.drain())  # replaces connections as they come free
    async with cache, pool:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/whoami")
async def whoami() -> dict[str, str]:
    """Ask the server who we are."""
    async with pool.connection() as connection:
        cursor = await connection.execute("select current_user")
        [(user,)] = await cursor.fetchall()
    return {"user": user}


@app.get("/metrics")
async def metrics() -> dict[str, Any]:
    """Return what the cache did, what it cost and what it saved: counts only, no names of secrets, no values."""
    return asdict(cache.metrics.snapshot())
