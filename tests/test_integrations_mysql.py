"""PyMySQL and DBUtils' pools against a MariaDB that really rejects passwords, and real rotations."""

from __future__ import annotations

import itertools
import os
import threading
from typing import TYPE_CHECKING, Any

import pymysql
import pytest
from dbutils.pooled_db import PooledDB  # type: ignore[import-untyped] # it has no types

from smcache import InvalidArgument, NoSuchKey, SecretNotFound
from smcache.integrations.pymysql import Connector
from smcache.testing import rotate
from smcache.testing.mariadb_server import INSTALL, is_installed, mariadb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import MakeCache, Together

    from smcache import SecretCache
    from smcache.testing import SecretsManager
    from smcache.testing.mariadb_server import MariaDB

NAME = "prod/db"
STRATEGIES = ["single-user", "alternating-users"]
PASSWORD = "it's a \\ p@ss/word: %s"
users = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[MariaDB]:
    if not is_installed() and os.environ.get("SMCACHE_DEMAND_MARIADB") != "1":
        pytest.skip(f"no MariaDB here; to install it: {INSTALL}")
    with mariadb() as server:
        yield server


class Database:
    """A user whose password is in a secret, and a pool whose every checkout is a new login."""

    def __init__(self, server: MariaDB, aws: SecretsManager, cache: SecretCache) -> None:
        self.server = server
        self.aws = aws
        self.cache = cache
        self.user = f"app{next(users)}"
        server.create_user(self.user, PASSWORD)
        aws.create(NAME, server.secret(self.user, PASSWORD))
        self.connector = Connector(cache, NAME, read_timeout=30)
        self.pool = PooledDB(creator=self.connector)  # without mincached: it opens none by itself

    def checkout(self) -> str:
        """Take a connection out of the pool, ask who it is logged in as, and close the one below."""
        connection = self.pool.dedicated_connection()
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT SUBSTRING_INDEX(CURRENT_USER(), '@', 1)")
                return str(cursor.fetchone()[0])
        finally:
            connection._con._con.close()  # the pool replaces it by a new one
            connection.close()

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
        return self.cache.metrics.snapshot().api_calls


@pytest.fixture
def database(server: MariaDB, aws: SecretsManager, make_cache: MakeCache) -> Iterator[Database]:
    database = Database(server, aws, make_cache())
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

    def test_50_threads_rejected_at_once_make_one_set_of_api_calls(
        self, database: Database, together: Together
    ) -> None:
        database.checkout()

        def storm(step: str) -> None:
            if step == "setSecret":
                assert together(50, database.checkout) == [database.user] * 50

        database.rotate(storm)
        assert database.api_calls() == 3

    def test_a_connection_that_was_killed_is_replaced_with_the_new_password(self, database: Database) -> None:
        connection = database.pool.dedicated_connection()
        with connection.cursor() as cursor:
            cursor.execute("SELECT CONNECTION_ID()")
            number = cursor.fetchone()[0]
        connection.close()
        database.rotate()
        database.execute("KILL %s", number)
        assert database.checkout() == database.user


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
                locking.connector(password="guess")
        with pytest.raises(pymysql.OperationalError, match="4150"):
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
            with pytest.raises(pymysql.OperationalError, match=number):
                locking.checkout()
        assert locking.api_calls() == 3


class TestAPasswordThatIsWrong:
    def test_costs_one_login_for_each_connection_and_api_calls_stay_constant(self, database: Database) -> None:
        database.set_password("not in the secret")
        rejected = database.rejected()
        for _ in range(5):
            with pytest.raises(pymysql.OperationalError) as caught:
                database.checkout()
            assert caught.value.args[0] == 1045
        assert database.rejected() - rejected == 5
        assert database.api_calls() == 3

    def test_what_is_not_about_it_passes_through_and_asks_aws_nothing(self, database: Database) -> None:
        with pytest.raises(pymysql.OperationalError) as caught:
            database.connector(database="no_such_database")
        assert caught.value.args[0] == 1044
        with pytest.raises(pymysql.OperationalError) as caught:
            database.connector(port=1)
        assert caught.value.args[0] == 2003
        assert database.api_calls() == 1


class TestTheSecret:
    @pytest.mark.parametrize("field", ["username", "password", "host"])
    def test_without_a_field_that_a_login_needs_names_it(self, database: Database, field: str) -> None:
        fields = database.server.secret(database.user, PASSWORD)
        del fields[field]
        database.aws.put(NAME, fields)
        with pytest.raises(NoSuchKey, match=f"no key '{field}'"):
            database.checkout()

    def test_need_not_hold_what_the_options_say(self, database: Database) -> None:
        server = database.server
        database.aws.put(NAME, {"username": database.user, "password": PASSWORD})
        with database.connector(host=server.host, port=server.port, database=server.dbname) as connection:
            assert connection.db == server.dbname.encode()

    def test_may_hold_its_port_as_a_string(self, database: Database) -> None:
        fields = database.server.secret(database.user, PASSWORD)
        database.aws.put(NAME, {**fields, "port": str(fields["port"])})
        assert database.checkout() == database.user

    def test_that_is_not_there_is_the_caches_error(self, database: Database) -> None:
        database.aws.reset()
        with pytest.raises(SecretNotFound):
            database.checkout()

    def test_needs_a_name(self, database: Database) -> None:
        with pytest.raises(InvalidArgument):
            Connector(database.cache, "")
