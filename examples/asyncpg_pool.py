"""An asyncpg pool that survives rotations: what it is given as `connect=` logs in with the secret.

When a rotation has been seen, the pool replaces its old connections as they come free. Settings: SECRET_ID, and AWS_*
as usual.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from smcache import AsyncSecretCache
from smcache.integrations.asyncpg import connector

SECRET_ID = os.environ["SECRET_ID"]

cache = AsyncSecretCache()


@asynccontextmanager
async def open_pool(**options: Any) -> AsyncIterator[asyncpg.Pool]:
    """Open a pool; the options are those of asyncpg.create_pool."""
    async with asyncpg.create_pool(connect=connector(cache, SECRET_ID), **options) as pool:
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
