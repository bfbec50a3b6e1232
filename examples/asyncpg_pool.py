"""An asyncpg pool that survives rotations: it opens connections with the coroutine function given as `connect=`.

The decorated one takes what the pool passes on, and the login from the secret. When a rotation has been seen, the
pool replaces its old connections as they come free. Settings: SECRET_ID, and AWS_* as usual.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from smcache import AsyncSecretCache, Secret

SECRET_ID = os.environ["SECRET_ID"]

cache = AsyncSecretCache()


@cache.retry_on_auth_error(SECRET_ID)
async def connect(secret: Secret, /, dsn: str | None = None, **options: Any) -> asyncpg.Connection:
    """Open a connection with the login of the secret; the options are those of asyncpg.connect."""
    return await asyncpg.connect(
        dsn,
        host=secret["host"],
        port=secret["port"],
        user=secret["username"],
        password=secret["password"],
        database=secret["dbname"],
        **options,
    )


@asynccontextmanager
async def open_pool(**options: Any) -> AsyncIterator[asyncpg.Pool]:
    """Open a pool; the options are those of asyncpg.create_pool."""
    async with asyncpg.create_pool(connect=connect, **options) as pool:
        stop = cache.on_rotation(SECRET_ID, lambda _old, _new: pool.expire_connections())
        try:
            yield pool
        finally:
            stop()


async def main() -> None:
    """Ask the server who we are, ten times at once."""
    async with cache, open_pool(min_size=2, max_size=10, timeout=5) as pool:
        print(await asyncio.gather(*(pool.fetchval("select current_user") for _ in range(10))))


if __name__ == "__main__":
    asyncio.run(main())
