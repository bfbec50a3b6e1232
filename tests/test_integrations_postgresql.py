"""Pools of every kind under load: a PostgreSQL that really rejects passwords, a secret that really rotates."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import asyncpg
import django
import django.conf
import oracledb
import psycopg
import psycopg_pool
import pytest
import sqlalchemy
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError as DjangoOperationalError
from django.db.utils import ConnectionHandler
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

import smcache.integrations.django
from smcache import AsyncSecretCache, InvalidArgument, NoSuchKey, SecretCache, SecretNotFound, is_auth_error
from smcache.integrations.asyncpg import connector
from smcache.integrations.psycopg_pool import connection_class, last_failure
from smcache.integrations.sqlalchemy import use_secret
from smcache.testing import rotate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import LoopThread
    from typing_extensions import Self

    from smcache import Secret
    from smcache.testing import PostgreSQL, SecretsManager

pytestmark = [pytest.mark.servers, pytest.mark.usefixtures("aws_is_quick")]

NAME = "prod/db"
WHO = "select current_user, pg_backend_pid()"
WORKERS = 4
STEPS = ("createSecret", "setSecret", "testSecret", "finishSecret")
roles = itertools.count(1)

if not django.conf.settings.configured:
    django.conf.settings.configure(LOGGING_CONFIG=None)
    django.setup()


@dataclass
class Database:
    """A role whose password is in a secret."""

    aws: SecretsManager
    pg: PostgreSQL
    role: str

    def __post_init__(self) -> None:
        self.admin = self.pg.admin()  # before there is load, under which it might time out

    def rotate(self, on_step: Callable[[str], object], strategy: Any) -> None:
        client = self.aws.client()
        rotate(client, NAME, self.admin, strategy=strategy, dwell=0, on_step=lambda step, _: on_step(step))

    def set_password(self, password: str) -> None:
        self.admin.execute(f"ALTER ROLE {self.role} PASSWORD '{password}'")

    def put(self, **fields: Any) -> None:
        self.aws.client().put_secret_value(SecretId=NAME, SecretString=json.dumps(fields))


@pytest.fixture
def database(aws: SecretsManager, pg: PostgreSQL, canary: str) -> Iterator[Database]:
    role = f"pooled{next(roles)}"
    pg.create_role(role, canary)
    aws.create(NAME, pg.secret(role, canary))
    database = Database(aws, pg, role)
    yield database
    database.admin.close()


@pytest.fixture
def cache(database: Database) -> Iterator[SecretCache]:
    with SecretCache(database.aws.client()) as cache:
        yield cache


@pytest.fixture
def async_cache(database: Database, loop_thread: LoopThread) -> Iterator[AsyncSecretCache]:
    cache = AsyncSecretCache(database.aws.client())
    yield cache
    loop_thread.run(cache.close())


@dataclass
class Pool:
    """One kind of pool: ``check_out`` asks the server who is connected, ``recycle`` has connections replaced."""

    cache: SecretCache | AsyncSecretCache
    check_out: Callable[[], tuple[str, int]]
    recycle: Callable[[], object]
    rejected: type[Exception] | tuple[type[Exception], ...]
    native: Any = None


def retiring(engine: sqlalchemy.Engine) -> Callable[[], None]:
    """Return what has the engine replace each connection when it is next checked out."""
    generation = 0

    def next_generation() -> None:
        nonlocal generation
        generation += 1

    def check(_connection: object, record: Any, _proxy: object) -> None:
        if record.info.setdefault("generation", generation) != generation:
            raise sqlalchemy.exc.DisconnectionError

    sqlalchemy.event.listen(engine, "checkout", check)
    return next_generation


@contextlib.contextmanager
def sqlalchemy_pool(driver: str, cache: SecretCache) -> Iterator[Pool]:
    engine = sqlalchemy.create_engine(f"postgresql+{driver}://", pool_size=WORKERS)
    use_secret(engine, cache, NAME)

    def check_out() -> tuple[str, int]:
        with engine.connect() as connection:
            user, pid = connection.execute(sqlalchemy.text(WHO)).one()
            return user, pid

    yield Pool(cache, check_out, retiring(engine), sqlalchemy.exc.OperationalError, engine)
    engine.dispose()


@contextlib.contextmanager
def async_sqlalchemy_pool(driver: str, cache: AsyncSecretCache, loop: LoopThread) -> Iterator[Pool]:
    engine = create_async_engine(f"postgresql+{driver}://", pool_size=WORKERS)
    use_secret(engine, cache, NAME)

    async def check_out() -> tuple[str, int]:
        async with engine.connect() as connection:
            user, pid = (await connection.execute(sqlalchemy.text(WHO))).one()
            return user, pid

    rejected = (sqlalchemy.exc.DBAPIError, asyncpg.InvalidPasswordError)  # SQLAlchemy 2.0 does not wrap asyncpg's
    yield Pool(cache, lambda: loop.run(check_out()), retiring(engine.sync_engine), rejected, engine)
    loop.run(engine.dispose())


def row(found: tuple[Any, ...] | None) -> tuple[str, int]:
    assert found is not None
    return found[0], found[1]


@contextlib.contextmanager
def psycopg_threads_pool(cache: SecretCache) -> Iterator[Pool]:
    made = connection_class(cache, NAME)
    with psycopg_pool.ConnectionPool(connection_class=made, min_size=1, max_size=WORKERS, timeout=20) as pool:
        pool.wait()

        def check_out() -> tuple[str, int]:
            with pool.connection() as connection:
                return row(connection.execute(WHO).fetchone())

        yield Pool(cache, check_out, pool.drain, psycopg_pool.PoolTimeout, pool)


@contextlib.contextmanager
def psycopg_null_pool(cache: SecretCache) -> Iterator[Pool]:
    made = connection_class(cache, NAME)
    with psycopg_pool.NullConnectionPool(connection_class=made, max_size=WORKERS, timeout=20) as pool:

        def check_out() -> tuple[str, int]:
            with pool.connection() as connection:
                return row(connection.execute(WHO).fetchone())

        yield Pool(cache, check_out, lambda: None, psycopg.OperationalError)


@contextlib.contextmanager
def psycopg_async_pool(cache: AsyncSecretCache, loop: LoopThread) -> Iterator[Pool]:
    made = connection_class(cache, NAME)

    async def make() -> psycopg_pool.AsyncConnectionPool[Any]:
        pool = psycopg_pool.AsyncConnectionPool(
            connection_class=made, min_size=1, max_size=WORKERS, timeout=20, open=False
        )
        await pool.open(wait=True)
        return pool

    pool = loop.run(make())

    async def check_out() -> tuple[str, int]:
        async with pool.connection() as connection:
            return row(await (await connection.execute(WHO)).fetchone())

    yield Pool(cache, lambda: loop.run(check_out()), lambda: loop.run(pool.drain()), psycopg_pool.PoolTimeout, pool)
    loop.run(pool.close())


@contextlib.contextmanager
def asyncpg_pool(cache: AsyncSecretCache, loop: LoopThread) -> Iterator[Pool]:
    async def make() -> Any:
        return await asyncpg.create_pool(connect=connector(cache, NAME), min_size=0, max_size=WORKERS)

    pool = loop.run(make())

    async def check_out() -> tuple[str, int]:
        async with pool.acquire() as connection:
            return row(tuple(await connection.fetchrow(WHO)))

    recycle = lambda: loop.run(pool.expire_connections())  # noqa: E731 - as the others
    yield Pool(cache, lambda: loop.run(check_out()), recycle, asyncpg.InvalidPasswordError, pool)
    loop.run(pool.close())


def databases(**options: Any) -> ConnectionHandler:
    engine = "smcache.integrations.django.postgresql"
    return ConnectionHandler({"default": {"ENGINE": engine, "OPTIONS": {"secret_id": NAME, **options}}})


@contextlib.contextmanager
def django_pool(cache: SecretCache, *, pooled: bool) -> Iterator[Pool]:
    smcache.integrations.django.use_cache(cache)
    options = {"pool": {"min_size": 1, "max_size": WORKERS, "timeout": 20}} if pooled else {}
    connections = databases(**options)

    def check_out() -> tuple[str, int]:
        connection = connections["default"]
        try:
            with connection.cursor() as cursor:
                cursor.execute(WHO)
                return row(cursor.fetchone())
        finally:
            connection.close()

    def recycle() -> None:
        if pooled:
            connections["default"].pool.drain()

    yield Pool(cache, check_out, recycle, DjangoOperationalError, connections["default"].pool)
    connections["default"].close_pool()


KINDS = {
    "sqlalchemy-psycopg": lambda cache, aio, loop: sqlalchemy_pool("psycopg", cache),
    "sqlalchemy-psycopg2": lambda cache, aio, loop: sqlalchemy_pool("psycopg2", cache),
    "sqlalchemy-async-psycopg": lambda cache, aio, loop: async_sqlalchemy_pool("psycopg", aio, loop),
    "sqlalchemy-async-asyncpg": lambda cache, aio, loop: async_sqlalchemy_pool("asyncpg", aio, loop),
    "psycopg_pool": lambda cache, aio, loop: psycopg_threads_pool(cache),
    "psycopg_pool-null": lambda cache, aio, loop: psycopg_null_pool(cache),
    "psycopg_pool-async": lambda cache, aio, loop: psycopg_async_pool(aio, loop),
    "asyncpg": lambda cache, aio, loop: asyncpg_pool(aio, loop),
    "django": lambda cache, aio, loop: django_pool(cache, pooled=False),
    "django-pooled": lambda cache, aio, loop: django_pool(cache, pooled=True),
}
HIDING = ("psycopg_pool", "psycopg_pool-async", "django-pooled")  # they say PoolTimeout of a failed login


@pytest.fixture
def pool(
    request: pytest.FixtureRequest, cache: SecretCache, async_cache: AsyncSecretCache, loop_thread: LoopThread
) -> Iterator[Pool]:
    with KINDS[request.param](cache, async_cache, loop_thread) as pool:
        yield pool


class Load:
    """Threads that check connections out, one after another, for as long as the block lasts."""

    def __init__(self, check_out: Callable[[], tuple[str, int]]) -> None:
        self._check_out = check_out
        self._laps = [0] * WORKERS
        self._changed = threading.Condition()
        self._over = False
        self.seen: list[tuple[str, int]] = []
        self.errors: list[Exception] = []
        self._threads = [threading.Thread(target=self._work, args=(n,), daemon=True) for n in range(WORKERS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        for thread in self._threads:
            thread.join(30)

    def _work(self, number: int) -> None:
        while not self._over:
            try:
                found = self._check_out()
            except Exception as error:  # noqa: BLE001 - the test looks at it
                self.errors.append(error)
            else:
                self.seen.append(found)
            with self._changed:
                self._laps[number] += 1
                self._changed.notify_all()

    def lap(self) -> set[int]:
        """Wait until each thread has begun and ended a checkout from now on; return the server processes seen."""
        start = len(self.seen)
        with self._changed:
            goal = [laps + 2 for laps in self._laps]
            assert self._changed.wait_for(lambda: all(map(int.__ge__, self._laps, goal)), 60)
        return {pid for _, pid in self.seen[start:]}


@pytest.mark.parametrize("strategy", ["single-user", "alternating-users"])
@pytest.mark.parametrize("pool", KINDS, indirect=True)
def test_no_checkout_fails_at_any_step_of_three_rotations_under_load(
    database: Database, pool: Pool, strategy: str
) -> None:
    """The connections are replaced at each step, those that only AWSPENDING opens included."""
    steps: list[str] = []
    requests: list[int] = []

    with Load(pool.check_out) as load:
        before = load.lap()

        def on_step(step: str) -> None:
            nonlocal before
            pool.recycle()
            load.lap()  # what was checked out is back
            now = load.lap()
            assert load.errors == []
            assert now - before, "new connections were made"
            before = now
            steps.append(step)

        for _ in range(3):
            start = pool.cache.metrics.snapshot().api_calls
            database.rotate(on_step, strategy)
            requests.append(pool.cache.metrics.snapshot().api_calls - start)
    assert load.errors == []
    assert steps == [*STEPS] * 3
    assert {user for user, _ in load.seen} <= {database.role, f"{database.role}_clone"}
    assert max(requests) <= 2, requests
    if strategy == "single-user":
        counted = pool.cache.metrics.snapshot()
        assert counted.auth_failures >= counted.auth_recoveries >= 3, "each setSecret was met by a rejected login"


@pytest.mark.parametrize("pool", [kind for kind in KINDS if kind not in HIDING], indirect=True)
def test_a_wrong_password_is_the_drivers_error_at_once_and_one_login_per_attempt(
    database: Database, pool: Pool
) -> None:
    database.set_password("by hand")
    for _ in range(10):
        with pytest.raises(pool.rejected, match="password authentication failed"):
            pool.check_out()
    counted = pool.cache.metrics.snapshot()
    assert counted.auth_failures == 10
    assert counted.api_calls <= 3


class TestRetirement:
    """What each module's docstring says of connections that are open."""

    def check(self, pool: Pool, database: Database, refresh: Callable[[], object], retired: threading.Event) -> None:
        _, before = pool.check_out()
        database.rotate(lambda _: None, "single-user")
        assert pool.check_out()[1] == before, "it stays as long as nobody retires it"
        refresh()
        assert retired.wait(30)
        assert pool.check_out()[1] != before

    @pytest.mark.parametrize("pool", ["sqlalchemy-psycopg", "psycopg_pool"], indirect=True)
    def test_dispose_and_drain_retire_them(self, database: Database, pool: Pool, cache: SecretCache) -> None:
        retired = threading.Event()

        def retire(old: Secret, new: Secret) -> None:
            retirement = pool.native.dispose if isinstance(pool.native, sqlalchemy.Engine) else pool.native.drain
            retirement()
            retired.set()

        cache.on_rotation(NAME, retire)
        self.check(pool, database, lambda: cache.refresh(NAME), retired)

    @pytest.mark.parametrize("pool", ["sqlalchemy-async-asyncpg", "psycopg_pool-async", "asyncpg"], indirect=True)
    def test_a_coroutine_function_retires_them(
        self, database: Database, pool: Pool, async_cache: AsyncSecretCache, loop_thread: LoopThread
    ) -> None:
        retired = threading.Event()

        async def retire(old: Secret, new: Secret) -> None:
            if isinstance(pool.native, AsyncEngine):
                await pool.native.dispose()
            elif isinstance(pool.native, psycopg_pool.AsyncConnectionPool):
                await pool.native.drain()
            else:
                await pool.native.expire_connections()
            retired.set()

        async_cache.on_rotation(NAME, retire)
        self.check(pool, database, lambda: loop_thread.run(async_cache.refresh(NAME)), retired)


class TestFields:
    """Where a field comes from, and what is said of one that is missing."""

    def all_kinds(self, cache: SecretCache, aio: AsyncSecretCache, loop: LoopThread) -> Iterator[Callable[[], object]]:
        engine = sqlalchemy.create_engine("postgresql+psycopg://")
        use_secret(engine, cache, NAME)
        yield engine.connect
        yield connection_class(cache, NAME).connect
        yield lambda: loop.run(connection_class(aio, NAME).connect())
        yield lambda: loop.run(connector(aio, NAME)())
        smcache.integrations.django.use_cache(cache)
        yield databases()["default"].connect

    @pytest.mark.parametrize("missing", ["username", "password"])
    def test_a_secret_without_username_or_password_names_it(
        self,
        database: Database,
        cache: SecretCache,
        async_cache: AsyncSecretCache,
        loop_thread: LoopThread,
        missing: str,
    ) -> None:
        fields = {**database.pg.secret("x", "y"), missing: None}
        database.put(**{key: value for key, value in fields.items() if key != missing})
        for connect in self.all_kinds(cache, async_cache, loop_thread):
            with pytest.raises(NoSuchKey, match=rf"'prod/db': no key '{missing}'; the secret has 'dbname', 'engine'"):
                connect()

    def test_a_secret_that_is_not_there_is_what_the_cache_says(
        self, database: Database, cache: SecretCache, async_cache: AsyncSecretCache, loop_thread: LoopThread
    ) -> None:
        database.aws.reset()
        for connect in self.all_kinds(cache, async_cache, loop_thread):
            with pytest.raises(SecretNotFound):
                connect()

    def test_where_the_pool_names_a_place_the_secrets_is_not_used(
        self,
        database: Database,
        cache: SecretCache,
        async_cache: AsyncSecretCache,
        loop_thread: LoopThread,
        canary: str,
    ) -> None:
        """As for a proxy or a replica; what the pool leaves out comes from the secret all the same."""
        pg = database.pg
        database.put(username=database.role, password=canary, host="192.0.2.1", port=1, dbname="missing")
        place = f"{pg.host}:{pg.port}/{pg.dbname}"
        engine = sqlalchemy.create_engine(f"postgresql+psycopg://somebody:else@{place}")
        use_secret(engine, cache, NAME)
        with engine.connect() as connection:
            assert connection.execute(sqlalchemy.text("select current_user")).scalar() == database.role
        engine.dispose()

        conninfo = f"host={pg.host} port={pg.port} user=somebody"
        with connection_class(cache, NAME).connect(conninfo, dbname=pg.dbname) as psycopg_connection:
            assert psycopg_connection.info.user == database.role

        async def connect() -> None:
            for dsn, named in [
                (f"postgresql://somebody@{place}", {}),
                (f"postgresql://?host={pg.host}&port={pg.port}&dbname={pg.dbname}", {}),
                (None, {"host": pg.host, "port": pg.port, "database": pg.dbname}),
            ]:
                connection = await connector(async_cache, NAME)(dsn, **named)
                assert await connection.fetchval("select current_user") == database.role
                await connection.close()

        loop_thread.run(connect())

        smcache.integrations.django.use_cache(cache)
        engine_name = "smcache.integrations.django.postgresql"
        settings = {"ENGINE": engine_name, "HOST": pg.host, "PORT": pg.port, "NAME": pg.dbname, "USER": "somebody"}
        connection = ConnectionHandler({"default": {**settings, "OPTIONS": {"secret_id": NAME}}})["default"]
        with connection.cursor() as cursor:
            cursor.execute("select current_user")
            assert cursor.fetchone() == (database.role,)
        connection.close()


class TestSQLAlchemy:
    def test_an_engine_that_has_connected_already_uses_the_secret_from_now_on(
        self, database: Database, cache: SecretCache, canary: str
    ) -> None:
        pg = database.pg
        engine = sqlalchemy.create_engine(
            sqlalchemy.URL.create("postgresql+psycopg", database.role, canary, pg.host, pg.port, pg.dbname), pool_size=1
        )
        with engine.connect():
            pass
        use_secret(engine, cache, NAME)
        with engine.connect():
            assert cache.metrics.snapshot().api_calls == 0, "the connection that is open stays"
            with engine.connect():
                assert cache.metrics.snapshot().api_calls == 1
        engine.dispose()

    def test_an_async_engine_that_has_connected_already_uses_the_secret_from_now_on(
        self, database: Database, async_cache: AsyncSecretCache, loop_thread: LoopThread, canary: str
    ) -> None:
        pg = database.pg
        url = sqlalchemy.URL.create("postgresql+asyncpg", database.role, canary, pg.host, pg.port, pg.dbname)
        engine = create_async_engine(url, pool_size=1)

        async def check() -> None:
            async with engine.connect():
                pass
            use_secret(engine, async_cache, NAME)
            async with engine.connect():
                assert async_cache.metrics.snapshot().api_calls == 0, "the connection that is open stays"
                async with engine.connect():
                    assert async_cache.metrics.snapshot().api_calls == 1
            await engine.dispose()

        loop_thread.run(check())

    def test_an_engine_takes_one_secret(
        self, database: Database, cache: SecretCache, async_cache: AsyncSecretCache
    ) -> None:
        """Of two, the first would answer and the second be ignored."""
        engine = sqlalchemy.create_engine("postgresql+psycopg://")
        use_secret(engine, cache, NAME)
        for again in (engine, engine.execution_options(isolation_level="AUTOCOMMIT")):
            with pytest.raises(InvalidArgument, match="this engine uses the secret 'prod/db' already"):
                use_secret(again, cache, "prod/other")
        with engine.connect() as connection:
            assert connection.execute(sqlalchemy.text("select current_user")).scalar() == database.role
        engine.dispose()
        async_engine = create_async_engine("postgresql+asyncpg://")
        use_secret(async_engine, async_cache, NAME)
        with pytest.raises(InvalidArgument, match="already"):
            use_secret(async_engine, async_cache, NAME)

    def test_an_engine_that_was_refused_a_secret_may_get_another(
        self, cache: SecretCache, async_cache: AsyncSecretCache
    ) -> None:
        engine = sqlalchemy.create_engine("postgresql+psycopg://")
        with pytest.raises(InvalidArgument):
            use_secret(engine, async_cache, NAME)
        with pytest.raises(InvalidArgument):
            use_secret(engine, cache, "")
        use_secret(engine, cache, NAME)

    def test_the_engines_own_arguments_never_hold_a_secret(self, cache: SecretCache) -> None:
        engine = sqlalchemy.create_engine("postgresql+psycopg://")
        seen: list[dict[str, Any]] = []
        sqlalchemy.event.listen(engine, "do_connect", lambda *given: seen.append(given[3]))
        use_secret(engine, cache, NAME)
        with engine.connect():
            pass
        engine.dispose()
        assert [set(given) & {"user", "password"} for given in seen] == [set()]

    @pytest.mark.parametrize(
        ("driver", "names"),
        [
            ("mysql+pymysql", {"user": "app", "password": "pw", "host": "h", "port": 7, "database": "d"}),
            ("mysql+mysqlconnector", {"user": "app", "password": "pw", "host": "h", "port": 7, "database": "d"}),
            ("mysql+mysqldb", {"user": "app", "passwd": "pw", "host": "h", "port": 7, "db": "d"}),
        ],
    )
    def test_each_driver_gets_the_fields_by_its_own_names(
        self, database: Database, cache: SecretCache, driver: str, names: dict[str, Any]
    ) -> None:
        database.put(username="app", password="pw", host="h", port="7", dbname="d")
        module = Mock(paramstyle="format", version_info=(2, 2), __version__="2.2.0", Error=ValueError)
        module.__name__ = "driver"
        options = {"module": module} if driver == "mysql+mysqldb" else {}
        engine = sqlalchemy.create_engine(f"{driver}://", **options)
        connected = Mock(side_effect=ConnectionRefusedError)
        engine.dialect.connect = connected  # type: ignore[method-assign]
        use_secret(engine, cache, NAME)
        with pytest.raises(ConnectionRefusedError):
            engine.connect()
        assert connected.call_args.kwargs.items() >= names.items()

    @pytest.mark.parametrize(
        ("url", "connect_args", "given"),
        [
            ("mssql+pymssql://", {}, {"host": "h:7", "database": "d"}),
            ("mssql+pymssql://:8", {}, {"host": "h:8", "database": "d"}),
            ("mssql+pymssql://proxy/other", {}, {"host": "proxy", "database": "other"}),
            ("mssql+pymssql://", {"host": "proxy"}, {"host": "proxy", "database": "d"}),
            ("mssql+pymssql://", {"server": "proxy", "database": "other"}, {"server": "proxy", "database": "other"}),
            (
                "mssql+pymssql://?charset=ascii",
                {"port": "9", "charset": "x"},
                {"host": "h", "port": "9", "charset": "x"},
            ),
            ("oracle+oracledb://", {}, {"dsn": oracledb.makedsn("h", 7, service_name="d")}),
            ("oracle+oracledb://tns_name", {}, {"dsn": "tns_name"}),
            ("oracle+oracledb://", {"dsn": "proxy/other"}, {"dsn": "proxy/other"}),
            (
                "oracle+oracledb://",
                {"host": "proxy", "service_name": "other"},
                {"host": "proxy", "service_name": "other"},
            ),
        ],
    )
    def test_a_driver_that_takes_no_host_by_itself_gets_it_as_its_dialect_has_it(
        self, database: Database, cache: SecretCache, url: str, connect_args: dict[str, Any], given: dict[str, Any]
    ) -> None:
        database.put(username="app", password="pw", host="h", port="7", dbname="d")
        engine = sqlalchemy.create_engine(url, connect_args=connect_args)
        connected = Mock(side_effect=ConnectionRefusedError)
        engine.dialect.connect = connected  # type: ignore[method-assign]
        use_secret(engine, cache, NAME)
        with pytest.raises(ConnectionRefusedError):
            engine.connect()
        place = {"database": "d"} if url.startswith("mssql") else {}
        assert connected.call_args.kwargs == {"user": "app", "password": "pw", **place, **given}

    @pytest.mark.parametrize(
        ("driver", "missing"), [("mssql+pymssql", "host"), ("oracle+oracledb", "host"), ("oracle+oracledb", "dbname")]
    )
    def test_such_a_driver_does_not_look_for_a_server_that_nobody_names(
        self, database: Database, cache: SecretCache, driver: str, missing: str
    ) -> None:
        fields = {"username": "app", "password": "pw", "host": "h", "dbname": "d"}
        database.put(**{name: value for name, value in fields.items() if name != missing})
        engine = sqlalchemy.create_engine(f"{driver}://")
        use_secret(engine, cache, NAME)
        with pytest.raises(NoSuchKey, match=f"no key '{missing}'"):
            engine.connect()

    def test_a_creator_of_the_callers_is_refused(self, cache: SecretCache, async_cache: AsyncSecretCache) -> None:
        async def connect() -> Any:
            raise NotImplementedError

        with pytest.raises(InvalidArgument, match="made with creator="):
            use_secret(sqlalchemy.create_engine("postgresql+psycopg://", creator=psycopg.connect), cache, NAME)
        with pytest.raises(InvalidArgument, match="made with creator="):
            use_secret(create_async_engine("postgresql+asyncpg://", async_creator=connect), async_cache, NAME)

    def test_a_driver_that_takes_no_password_by_name_is_refused(self, cache: SecretCache) -> None:
        engine = sqlalchemy.create_engine(
            "mssql+pyodbc://", module=Mock(paramstyle="qmark", version="5.0", Error=ValueError)
        )
        with pytest.raises(InvalidArgument, match=r"mssql\+pyodbc takes no password by name.*creator="):
            use_secret(engine, cache, NAME)

    def test_a_cache_of_the_wrong_kind_is_refused(self, cache: SecretCache, async_cache: AsyncSecretCache) -> None:
        with pytest.raises(InvalidArgument, match="needs a SecretCache, not a AsyncSecretCache"):
            use_secret(sqlalchemy.create_engine("postgresql+psycopg://"), async_cache, NAME)
        with pytest.raises(InvalidArgument, match="needs a AsyncSecretCache, not a SecretCache"):
            use_secret(create_async_engine("postgresql+asyncpg://"), cache, NAME)


class TestPsycopgPool:
    def test_a_base_of_the_callers_is_derived_from(self, database: Database, cache: SecretCache) -> None:
        class Named(psycopg.Connection[Any]):
            name = "mine"

        with connection_class(cache, NAME, Named).connect() as connection:
            assert isinstance(connection, Named)
            assert connection.name == "mine"

    def test_a_time_out_can_say_why(self, database: Database, cache: SecretCache) -> None:
        database.set_password("by hand")
        failed = threading.Event()

        class Connection(connection_class(cache, NAME)):  # type: ignore[misc]  # made when it runs
            @classmethod
            def connect(cls, *args: Any, **kwargs: Any) -> Any:
                try:
                    return super().connect(*args, **kwargs)
                finally:
                    failed.set()

        with psycopg_pool.ConnectionPool(connection_class=Connection, min_size=1) as pool:
            assert failed.wait(30)
            with pytest.raises(psycopg_pool.PoolTimeout) as caught:
                pool.wait(timeout=0.01)
            assert not is_auth_error(caught.value)
            reason = last_failure(pool)
            assert isinstance(reason, psycopg.OperationalError)
            assert reason.__traceback__ is None
            caught.value.__cause__ = reason
            assert is_auth_error(caught.value)

    def test_a_login_that_succeeds_has_no_failure(self, database: Database, cache: SecretCache, canary: str) -> None:
        made = connection_class(cache, NAME)
        with psycopg_pool.NullConnectionPool(connection_class=made, open=True) as pool:
            assert last_failure(pool) is None
            database.set_password("by hand")
            with pytest.raises(psycopg.OperationalError) as caught:
                pool.getconn()
            assert str(last_failure(pool)) == str(caught.value)
            assert last_failure(pool) is not caught.value, "whose traceback holds the password"
            database.set_password(canary)
            with pool.connection():
                assert last_failure(pool) is None

    def test_what_the_cache_says_is_a_reason_too(
        self, database: Database, async_cache: AsyncSecretCache, loop_thread: LoopThread
    ) -> None:
        database.put(username=database.role)

        async def check() -> None:
            made = connection_class(async_cache, NAME)
            async with psycopg_pool.AsyncNullConnectionPool(connection_class=made) as pool:
                with pytest.raises(NoSuchKey):
                    await pool.getconn()
                assert "no key 'password'" in str(last_failure(pool))

        loop_thread.run(check())

    def test_a_pool_that_is_none_of_ours_has_no_last_failure(self) -> None:
        assert last_failure(psycopg_pool.ConnectionPool(open=False)) is None

    def test_a_base_of_the_wrong_kind_is_refused(self, cache: SecretCache, async_cache: AsyncSecretCache) -> None:
        wrong: Any = psycopg.AsyncConnection
        with pytest.raises(InvalidArgument, match="base is a Connection, not AsyncConnection"):
            connection_class(cache, NAME, wrong)
        wrong = psycopg.Connection
        with pytest.raises(InvalidArgument, match="base is a AsyncConnection, not Connection"):
            connection_class(async_cache, NAME, wrong)


def test_asyncpg_refuses_a_cache_that_would_block_its_loop(cache: SecretCache) -> None:
    wrong: Any = cache
    with pytest.raises(InvalidArgument, match="asynchronous"):
        connector(wrong, NAME)


class TestDjango:
    def test_settings_without_a_secret_say_so(self) -> None:
        with pytest.raises(ImproperlyConfigured, match="must name a secret"):
            databases(secret_id="")["default"]

    def test_the_name_of_the_database_is_in_the_settings_or_in_the_secret(
        self, database: Database, cache: SecretCache
    ) -> None:
        smcache.integrations.django.use_cache(cache)
        database.put(username="x", password="y")
        with pytest.raises(NoSuchKey, match="no key 'dbname'"):
            databases()["default"].connect()

    def test_nothing_of_the_secret_gets_into_the_settings(self, database: Database, cache: SecretCache) -> None:
        smcache.integrations.django.use_cache(cache)
        connection = databases()["default"]
        connection.connect()
        connection.close()
        settings = connection.settings_dict
        assert [settings[name] for name in ("NAME", "USER", "PASSWORD", "HOST", "PORT")] == [""] * 5

    def test_its_test_runner_makes_and_drops_a_database_as_the_secrets_user(
        self, database: Database, cache: SecretCache
    ) -> None:
        smcache.integrations.django.use_cache(cache)
        database.admin.execute(f"ALTER ROLE {database.role} CREATEDB")
        engine = "smcache.integrations.django.postgresql"
        settings = {"ENGINE": engine, "OPTIONS": {"secret_id": NAME}, "TEST": {"NAME": "only_a_test"}}
        connection = ConnectionHandler({"default": settings})["default"]
        name = connection.creation._create_test_db(verbosity=0, autoclobber=True)
        connection.settings_dict["NAME"] = name  # as create_test_db does
        with connection.cursor() as cursor:
            cursor.execute("select current_database(), current_user")
            assert cursor.fetchone() == ("only_a_test", database.role)
        connection.close()
        connection.creation._destroy_test_db(name, verbosity=0)

    def test_one_cache_is_made_on_first_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(smcache.integrations.django, "_cache", None)
        made = smcache.integrations.django.cache()
        assert smcache.integrations.django.cache() is made
        made.close()
