"""Connection pools that survive a rotation; each module needs the package it is named after, and no other.

    your pool                                           module
    SQLAlchemy's Engine and AsyncEngine                 smcache.integrations.sqlalchemy
    psycopg_pool's ConnectionPool, AsyncConnectionPool  smcache.integrations.psycopg_pool
    asyncpg.create_pool                                 smcache.integrations.asyncpg
    Django's DATABASES, on PostgreSQL and MySQL         smcache.integrations.django
    PyMySQL, and DBUtils over it                        smcache.integrations.pymysql
    aiomysql's pool                                     smcache.integrations.aiomysql
    redis-py's ConnectionPool, sync and asyncio         smcache.integrations.redis
    pymongo's MongoClient and AsyncMongoClient          smcache.integrations.pymongo
    API keys and tokens in httpx                        smcache.integrations.httpx
    API keys and tokens in requests                     smcache.integrations.requests

Those of databases log in with ``username`` and ``password`` of the secret. ``host``, ``port`` and ``dbname`` come
from the secret where the pool itself is told nothing, so that a proxy or a read replica can be named; a pool of Redis
has them from its own arguments alone.

Connections that are open stay open when a password changes, so none has to be closed. Each module says how to
retire them all the same.
"""
