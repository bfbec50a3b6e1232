"""Pools on MySQL's protocol against a MariaDB that really rejects passwords, and real rotations."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from typing import TYPE_CHECKING, Any, cast

import django
import django.conf
import pymysql
import pytest
from dbutils.pooled_db import PooledDB  # type: ignore[import-untyped] # it has no types
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError as DjangoOperationalError
from django.db.utils import ConnectionHandler

import smcache.integrations.django
from smcache import AsyncSecretCache, InvalidArgument, NoSuchKey, SecretNotFound
from smcache.integrations.aiomysql import connector, create_pool
from smcache.integrations.pymysql import Connector
from smcache.testing import rotate
from smcache.testing.mariadb_server import INSTALL, is_installed, mariadb

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from conftest import LoopThread, MakeCache, Together

    from smcache.testing import SecretsManager
    from smcache.testing.mariadb_server import MariaDB

pytestmark = pytest.mark.servers

NAME = "prod/db"
STRATEGIES = ["single-user", "alternating-users"]
PASSWORD = "it's a \\ p@ss/word: %s"
WHO = "SELECT SUBSTRING_INDEX(CURRENT_USER(), '@', 1)"
REFUSED = (pymysql.OperationalError, DjangoOperationalError)
#: PyMySQL reads the system's certificates for each connection otherwise, 20 ms of CPU.
OPTIONS: dict[str, Any] = {"read_timeout": 30, "ssl_disabled": True}
users = itertools.count(1)

pymysql.install_as_MySQLdb()  # mysqlclient itself takes a compiler
if not django.conf.settings.configured:
    django.conf.settings.configure(LOGGING_CONFIG=None)
    django.setup()


@pytest.fixture(scope="module")
def server() -> Iterator[MariaDB]:
    if not is_installed() and os.environ.get("SMCACHE_DEMAND_MARIADB") != "1":
        pytest.skip(f"no MariaDB here; to install it: {INSTALL}")
    with mariadb() as server:
        yield server


class DBUtils:
    """PyMySQL in a pool of DBUtils."""

    def __init__(self, cache: Any, _: LoopThread) -> None:
        self.connector = Connector(cache, NAME, **OPTIONS)
        self.pool = PooledDB(creator=self.connector)  # without mincached: it opens none by itself

    def checkout(self) -> str:
        """Take a connection out of the pool, ask who it is logged in as, and close the one below."""
        connection = self.pool.dedicated_connection()
        try:
            with connection.cursor() as cursor:
                cursor.execute(WHO)
                return str(cursor.fetchone()[0])
        finally:
            connection._con._con.close()  # the pool replaces it by a new one
            connection.close()

    def connect(self, **place: Any) -> tuple[str, str]:
        """Open a connection without the pool, which may be told a place; return who and which database."""
        place = {"database" if name == "db" else name: value for name, value in place.items()}
        with self.connector(**place) as connection, connection.cursor() as cursor:
            cursor.execute(f"{WHO}, DATABASE()")
            return cast("tuple[str, str]", cursor.fetchone())

    def close(self) -> None:
        self.pool.close()


class AioMySQL:
    """aiomysql's own pool."""

    def __init__(self, cache: Any, loop: LoopThread) -> None:
        self.loop = loop
        self.connector = connector(cache.cache, NAME)
        self.pool = loop.run(create_pool(cache.cache, NAME, minsize=0, maxsize=5))

    def checkout(self) -> str:
        async def checkout() -> str:
            async with self.pool.acquire() as connection:
                try:
                    async with connection.cursor() as cursor:
                        await cursor.execute(WHO)
                        return str((await cursor.fetchone())[0])
                finally:
                    connection.close()  # the pool keeps none that is closed

        return cast("str", self.loop.run(checkout()))

    def connect(self, **place: Any) -> tuple[str, str]:
        return cast("tuple[str, str]", self.loop.run(self.aconnect(**place)))

    async def aconnect(self, **place: Any) -> tuple[str, str]:
        connection = await self.connector(**place)
        try:
            async with connection.cursor() as cursor:
                await cursor.execute(f"{WHO}, DATABASE()")
                return cast("tuple[str, str]", await cursor.fetchone())
        finally:
            connection.close()

    def close(self) -> None:
        async def close() -> None:
            self.pool.close()
            await self.pool.wait_closed()

        self.loop.run(close())


def databases(**settings: Any) -> ConnectionHandler:
    login = {"ENGINE": "smcache.integrations.django.mysql", "OPTIONS": {"secret_id": NAME, **OPTIONS}}
    return ConnectionHandler({"default": {**login, **settings}})


class Django:
    """Django, which keeps a connection per thread."""

    def __init__(self, cache: Any, _: LoopThread) -> None:
        smcache.integrations.django.use_cache(cache)
        self.databases = databases()

    def checkout(self) -> str:
        connection = self.databases["default"]
        try:
            with connection.cursor() as cursor:
                cursor.execute(WHO)
                return str(cursor.fetchone()[0])
        finally:
            connection.close()

    def connect(self, **place: Any) -> tuple[str, str]:
        names = {"host": "HOST", "port": "PORT", "db": "NAME", "unix_socket": "HOST"}
        connection = databases(**{names[name]: value for name, value in place.items()})["default"]
        try:
            with connection.cursor() as cursor:
                cursor.execute(f"{WHO}, DATABASE()")
                return cast("tuple[str, str]", cursor.fetchone())
        finally:
            connection.close()

    def close(self) -> None:
        pass


LIBRARIES: dict[str, Any] = {"dbutils": DBUtils, "aiomysql": AioMySQL, "django": Django}


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> str:
    return cast("str", request.param)


@pytest.fixture
def kind(library: str) -> str:
    return "asyncio" if library == "aiomysql" else "threads"


class Database:
    """A user whose password is in a secret, and a pool whose every checkout is a new login."""

    def __init__(self, library: str, server: MariaDB, aws: SecretsManager, cache: Any, loop: LoopThread) -> None:
        self.server = server
        self.aws = aws
        self.cache = cache
        self.user = f"app{next(users)}"
        server.create_user(self.user, PASSWORD)
        aws.create(NAME, server.secret(self.user, PASSWORD))
        self.pool = LIBRARIES[library](cache, loop)

    def checkout(self) -> str:
        return cast("str", self.pool.checkout())

    def rotate(self, on_step: Callable[[str], object] = lambda _: None, strategy: Any = "single-user") -> None:
        with self.server.admin() as admin:
            client = self.aws.client()
            rotate(client, NAME, admin, strategy=strategy, dwell=0, on_step=lambda step, _: on_step(step))

    def set_password(self, password: str) -> None:
        self.execute("ALTER USER %s IDENTIFIED BY %s", self.user, password)

    def execute(self, statement: str, *values: object) -> Any:
        with self.server.admin() as admin, admin.cursor() as cursor:
            cursor.execute(statement, values)
            return cursor.fetchall()

    def rejected(self) -> int:
        """Count the logins, of anybody, that the server has rejected."""
        (row,) = self.execute("SHOW GLOBAL STATUS LIKE 'Access_denied_errors'")
        return int(row[1])

    def api_calls(self) -> int:
        return int(self.cache.metrics.snapshot().api_calls)


@pytest.fixture
def database(
    library: str, server: MariaDB, aws: SecretsManager, make_cache: MakeCache, loop_thread: LoopThread
) -> Iterator[Database]:
    database = Database(library, server, aws, make_cache(), loop_thread)
    yield database
    database.pool.close()


class TestRotation:
    def test_no_step_of_a_single_user_rotation_fails_a_checkout_and_each_rotation_rejects_one_login(
        self, database: Database
    ) -> None:
        database.checkout()
        rejected = database.rejected()
        seen: list[tuple[str, int, int]] = []
        for _ in range(3):
            database.rotate(
                lambda _: seen.append((database.checkout(), database.api_calls(), database.rejected() - rejected))
            )
        assert {user for user, *_ in seen} == {database.user}
        # One read at first; then AWSCURRENT and AWSPENDING once per rotation, at setSecret.
        assert [calls for _, calls, _ in seen] == [1, 3, 3, 3, 3, 5, 5, 5, 5, 7, 7, 7]
        assert [count for *_, count in seen] == [0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]

    def test_no_step_of_an_alternating_users_rotation_rejects_a_login(self, database: Database) -> None:
        rejected = database.rejected()
        seen: list[str] = []
        for _ in range(2):
            database.rotate(lambda _: seen.append(database.checkout()), "alternating-users")
            database.cache.refresh(NAME)
            seen.append(database.checkout())
        assert set(seen) == {database.user, f"{database.user}_clone"}
        assert database.rejected() == rejected

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_under_load_no_checkout_fails_in_three_rotations(
        self, database: Database, together: Together, strategy: str
    ) -> None:
        database.checkout()
        over = threading.Event()
        done = threading.Semaphore(0)

        def work() -> bool:
            while not over.is_set():
                assert database.checkout().startswith(database.user)
                done.release()
            return True

        def wait_for_checkouts(_: str) -> None:
            for _each in range(done._value + 15):
                assert done.acquire(timeout=30)

        def rotations() -> None:
            try:
                for _ in range(3):
                    database.rotate(wait_for_checkouts, strategy)
            finally:
                over.set()

        assert together(10, work, meanwhile=rotations) == [True] * 10
        assert database.api_calls() <= 1 + 3 * 6

    @pytest.mark.parametrize("library", ["dbutils"])
    def test_a_connection_that_was_killed_is_replaced_with_the_new_password(self, database: Database) -> None:
        connection = database.pool.pool.dedicated_connection()
        with connection.cursor() as cursor:
            cursor.execute("SELECT CONNECTION_ID()")
            number = cursor.fetchone()[0]
        connection.close()
        database.rotate()
        database.execute("KILL %s", number)
        assert database.checkout() == database.user


class TestAStorm:
    """Connections by themselves: aiomysql's pool opens one at a time, so that one login is refused."""

    @pytest.mark.parametrize("library", ["dbutils"])
    def test_200_threads_refused_at_once_make_one_set_of_api_calls_and_all_recover(
        self, database: Database, together: Together, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = [database.pool.connect()] * 200
        rejected = database.rejected()
        seen: list[object] = []
        # Those who come later do not try what is known to be rejected, so each waits for all before it logs in.
        barrier = threading.Barrier(200)
        logins = itertools.count()
        log_in = pymysql.connections.Connection._request_authentication  # type: ignore[attr-defined] # not in its types

        def log_in_together(connection: object) -> None:
            if next(logins) < 200:
                barrier.wait(30)
            log_in(connection)

        def storm(step: str) -> None:
            if step == "setSecret":
                with monkeypatch.context() as patch:
                    patch.setattr(pymysql.connections.Connection, "_request_authentication", log_in_together)
                    seen.extend(together(200, database.pool.connect))

        database.rotate(storm)
        assert seen == expected
        assert database.api_calls() == 3
        assert database.rejected() - rejected == 200

    @pytest.mark.parametrize("library", ["aiomysql"])
    def test_1000_tasks_refused_at_once_make_one_set_of_api_calls_and_all_recover(
        self, database: Database, loop_thread: LoopThread
    ) -> None:
        expected = [database.pool.connect()] * 1000
        rejected = database.rejected()
        seen: list[object] = []

        def storm(step: str) -> None:
            if step == "setSecret":
                seen.extend(loop_thread.run(all_at_once(1000, database.pool.aconnect)))

        database.rotate(storm)
        assert seen == expected
        assert database.api_calls() == 3
        assert database.rejected() - rejected == 1000

    @pytest.mark.parametrize("library", ["dbutils"])
    def test_200_threads_with_a_wrong_password_make_200_logins_and_one_set_of_api_calls(
        self, database: Database, together: Together
    ) -> None:
        database.set_password("not in the secret")
        rejected = database.rejected()
        for round_ in (1, 2):
            errors = together(200, database.pool.connect)
            assert {error.args[0] for error in errors} == {1045}
            assert database.rejected() - rejected == 200 * round_
            assert database.api_calls() == 3

    @pytest.mark.parametrize("library", ["aiomysql"])
    def test_1000_tasks_with_a_wrong_password_make_1000_logins_and_one_set_of_api_calls(
        self, database: Database, loop_thread: LoopThread
    ) -> None:
        database.set_password("not in the secret")
        rejected = database.rejected()
        for round_ in (1, 2):
            errors = loop_thread.run(all_at_once(1000, database.pool.aconnect))
            assert {error.args[0] for error in errors} == {1045}
            assert database.rejected() - rejected == 1000 * round_
            assert database.api_calls() == 3


async def all_at_once(count: int, call: Callable[[], Coroutine[Any, Any, Any]]) -> list[Any]:
    return await asyncio.gather(*(call() for _ in range(count)), return_exceptions=True)


class TestAnAccountThatLocks:
    @pytest.fixture
    def locking(self, database: Database) -> Iterator[Database]:
        """Two failed logins in a row lock it, as MariaDB's max_password_errors does until FLUSH PRIVILEGES."""
        database.execute("SET GLOBAL max_password_errors = 2")
        yield database
        database.execute("SET GLOBAL max_password_errors = 4294967295")
        database.execute("FLUSH PRIVILEGES")

    def test_it_does_lock(self, locking: Database) -> None:
        for _ in range(2):
            with pytest.raises(pymysql.OperationalError, match="1045"):
                pymysql.connect(
                    host=locking.server.host, port=locking.server.port, user=locking.user, password="guess", **OPTIONS
                )
        with pytest.raises(REFUSED, match="4150"):
            locking.checkout()

    def test_it_is_not_locked_by_a_rotation_when_connections_are_opened_one_after_another(
        self, locking: Database
    ) -> None:
        locking.checkout()
        seen: list[str] = []
        for _ in range(3):
            locking.rotate(lambda _: seen.extend(locking.checkout() for _each in range(5)))
        assert seen == [locking.user] * 60

    def test_locked_it_asks_aws_no_more_than_a_wrong_password_does(self, locking: Database) -> None:
        locking.set_password("not in the secret")
        for number in ("1045", "1045", "4150", "4150"):
            with pytest.raises(REFUSED, match=number):
                locking.checkout()
        assert locking.api_calls() == 3


class TestAPasswordThatIsWrong:
    def test_costs_one_login_for_each_connection_and_api_calls_stay_constant(self, database: Database) -> None:
        database.set_password("not in the secret")
        rejected = database.rejected()
        for _ in range(5):
            with pytest.raises(REFUSED) as caught:
                database.checkout()
            assert caught.value.args[0] == 1045
        assert database.rejected() - rejected == 5
        assert database.api_calls() == 3

    @pytest.mark.parametrize(("place", "number"), [({"db": "no_such_database"}, 1044), ({"port": 1}, 2003)])
    def test_what_is_not_about_it_passes_through_and_asks_aws_nothing(
        self, database: Database, place: dict[str, Any], number: int
    ) -> None:
        with pytest.raises(REFUSED) as caught:
            database.pool.connect(**place)
        assert caught.value.args[0] == number
        assert database.api_calls() == 1


class TestTheSecret:
    @pytest.mark.parametrize("field", ["username", "password", "host"])
    def test_without_a_field_that_a_login_needs_names_it(self, database: Database, field: str) -> None:
        fields = database.server.secret(database.user, PASSWORD)
        del fields[field]
        database.aws.put(NAME, fields)
        with pytest.raises(NoSuchKey, match=f"no key '{field}'; the secret has 'dbname', 'engine'"):
            database.checkout()

    def test_need_not_hold_where_the_options_say_so(self, database: Database) -> None:
        server = database.server
        database.aws.put(NAME, {"username": database.user, "password": PASSWORD})
        place = {"host": server.host, "port": server.port, "db": server.dbname}
        assert database.pool.connect(**place) == (database.user, server.dbname)

    def test_names_no_place_where_the_options_do(self, database: Database) -> None:
        server = database.server
        fields = {"username": database.user, "password": PASSWORD}
        database.aws.put(NAME, {**fields, "host": "192.0.2.1", "port": 1, "dbname": "missing"})
        place = {"host": server.host, "port": server.port, "db": server.dbname}
        assert database.pool.connect(**place) == (database.user, server.dbname)

    def test_names_no_host_beside_a_socket(self, database: Database) -> None:
        fields = database.server.secret(database.user, PASSWORD)
        database.aws.put(NAME, {**fields, "host": "192.0.2.1"})
        socket = f"{database.server._process.directory}/socket"
        assert database.pool.connect(unix_socket=socket) == (database.user, database.server.dbname)

    def test_may_hold_its_port_as_a_string(self, database: Database) -> None:
        fields = database.server.secret(database.user, PASSWORD)
        database.aws.put(NAME, {**fields, "port": str(fields["port"])})
        assert database.checkout() == database.user

    def test_that_is_not_there_is_the_caches_error(self, database: Database) -> None:
        database.aws.reset()
        with pytest.raises(SecretNotFound):
            database.checkout()


@pytest.mark.parametrize("library", ["dbutils"])
class TestPyMySQL:
    def test_needs_a_name(self, database: Database) -> None:
        with pytest.raises(InvalidArgument):
            Connector(database.cache, "")

    def test_refuses_a_cache_for_asyncio(self, database: Database) -> None:
        wrong: Any = AsyncSecretCache(database.aws.client())
        with pytest.raises(InvalidArgument, match="not asynchronous"):
            Connector(wrong, NAME)

    def test_nobody_but_the_secret_says_who_logs_in(self, database: Database) -> None:
        who = database.pool.connect(user="root", password="guess")
        assert who == (database.user, database.server.dbname)


@pytest.mark.parametrize("library", ["aiomysql"])
class TestAioMySQL:
    def test_keeps_as_many_connections_as_it_is_told(self, database: Database, loop_thread: LoopThread) -> None:
        async def use() -> None:
            async with await create_pool(database.cache.cache, NAME, minsize=2, maxsize=3) as pool:
                assert (pool.minsize, pool.size) == (2, 2)

                async def query() -> int:
                    async with pool.acquire() as connection, connection.cursor() as cursor:
                        await cursor.execute("SELECT CONNECTION_ID()")
                        return cast("int", (await cursor.fetchone())[0])

                assert len({await each for each in [asyncio.create_task(query()) for _ in range(20)]}) <= 3
                assert pool.size <= 3
                await pool.clear()
                await query()
                assert (pool.minsize, pool.size) == (2, 2)

        loop_thread.run(use())

    def test_without_a_limit_opens_what_is_asked_for(self, database: Database, loop_thread: LoopThread) -> None:
        async def use() -> None:
            async with await create_pool(database.cache.cache, NAME, minsize=0, maxsize=0) as pool:
                connections = [await pool.acquire() for _ in range(12)]
                assert pool.size == 12
                for connection in connections:
                    pool.release(connection)

        loop_thread.run(use())

    def test_clear_retires_connections_after_a_rotation(self, database: Database, loop_thread: LoopThread) -> None:
        retired = threading.Event()
        pool = database.pool.pool

        async def retire(old: object, new: object) -> None:
            await pool.clear()
            retired.set()

        async def number() -> int:
            async with pool.acquire() as connection, connection.cursor() as cursor:
                await cursor.execute("SELECT CONNECTION_ID()")
                return cast("int", (await cursor.fetchone())[0])

        database.cache.on_rotation(NAME, retire)
        before = loop_thread.run(number())
        database.rotate()
        assert loop_thread.run(number()) == before, "it stays as long as nobody retires it"
        database.cache.refresh(NAME)
        assert retired.wait(30)
        assert loop_thread.run(number()) != before

    def test_refuses_a_cache_that_would_block_its_loop(self, make_client: Any, loop_thread: LoopThread) -> None:
        wrong: Any = smcache.SecretCache(make_client())
        with pytest.raises(InvalidArgument, match="asynchronous"):
            connector(wrong, NAME)
        with pytest.raises(InvalidArgument, match="asynchronous"):
            loop_thread.run(create_pool(wrong, NAME))


@pytest.mark.parametrize("library", ["django"])
class TestDjango:
    def test_settings_without_a_secret_say_so(self, library: str) -> None:
        with pytest.raises(ImproperlyConfigured, match="must name a secret"):
            databases(OPTIONS={})["default"]

    def test_the_name_of_the_database_is_in_the_settings_or_in_the_secret(self, database: Database) -> None:
        fields = database.server.secret(database.user, PASSWORD)
        del fields["dbname"]
        database.aws.put(NAME, fields)
        with pytest.raises(NoSuchKey, match="no key 'dbname'"):
            database.checkout()

    def test_nothing_of_the_secret_gets_into_the_settings(self, database: Database) -> None:
        database.checkout()
        settings = database.pool.databases["default"].settings_dict
        assert [settings[name] for name in ("NAME", "USER", "PASSWORD", "HOST", "PORT")] == [""] * 5

    def test_its_test_runner_makes_and_drops_a_database_as_the_secrets_user(self, database: Database) -> None:
        """It does so in a connection to no database, whatever the secret says."""
        database.execute("GRANT ALL ON only_a_test.* TO %s", database.user)
        fields = database.server.secret(database.user, PASSWORD)
        database.aws.put(NAME, {**fields, "dbname": "not_made_yet"})
        connection = databases(TEST={"NAME": "only_a_test"})["default"]
        name = connection.creation._create_test_db(verbosity=0, autoclobber=True)
        connection.settings_dict["NAME"] = name  # as create_test_db does
        with connection.cursor() as cursor:
            cursor.execute(f"{WHO}, DATABASE()")
            assert cursor.fetchone() == (database.user, "only_a_test")
        connection.close()
        connection.creation._destroy_test_db(name, verbosity=0)


@pytest.mark.parametrize("kind", ["mysql", "postgresql"])
def test_djangos_test_runner_makes_a_database_for_each_secret_but_one_for_each_host_that_is_named(kind: str) -> None:
    def signature(secret_id: str, host: str = "") -> Any:
        engine = f"smcache.integrations.django.{kind}"
        settings = {"ENGINE": engine, "HOST": host, "OPTIONS": {"secret_id": secret_id}, "TEST": {"NAME": "test"}}
        return ConnectionHandler({"default": settings})["default"].creation.test_db_signature()

    assert signature("one") == signature("one") != signature("another")
    assert signature("one", "h") == signature("another", "h") != signature("one", "g")
