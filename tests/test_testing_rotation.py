"""The kit's rotation: of real users of real servers, through a real HTTP Secrets Manager."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import traceback
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg2
import pymysql
import pytest
import redis
from botocore.exceptions import ClientError

from smcache import testing
from smcache.testing import PostgreSQL, RotationError, Valkey, mariadb, postgres, rotate, secrets_manager, valkey
from smcache.testing.mariadb_server import INSTALL, is_installed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mypy_boto3_secretsmanager import SecretsManagerClient

    from smcache.testing import MariaDB, SecretsManager

pytestmark = pytest.mark.servers

STEPS = ["createSecret", "setSecret", "testSecret", "finishSecret"]
ONCE = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
Secret = dict[str, Any]


@pytest.fixture(scope="module")
def pg() -> Iterator[PostgreSQL]:
    with postgres() as server:
        yield server


@pytest.fixture(scope="module")
def running() -> Iterator[SecretsManager]:
    with secrets_manager() as server:
        yield server


@pytest.fixture(scope="module")
def client(running: SecretsManager) -> SecretsManagerClient:
    return running.client()


@pytest.fixture
def aws(running: SecretsManager) -> Iterator[SecretsManager]:
    yield running
    running.reset()


@pytest.fixture
def admin(pg: PostgreSQL) -> Iterator[psycopg.Connection[Any]]:
    with pg.admin() as connection:
        yield connection


@pytest.fixture
def app(pg: PostgreSQL, aws: SecretsManager, admin: psycopg.Connection[Any]) -> Iterator[str]:
    """A secret "db" of a role "app"."""
    pg.create_role("app", "one")
    aws.create("db", pg.secret("app", "one"))
    yield "app"
    admin.execute("DROP ROLE IF EXISTS app, app_clone")


def read(client: SecretsManagerClient, stage: str = "AWSCURRENT") -> Secret:
    value: Secret = json.loads(client.get_secret_value(SecretId="db", VersionStage=stage)["SecretString"])
    return value


def labels(client: SecretsManagerClient) -> dict[str, str]:
    """The version that each label is on."""
    stages = client.describe_secret(SecretId="db")["VersionIdsToStages"]
    return {label: version for version, attached in stages.items() for label in attached}


def open_with(secret: Mapping[str, Any]) -> psycopg.Connection[Any]:
    return psycopg.connect(
        host=secret["host"],
        port=secret["port"],
        dbname=secret["dbname"],
        user=secret["username"],
        password=secret["password"],
    )


def accepted(secret: Mapping[str, Any]) -> bool:
    try:
        open_with(secret).close()
    except psycopg.OperationalError as error:
        assert "password authentication failed" in str(error)  # noqa: PT017 - what else would prove nothing
        return False
    return True


def fast(client: SecretsManagerClient, connection: Any, **kwargs: Any) -> str:
    return rotate(client, "db", connection, dwell=0, **kwargs)


class TestSingleUser:
    def test_between_setting_and_finishing_only_awspending_logs_in(
        self, app: str, client: SecretsManagerClient, admin: psycopg.Connection[Any]
    ) -> None:
        seen: list[tuple[str, str, bool, bool]] = []
        old = read(client)

        def look(step: str, version: str) -> None:
            if step != "finishSecret":
                assert labels(client)["AWSPENDING"] == version
                assert read(client) == old
                seen.append((step, "AWSPENDING", accepted(old), accepted(read(client, "AWSPENDING"))))
            else:
                seen.append((step, "AWSCURRENT", accepted(old), accepted(read(client))))

        fast(client, admin, on_step=look)
        assert seen == [
            ("createSecret", "AWSPENDING", True, False),
            ("setSecret", "AWSPENDING", False, True),
            ("testSecret", "AWSPENDING", False, True),
            ("finishSecret", "AWSCURRENT", False, True),
        ]
        assert {**read(client), "password": "one"} == old

    def test_the_labels_end_as_after_a_rotation_by_aws(
        self, app: str, client: SecretsManagerClient, admin: psycopg.Connection[Any]
    ) -> None:
        before = labels(client)["AWSCURRENT"]
        versions = [fast(client, admin) for _ in range(2)]
        assert len({before, *versions}) == 3
        assert labels(client) == {"AWSCURRENT": versions[1], "AWSPREVIOUS": versions[0]}

    def test_it_dwells_between_the_steps_and_tells_each_once(
        self, app: str, client: SecretsManagerClient, admin: psycopg.Connection[Any]
    ) -> None:
        events: list[object] = []
        version = rotate(
            client,
            "db",
            admin,
            dwell=1.5,
            sleep=events.append,
            on_step=lambda step, version: events.append((step, version)),
        )
        steps = [(step, version) for step in STEPS]
        assert events == [steps[0], 1.5, steps[1], 1.5, steps[2], 1.5, 0.2, steps[3]]

    def test_it_makes_five_requests(
        self, app: str, aws: SecretsManager, client: SecretsManagerClient, admin: psycopg.Connection[Any]
    ) -> None:
        fast(client, admin)
        assert aws.requests == {
            "DescribeSecret": 1,
            "GetSecretValue": 1,
            "PutSecretValue": 1,
            "UpdateSecretVersionStage": 2,
        }

    def test_a_connection_that_is_not_in_autocommit_mode_is_committed(
        self, app: str, pg: PostgreSQL, client: SecretsManagerClient
    ) -> None:
        other_driver = psycopg2.connect(pg.dsn(pg.superuser, pg._password))
        fast(client, other_driver)
        other_driver.close()
        assert accepted(read(client))

    @pytest.mark.parametrize("name", ['we"ird', "o'brien", "back\\slash", "per%scent"])
    def test_names_and_passwords_are_quoted(
        self,
        name: str,
        pg: PostgreSQL,
        aws: SecretsManager,
        client: SecretsManagerClient,
        admin: psycopg.Connection[Any],
    ) -> None:
        pg.create_role(name, "one")
        aws.create("db", pg.secret(name, "one"))
        client.put_secret_value(  # a rotation that stopped after createSecret, with a password of its own
            SecretId="db",
            ClientRequestToken="t" * 32,
            SecretString=json.dumps(pg.secret(name, name)),
            VersionStages=["AWSPENDING"],
        )
        fast(client, admin)
        assert accepted(pg.secret(name, name))
        fast(client, admin, strategy="alternating-users")
        assert read(client)["username"] == f"{name}_clone"
        assert accepted(read(client))


class TestAlternatingUsers:
    def test_the_users_take_turns_and_the_one_in_use_stays_valid(
        self, app: str, client: SecretsManagerClient, admin: psycopg.Connection[Any]
    ) -> None:
        names = []
        for _ in range(4):
            old = read(client)

            def still_valid(step: str, version: str, old: Secret = old) -> None:
                assert accepted(old), step

            fast(client, admin, strategy="alternating-users", on_step=still_valid)
            assert accepted(read(client))
            names.append(read(client)["username"])
        assert names == ["app_clone", "app", "app_clone", "app"]

    def test_the_clone_may_do_what_the_user_may(
        self, app: str, client: SecretsManagerClient, admin: psycopg.Connection[Any]
    ) -> None:
        admin.execute("CREATE TABLE t AS SELECT 42 AS answer")
        admin.execute("GRANT SELECT ON t TO app")
        try:
            fast(client, admin, strategy="alternating-users")
            with open_with(read(client)) as clone:
                assert clone.execute("SELECT * FROM t").fetchall() == [(42,)]
        finally:
            admin.execute("DROP TABLE t")

    def test_a_user_that_does_not_exist_gets_no_clone(
        self, pg: PostgreSQL, aws: SecretsManager, client: SecretsManagerClient, admin: psycopg.Connection[Any]
    ) -> None:
        aws.create("db", pg.secret("ghost", "one"))
        with pytest.raises(RotationError, match="42704"):
            fast(client, admin, strategy="alternating-users")
        assert admin.execute("SELECT 1 FROM pg_roles WHERE rolname LIKE 'ghost%'").fetchall() == []

    def test_a_name_that_postgresql_would_cut_off_is_refused(
        self, pg: PostgreSQL, aws: SecretsManager, client: SecretsManagerClient
    ) -> None:
        aws.create("db", pg.secret("a" * 58, "one"))
        with pytest.raises(RotationError, match="too long"):
            fast(client, None, strategy="alternating-users")


class TestTestSecret:
    def test_it_logs_in_with_the_new_secret_and_closes_the_connection(
        self, app: str, client: SecretsManagerClient, admin: psycopg.Connection[Any]
    ) -> None:
        opened: list[psycopg.Connection[Any]] = []

        def login(secret: Mapping[str, Any]) -> psycopg.Connection[Any]:
            assert secret == read(client, "AWSPENDING")
            opened.append(open_with(secret))
            return opened[-1]

        fast(client, admin, login=login)
        assert [connection.closed for connection in opened] == [True]

    def test_a_login_that_fails_is_the_drivers_error_and_awscurrent_stays(
        self, app: str, client: SecretsManagerClient, admin: psycopg.Connection[Any]
    ) -> None:
        before = labels(client)["AWSCURRENT"]
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            fast(client, admin, login=lambda secret: open_with({**secret, "password": "wrong"}))
        assert labels(client)["AWSCURRENT"] == before


class TestUnfinished:
    @pytest.mark.parametrize("stopped_after", STEPS[:3])
    def test_a_rotation_that_stopped_is_finished_by_the_next(
        self, stopped_after: str, app: str, client: SecretsManagerClient, admin: psycopg.Connection[Any]
    ) -> None:
        def stop(step: str, version: str) -> None:
            if step == stopped_after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fast(client, admin, on_step=stop)
        pending = labels(client)["AWSPENDING"]
        value = read(client, "AWSPENDING")
        assert fast(client, admin) == pending
        assert read(client) == value
        assert accepted(value)
        assert "AWSPENDING" not in labels(client)

    def test_a_pending_version_without_a_value_gets_one(
        self, app: str, aws: SecretsManager, client: SecretsManagerClient, admin: psycopg.Connection[Any]
    ) -> None:
        """As RotateSecret leaves it, which moto cannot be made to show."""
        token = "t" * 32
        client.put_secret_value(
            SecretId="db", ClientRequestToken=token, SecretString="none", VersionStages=["AWSPENDING"]
        )
        aws.inject(testing.latency(0))  # AWSCURRENT is read first, and there
        aws.inject(testing.deny("ResourceNotFoundException"))
        assert fast(client, admin) == token
        assert accepted(read(client))


class TestRefusals:
    def test_a_refused_alter_says_who_and_why_but_no_password(
        self,
        app: str,
        pg: PostgreSQL,
        client: SecretsManagerClient,
        caplog: pytest.LogCaptureFixture,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        caplog.set_level(logging.INFO)  # at DEBUG botocore logs all that it sends
        pg.create_role("weak", "weak")
        with psycopg.connect(pg.dsn("weak", "weak")) as weak:
            with pytest.raises(RotationError, match=r"of 'app': psycopg\S*InsufficientPrivilege \(42501\)") as caught:
                fast(client, weak)
            assert weak.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        leaks_nothing(caught.value, read(client, "AWSPENDING")["password"], caplog, capfd)

    def test_not_even_a_driver_that_quotes_the_statement_leaks_it(
        self,
        app: str,
        client: SecretsManagerClient,
        caplog: pytest.LogCaptureFixture,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        class TalkativeError(Exception):
            pass

        class Connection(Recorder):
            def execute(self, statement: str) -> None:
                super().execute(statement)
                if statement.startswith("ALTER"):
                    raise TalkativeError(1064, f"near {statement}")

        broken = Connection()
        caplog.set_level(logging.INFO)
        with pytest.raises(RotationError, match=r"TalkativeError \(1064\)") as caught:
            fast(client, broken)
        password = read(client, "AWSPENDING")["password"]
        assert password in broken.statements[-2]
        assert broken.statements[-1] == "rollback"
        leaks_nothing(caught.value, password, caplog, capfd)

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            ("canary", "is not a JSON object"),
            ('["canary"]', "is not a JSON object"),
            ({"username": "app", "password": "canary"}, "no 'engine'; it has ['password', 'username']"),
            ({"engine": "postgres", "password": "canary"}, "no 'username'"),
            ({"engine": "postgres", "username": "app", "pass": "canary"}, "no 'password'"),
            ({"engine": "oracle", "username": "app", "password": "canary"}, "engine 'oracle'"),
        ],
    )
    def test_a_secret_that_is_not_one_of_a_known_database(
        self, value: str | Secret, words: str, aws: SecretsManager, client: SecretsManagerClient
    ) -> None:
        aws.create("db", value)
        with pytest.raises(RotationError) as caught:
            fast(client, None)
        assert words in str(caught.value)
        assert "canary" not in "".join(traceback.format_exception(caught.value))
        assert list(labels(client)) == ["AWSCURRENT"]

    def test_a_secret_that_is_not_there_or_has_no_value(
        self, aws: SecretsManager, client: SecretsManagerClient
    ) -> None:
        with pytest.raises(ClientError, match="ResourceNotFoundException"):
            fast(client, None)
        client.create_secret(Name="db")
        with pytest.raises(RotationError, match="no value"):
            fast(client, None)

    @pytest.mark.parametrize("dwell", [-1.0, float("nan")])
    def test_a_dwell_that_is_no_duration_and_an_unknown_strategy_make_no_request(
        self, dwell: float, aws: SecretsManager, client: SecretsManagerClient
    ) -> None:
        with pytest.raises(ValueError, match="dwell"):
            rotate(client, "db", Recorder(), dwell=dwell)
        with pytest.raises(ValueError, match="'single-user' or 'alternating-users', not 'both'"):
            rotate(client, "db", Recorder(), strategy="both")  # type: ignore[arg-type] # the point
        assert aws.requests == {}


class Server:
    """One of the kit's servers, with a user "app" whose password is "one"."""

    def __init__(self, running: PostgreSQL | MariaDB | Valkey) -> None:
        self.running = running
        if isinstance(running, PostgreSQL):
            running.create_role("app", "one")
        else:
            running.create_user("app", "one")

    def forget(self) -> None:
        with self.running.admin() as admin:
            if isinstance(admin, redis.Redis):
                admin.acl_deluser("app", "app_clone")
            elif isinstance(admin, psycopg.Connection):
                admin.execute("DROP ROLE IF EXISTS app, app_clone")
            else:
                admin.cursor().execute("DROP USER IF EXISTS app, app_clone")

    def accepts(self, secret: Mapping[str, Any]) -> bool:
        if isinstance(self.running, PostgreSQL):
            return accepted(secret)
        login = {"host": secret["host"], "port": secret["port"], "password": secret["password"]}
        try:
            if isinstance(self.running, Valkey):
                with redis.Redis(**login, username=secret["username"], retry=ONCE) as client:
                    client.ping()
            else:
                pymysql.connect(**login, user=secret["username"], database=secret["dbname"], ssl_disabled=True).close()
        except redis.AuthenticationError:
            return False
        except pymysql.OperationalError as error:
            assert error.args[0] == 1045  # noqa: PT017 - what else would prove nothing
            return False
        return True


@pytest.fixture(scope="module")
def maria() -> Iterator[MariaDB]:
    if not is_installed() and os.environ.get("SMCACHE_DEMAND_MARIADB") != "1":
        pytest.skip(f"no MariaDB here; to install it: {INSTALL}")
    with mariadb() as server:
        yield server


@pytest.fixture(scope="module")
def store() -> Iterator[Valkey]:
    with valkey() as server:
        yield server


@pytest.mark.parametrize("kind", ["pg", "maria", "store"])
class TestEveryServer:
    @pytest.fixture
    def server(self, kind: str, request: pytest.FixtureRequest, aws: SecretsManager) -> Iterator[Server]:
        server = Server(request.getfixturevalue(kind))
        aws.create("db", server.running.secret("app", "one"))
        yield server
        server.forget()

    def test_from_setting_on_a_single_user_logs_in_with_the_new_password_only(
        self, server: Server, client: SecretsManagerClient
    ) -> None:
        seen: list[tuple[str, bool, bool]] = []
        old = read(client)

        def look(step: str, version: str) -> None:
            new = read(client, "AWSCURRENT" if step == "finishSecret" else "AWSPENDING")
            seen.append((step, server.accepts(old), server.accepts(new)))

        with server.running.admin() as admin:
            fast(client, admin, on_step=look)
        assert seen == [(STEPS[0], True, False), *((step, False, True) for step in STEPS[1:])]

    def test_two_users_take_turns_and_the_one_in_use_stays_valid(
        self, server: Server, client: SecretsManagerClient
    ) -> None:
        names = []
        with server.running.admin() as admin:
            for _ in range(3):
                old = read(client)
                fast(client, admin, strategy="alternating-users")
                assert server.accepts(old)
                assert server.accepts(read(client))
                names.append(read(client)["username"])
        assert names == ["app_clone", "app", "app_clone"]


class TestRedis:
    @pytest.fixture
    def admin(self, store: Valkey, aws: SecretsManager) -> Iterator[Any]:
        """An administrator beside a secret "db" of a user "app"."""
        server = Server(store)
        aws.create("db", store.secret("app", "one"))
        with store.admin() as admin:
            yield admin
        server.forget()

    def test_the_clone_may_do_what_the_user_may_and_no_more(self, admin: Any, client: SecretsManagerClient) -> None:
        admin.execute_command("ACL", "SETUSER", "app", "resetkeys", "~k*", "-@admin", "(~other +get)", ">two", "off")
        fast(client, admin, strategy="alternating-users")
        users = {line.split()[1]: line.split()[2:] for line in admin.acl_list()}
        is_login = re.compile("on|off|#.*").fullmatch
        assert [rule for rule in users["app_clone"] if is_login(rule)] == [
            "on",
            "#" + hashlib.sha256(read(client)["password"].encode()).hexdigest(),
        ]
        rules = [rule for rule in users["app"] if not is_login(rule)]
        assert "~k*" in rules
        assert [rule for rule in users["app_clone"] if not is_login(rule)] == rules

    def test_a_single_user_keeps_its_rules(self, admin: Any, client: SecretsManagerClient) -> None:
        admin.execute_command("ACL", "SETUSER", "app", "resetkeys", "~k*", "nopass")
        before = admin.acl_getuser("app")
        fast(client, admin)
        after = admin.acl_getuser("app")
        assert (before["keys"], before["commands"]) == (after["keys"], after["commands"])
        assert "nopass" not in after["flags"]

    def test_a_client_that_answers_in_bytes_does_as_well(
        self, admin: Any, store: Valkey, client: SecretsManagerClient
    ) -> None:
        with redis.Redis(store.host, store.port, password=store._password) as in_bytes:
            fast(client, in_bytes, strategy="alternating-users")
        assert read(client)["username"] in admin.acl_users()

    @pytest.mark.parametrize("strategy", ["single-user", "alternating-users"])
    def test_a_user_that_does_not_exist_is_not_made(
        self, strategy: str, admin: Any, client: SecretsManagerClient
    ) -> None:
        admin.acl_deluser("app")
        with pytest.raises(RotationError, match="no user 'app'"):
            fast(client, admin, strategy=strategy)
        assert admin.acl_users() == ["default"]

    def test_a_refusal_says_who_and_why_but_no_password(
        self,
        admin: Any,
        store: Valkey,
        client: SecretsManagerClient,
        caplog: pytest.LogCaptureFixture,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        caplog.set_level(logging.INFO)  # at DEBUG botocore logs all that it sends
        admin.execute_command("ACL", "SETUSER", "app", "-@admin", "+acl|list")
        with (
            redis.Redis(store.host, store.port, username="app", password="one") as weak,
            pytest.raises(RotationError, match=r"of 'app': redis\S*NoPermissionError") as caught,
        ):
            fast(client, weak)
        leaks_nothing(caught.value, read(client, "AWSPENDING")["password"], caplog, capfd)


class Recorder:
    """A DB-API connection and cursor that answers from a script."""

    def __init__(self, *answers: list[tuple[str]]) -> None:
        self.statements: list[str] = []
        self.answers = list(answers)

    def cursor(self) -> Recorder:
        return self

    def execute(self, statement: str) -> None:
        self.statements.append(statement)

    def fetchone(self) -> tuple[str]:
        return ("1",)

    def fetchall(self) -> list[tuple[str]]:
        return self.answers.pop(0)

    def commit(self) -> None:
        self.statements.append("commit")

    def rollback(self) -> None:
        self.statements.append("rollback")


@pytest.mark.parametrize("engine", ["mysql", "mariadb"])
class TestMySQL:
    """The statements, which TestEveryServer runs where there is a MariaDB."""

    @pytest.fixture
    def password_of(self, aws: SecretsManager, client: SecretsManagerClient, engine: str) -> Callable[[], str]:
        aws.create("db", {"engine": engine, "username": "app", "password": "one", "host": "h", "port": 1})
        return lambda: str(read(client)["password"])

    def test_single_user(self, client: SecretsManagerClient, password_of: Callable[[], str]) -> None:
        mysql = Recorder([("%",), ("localhost",)])
        fast(client, mysql)
        assert mysql.statements == [
            "SELECT host FROM mysql.user WHERE user = 'app'",
            f"ALTER USER 'app'@'%' IDENTIFIED BY '{password_of()}'",
            f"ALTER USER 'app'@'localhost' IDENTIFIED BY '{password_of()}'",
            "commit",
        ]

    def test_the_clone_is_made_with_the_grants_of_the_user(
        self, client: SecretsManagerClient, password_of: Callable[[], str]
    ) -> None:
        grants = [
            ("GRANT USAGE ON *.* TO `app`@`%` IDENTIFIED BY PASSWORD '*2470C0C06DEE42FD1618'",),
            ("GRANT SELECT ON `d`.* TO `app`@`%`",),
        ]
        mysql = Recorder([], [("%",)], grants)
        fast(client, mysql, strategy="alternating-users")
        assert mysql.statements[2:] == [
            "SHOW GRANTS FOR 'app'@'%'",
            f"CREATE USER 'app_clone'@'%' IDENTIFIED BY '{password_of()}'",
            "GRANT USAGE ON *.* TO 'app_clone'@'%'",
            "GRANT SELECT ON `d`.* TO 'app_clone'@'%'",
            "commit",
        ]

    def test_a_clone_that_exists_gets_a_password(
        self, client: SecretsManagerClient, password_of: Callable[[], str]
    ) -> None:
        mysql = Recorder([("%",)])
        fast(client, mysql, strategy="alternating-users")
        assert mysql.statements[1:] == [
            f"ALTER USER 'app_clone'@'%' IDENTIFIED BY '{password_of()}'",
            "commit",
        ]


def leaks_nothing(
    error: BaseException,
    password: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert error.__cause__ is None
    assert error.__context__ is None
    printed = capfd.readouterr()
    everything = [repr(error), *traceback.format_exception(error), caplog.text, printed.out, printed.err]
    assert password not in "".join(everything)
