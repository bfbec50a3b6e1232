"""``retry_on_auth_error`` against a PostgreSQL that really rejects passwords and a secret that really rotates."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import psycopg
import pytest

from smcache import InvalidArgument, SecretNotFound, is_auth_error
from smcache.testing import deny, latency, rotate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from conftest import Clock, MakeCache, Together

    from smcache import Secret, SecretCache
    from smcache.testing import PostgreSQL, SecretsManager

GET = "GetSecretValue"
NAME = "prod/db"
roles = itertools.count(1)


def login(secret: Secret, dbname: str | None = None) -> psycopg.Connection[Any]:
    return psycopg.connect(
        host=secret["host"],
        port=secret["port"],
        user=secret["username"],
        password=secret["password"],
        dbname=dbname or secret["dbname"],
        connect_timeout=10,
    )


@dataclass
class Database:
    """A role whose password is in a secret, and a decorated factory that connects as it."""

    aws: SecretsManager
    pg: PostgreSQL
    cache: SecretCache
    role: str
    logins: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        @self.cache.retry_on_auth_error(NAME)
        def connect(secret: Secret) -> str:
            self.logins.append(secret.version_id)
            with login(secret) as connection:
                row = connection.execute("select current_user").fetchone()
            assert row is not None
            return str(row[0])

        self.connect = connect

    def rotate(self, on_step: Callable[[str], object] = lambda _: None, strategy: Any = "single-user") -> str:
        with self.pg.admin() as admin:
            client = self.aws.client()
            return rotate(client, NAME, admin, strategy=strategy, dwell=0, on_step=lambda step, _: on_step(step))

    def set_password(self, password: str) -> None:
        with self.pg.admin() as admin:
            admin.execute(f"ALTER ROLE {self.role} PASSWORD '{password}'")

    def requests(self) -> int:
        """Count the requests of the cache; a rotation makes its own."""
        return self.cache.metrics.snapshot().api_calls


@pytest.fixture
def database(aws: SecretsManager, pg: PostgreSQL, make_cache: MakeCache, canary: str) -> Database:
    role = f"app{next(roles)}"
    pg.create_role(role, canary)
    aws.create(NAME, pg.secret(role, canary))
    return Database(aws, pg, make_cache(), role)


class TestRotation:
    def test_no_step_of_a_single_user_rotation_fails_a_connection(self, database: Database) -> None:
        database.connect()
        seen: list[tuple[str, str, int]] = []
        for _ in range(3):
            database.rotate(lambda step: seen.append((step, database.connect(), database.requests())))
        assert {user for _, user, _ in seen} == {database.role}
        assert [step for step, _, _ in seen] == ["createSecret", "setSecret", "testSecret", "finishSecret"] * 3
        # One read at first; then AWSCURRENT and AWSPENDING once per rotation, at setSecret.
        assert [requests for *_, requests in seen] == [1, 3, 3, 3, 3, 5, 5, 5, 5, 7, 7, 7]

    def test_one_login_is_refused_per_rotation_and_an_older_password_is_never_tried_again(
        self, database: Database
    ) -> None:
        """After the first rotation the cache may hold an AWSCURRENT two versions old."""
        versions = [database.cache.get(NAME).version_id]
        versions += [database.rotate(lambda _: database.connect()) for _ in range(3)]
        refused = database.cache.metrics.snapshot().auth_failures
        assert refused == 3
        assert database.logins == sorted(database.logins, key=versions.index)
        assert database.cache.metrics.snapshot().auth_recoveries == 3

    def test_no_step_of_an_alternating_users_rotation_refuses_a_login(self, database: Database) -> None:
        users: list[str] = []
        for _ in range(2):
            database.connect()
            database.rotate(lambda _: users.append(database.connect()), "alternating-users")
            users.append(database.connect())
            database.cache.refresh(NAME)
        assert set(users) == {database.role, f"{database.role}_clone"}
        assert database.cache.metrics.snapshot().auth_failures == 0

    def test_a_rotation_that_is_over_costs_one_request(self, database: Database) -> None:
        database.connect()
        database.rotate()
        database.connect()
        assert database.requests() == 2

    def test_get_goes_on_saying_what_aws_labels(self, database: Database) -> None:
        database.connect()
        current = database.cache.get(NAME)
        said: list[Secret] = []

        def look(step: str) -> None:
            database.connect()
            said.append(database.cache.get(NAME))

        database.rotate(look)
        assert said == [current] * 4
        assert database.cache.refresh(NAME) is not current

    def test_a_storm_of_refused_logins_makes_one_set_of_requests(self, database: Database, together: Together) -> None:
        database.connect()

        def storm(step: str) -> None:
            if step == "setSecret":
                assert together(50, database.connect) == [database.role] * 50

        database.rotate(storm)
        assert database.requests() == 3

    def test_a_rotation_that_was_taken_back_is_followed_back(
        self, database: Database, clock: Clock, canary: str
    ) -> None:
        database.connect()
        database.rotate(lambda step: database.connect() if step == "setSecret" else None)
        old = database.cache.get(NAME)
        client = database.aws.client()
        current = client.get_secret_value(SecretId=NAME, VersionStage="AWSCURRENT")["VersionId"]
        client.update_secret_version_stage(
            SecretId=NAME, VersionStage="AWSCURRENT", MoveToVersionId=old.version_id, RemoveFromVersionId=current
        )
        database.set_password(canary)
        clock.advance(10)
        assert database.connect() == database.role
        assert database.logins[-1] == old.version_id


class TestNoRotation:
    def test_a_password_that_is_simply_wrong_fails_as_the_driver_says_and_soon_costs_nothing(
        self, database: Database, clock: Clock
    ) -> None:
        database.connect()
        database.set_password("by hand")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed") as caught:
            database.connect()
        assert type(caught.value) is psycopg.OperationalError
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
        assert database.requests() == 3
        for _ in range(100):
            with pytest.raises(psycopg.OperationalError):
                database.connect()
        assert database.requests() == 3
        assert len(database.logins) == 102, "one login per attempt, no more"
        assert clock.slept == []
        clock.advance(5)
        with pytest.raises(psycopg.OperationalError):
            database.connect()
        assert database.requests() == 5
        clock.advance(9)
        with pytest.raises(psycopg.OperationalError):
            database.connect()
        assert database.requests() == 5, "the cooldown doubles"

    def test_a_forgotten_pending_version_of_a_failed_rotation_is_not_tried(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        database.connect()
        database.aws.client().put_secret_value(
            SecretId=NAME, SecretString="{}", ClientRequestToken="p" * 32, VersionStages=["AWSPENDING"]
        )
        database.set_password("by hand")
        an_hour_from_now = time.time() + 3600
        monkeypatch.setattr("smcache.cache.time.time", lambda: an_hour_from_now)
        with pytest.raises(psycopg.OperationalError):
            database.connect()
        assert "p" * 32 not in database.logins

    def test_everything_but_an_auth_error_passes_through_on_the_first_attempt(self, database: Database) -> None:
        attempts: list[Secret] = []

        @database.cache.retry_on_auth_error(NAME)
        def connect(secret: Secret) -> None:
            attempts.append(secret)
            login(secret, dbname="missing")

        with pytest.raises(psycopg.OperationalError, match="does not exist"):
            connect()
        assert len(attempts) == 1
        assert database.requests() == 1
        assert database.cache.metrics.snapshot().auth_failures == 0

    def test_an_interrupt_is_not_an_auth_error(self, database: Database) -> None:
        @database.cache.retry_on_auth_error(NAME, is_auth_error=lambda error: True)
        def connect(secret: Secret) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            connect()
        assert database.requests() == 1

    def test_without_a_secret_the_function_is_not_called(self, make_cache: MakeCache) -> None:
        @make_cache().retry_on_auth_error("missing")
        def connect(secret: Secret) -> None:
            raise AssertionError

        with pytest.raises(SecretNotFound):
            connect()


class TestWaiting:
    def test_where_pending_may_not_be_read_it_waits_for_awscurrent_to_move(
        self, database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A policy may allow AWSCURRENT only; moto has no policies, so a fault stands for it."""
        database.connect()
        rotated = threading.Event()
        polled: list[float] = []

        def sleep(seconds: float) -> None:
            polled.append(seconds)
            clock.advance(seconds)
            if len(polled) == 3:
                rotated.set()
                finished.wait(30)

        monkeypatch.setattr(database.cache, "_sleep", sleep)
        finished = threading.Event()
        set_secret = threading.Event()

        def wait_for_the_test(step: str) -> None:
            if step == "setSecret":
                set_secret.set()
                rotated.wait(30)

        def run() -> None:
            database.rotate(wait_for_the_test)
            finished.set()

        rotation = threading.Thread(target=run, daemon=True)
        rotation.start()
        assert set_secret.wait(30)
        database.aws.inject(latency(0))  # AWSCURRENT
        database.aws.inject(deny())  # AWSPENDING
        assert database.connect() == database.role
        rotation.join(30)
        assert len(polled) == 3
        assert polled == sorted(polled), "with backoff"
        assert len(database.logins) == 3, "the first, the refused, the good one"

    def test_if_it_never_moves_the_drivers_error_comes_when_the_window_ends(
        self, database: Database, clock: Clock
    ) -> None:
        database.connect()
        database.set_password("by hand")
        start = clock.now
        database.aws.inject(latency(0))
        database.aws.inject(deny())
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            database.connect()
        assert clock.now - start == pytest.approx(60)
        assert len(database.logins) == 2
        with pytest.raises(psycopg.OperationalError):
            database.connect()
        assert clock.now - start == pytest.approx(60), "and the next failure waits for nothing"

    def test_a_locked_account_is_never_waited_for(self, database: Database, clock: Clock) -> None:
        database.connect()
        with database.pg.admin() as admin:
            admin.execute(f"ALTER ROLE {database.role} NOLOGIN")
        database.aws.inject(latency(0))
        database.aws.inject(deny())
        with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
            database.connect()
        assert clock.slept == []


class TestFactories:
    """What may be decorated, and what callers see of it."""

    def test_name_docstring_and_signature_survive_less_the_secret(self, make_cache: MakeCache) -> None:
        def connect(host: str, secret: Secret, *, timeout: float = 5) -> str:
            """Connect to a host."""
            return f"{host} {secret.name} {timeout}"

        decorated = make_cache().retry_on_auth_error(NAME)(connect)
        assert (decorated.__name__, decorated.__doc__) == ("connect", "Connect to a host.")
        assert str(inspect.signature(decorated)) == "(host: 'str', *, timeout: 'float' = 5) -> 'str'"
        assert list(decorated.__annotations__) == ["host", "timeout", "return"]
        assert inspect.unwrap(decorated) is connect

    def test_the_secret_goes_to_its_parameter_wherever_it_stands(
        self, aws: SecretsManager, make_cache: MakeCache
    ) -> None:
        def first(secret: Any, a: int, b: int = 2) -> Any:
            return secret, a, b

        def middle(a: int, secret: Any, b: int = 2) -> Any:
            return secret, a, b

        def last(a: int, b: int, secret: Any) -> Any:
            return secret, a, b

        def keyword(a: int, b: int = 2, *, secret: Any) -> Any:
            return secret, a, b

        def positional(a: int, secret: Any, /, b: int = 2) -> Any:
            return secret, a, b

        def rest(a: int, secret: Any, *rest: int) -> Any:
            return (secret, a, *rest)

        def renamed(a: int, b: int, creds: Any) -> Any:
            return creds, a, b

        aws.create(NAME, "v")
        cache = make_cache()
        functions: list[Any] = [first, middle, last, keyword, positional, rest, renamed]
        for function in functions:
            parameter = "creds" if function is renamed else "secret"
            decorated: Any = cache.retry_on_auth_error(NAME, parameter=parameter)(function)
            assert decorated(1, 2) == (cache.get(NAME), 1, 2), function
            if function not in (positional, rest):
                assert decorated(a=1, b=2) == (cache.get(NAME), 1, 2), function
                assert decorated(1, b=2) == (cache.get(NAME), 1, 2), function
            with pytest.raises(TypeError, match="the cache passes it"):
                decorated(1, 2, **{parameter: 3})

    def test_defaults_before_a_positional_only_secret_are_kept(
        self, aws: SecretsManager, make_cache: MakeCache
    ) -> None:
        aws.create(NAME, "v")

        @make_cache().retry_on_auth_error(NAME)
        def connect(a: int = 7, secret: Any = None, /) -> Any:
            return a, secret.string

        assert cast("Any", connect)() == (7, "v")

    def test_methods_class_methods_and_static_methods_work(self, aws: SecretsManager, make_cache: MakeCache) -> None:
        aws.create(NAME, "v")
        cache = make_cache()

        class Pool:
            size = 3

            @cache.retry_on_auth_error(NAME)
            def connect(self, secret: Secret, *, timeout: int = 5) -> tuple[int, str, int]:
                return self.size, secret.string, timeout

            @classmethod
            @cache.retry_on_auth_error(NAME)
            def of_class(cls, secret: Secret) -> tuple[int, str]:
                return cls.size, secret.string

            @staticmethod
            @cache.retry_on_auth_error(NAME)
            def static(secret: Secret) -> str:
                return secret.string

        assert Pool().connect(timeout=2) == (3, "v", 2)
        assert Pool.of_class() == (3, "v")
        assert Pool.static() == "v"

    def test_a_context_manager_is_tried_again_until_its_first_yield(self, database: Database) -> None:
        entered: list[str] = []

        @contextlib.contextmanager
        @database.cache.retry_on_auth_error(NAME)
        def session(secret: Secret) -> Iterator[psycopg.Connection[Any]]:
            entered.append(secret.version_id)
            with login(secret) as connection:
                yield connection
            entered.append("left")

        with session() as connection:
            assert connection.execute("select 1").fetchone() == (1,)
        database.rotate()
        entered.clear()
        with session() as connection:
            assert connection.execute("select 1").fetchone() == (1,)
        assert len(entered) == 3
        assert entered[-1] == "left"

    def test_what_happens_after_the_first_yield_is_not_ours(self, database: Database) -> None:
        """An auth error raised by the body of the with block starts nothing over, and clean-up runs."""
        entered: list[str] = []

        @contextlib.contextmanager
        @database.cache.retry_on_auth_error(NAME, is_auth_error=lambda error: True)
        def session(secret: Secret) -> Iterator[int]:
            entered.append("in")
            try:
                yield 1
            finally:
                entered.append("out")

        with pytest.raises(PermissionError), session():
            raise PermissionError
        assert entered == ["in", "out"]
        assert database.cache.metrics.snapshot().auth_failures == 0

    def test_a_login_that_a_factory_tries_after_its_first_yield_is_not_ours(self, database: Database) -> None:
        entered: list[Secret] = []

        @contextlib.contextmanager
        @database.cache.retry_on_auth_error(NAME)
        def session(secret: Secret) -> Iterator[None]:
            entered.append(secret)
            yield
            login(secret)

        with pytest.raises(psycopg.OperationalError, match="password authentication failed"), session():
            database.rotate()
        assert len(entered) == 1
        assert database.cache.metrics.snapshot().auth_failures == 0

    def test_a_factory_that_swallows_the_error_has_nothing_that_could_recover(self, database: Database) -> None:
        """What it returns is passed on, and counts as a login that succeeded; `auth_result` can say that it is none."""
        attempts: list[Secret] = []

        def connect(secret: Secret) -> psycopg.Connection[Any] | None:
            attempts.append(secret)
            with contextlib.suppress(psycopg.OperationalError):
                return login(secret)
            return None

        database.cache.get(NAME)
        database.rotate()
        assert database.cache.retry_on_auth_error(NAME)(connect)() is None
        assert len(attempts) == database.requests() == 1
        assert database.cache.metrics.snapshot().auth_failures == 0
        looked_at = database.cache.retry_on_auth_error(NAME, auth_result=lambda result: result is None)(connect)()
        assert looked_at is not None
        looked_at.close()

    def test_generators_pass_on_what_is_sent_thrown_and_returned(
        self, aws: SecretsManager, make_cache: MakeCache
    ) -> None:
        aws.create(NAME, "v")

        @make_cache().retry_on_auth_error(NAME)
        def talk(secret: Secret) -> Any:
            heard = []
            try:
                heard.append((yield secret.string))
                heard.append((yield 2))
            except ValueError as error:
                heard.append(error)
            return heard

        generator = talk()
        assert next(generator) == "v"
        assert generator.send("a") == 2
        error = ValueError()
        with pytest.raises(StopIteration) as end:
            generator.throw(error)
        assert end.value.value == ["a", error]

        generator = talk()
        next(generator)
        generator.close()
        with pytest.raises(StopIteration):
            next(generator)

        @make_cache().retry_on_auth_error(NAME)
        def silent(secret: Secret) -> Any:
            if secret.string == "v":
                return 5
            yield 1

        with pytest.raises(StopIteration) as end:
            next(silent())
        assert end.value.value == 5

    def test_a_returned_failure_counts_as_a_rejection(self, aws: SecretsManager, make_cache: MakeCache) -> None:
        aws.create(NAME, "old")
        cache = make_cache()

        @cache.retry_on_auth_error(NAME, auth_result=lambda status: status == 401)
        def call(secret: Secret) -> int:
            return 200 if secret.string == "new" else 401

        assert call() == 401, "what the function returned, where nothing helps"
        assert cache.metrics.snapshot().auth_unrecovered == 1
        aws.put(NAME, "new")
        cache.refresh(NAME)
        assert call() == 200

    def test_a_probe_logs_in_where_the_function_does_not(self, database: Database) -> None:
        @database.cache.retry_on_auth_error(NAME, probe=lambda engine: engine().close())
        def engine(secret: Secret) -> Callable[[], psycopg.Connection[Any]]:
            return functools.partial(login, secret)

        engine()
        database.rotate()
        with engine()() as connection:
            assert connection.execute("select 1").fetchone() == (1,)

    def test_the_rule_for_auth_errors_can_be_extended(self, aws: SecretsManager, make_cache: MakeCache) -> None:
        class Forbidden(Exception):
            pass

        aws.create(NAME, "old")
        cache = make_cache()
        cache.get(NAME)
        aws.put(NAME, "new")

        def ours(error: Exception) -> bool:
            return isinstance(error, Forbidden) or is_auth_error(error)

        @cache.retry_on_auth_error(NAME, is_auth_error=ours)
        def call(secret: Secret) -> str:
            if secret.string == "old":
                raise Forbidden
            return secret.string

        assert call() == "new"

    def test_what_cannot_work_is_refused_where_it_is_written(self, make_cache: MakeCache) -> None:
        cache = make_cache()
        decorate = cache.retry_on_auth_error(NAME)

        async def coroutine(secret: Secret) -> None: ...

        async def generator(secret: Secret) -> AsyncIterator[int]:
            yield 1

        class Asynchronous:
            async def __call__(self, secret: Secret) -> None: ...

        @contextlib.contextmanager
        def manager(secret: Secret) -> Iterator[int]:
            yield 1

        def generates(secret: Secret) -> Iterator[int]:
            yield 1

        def none(creds: Secret) -> None: ...

        def stars(*secret: Secret, **more: Secret) -> None: ...

        cases: Sequence[tuple[Any, str]] = [
            (coroutine, "AsyncSecretCache"),
            (generator, "AsyncSecretCache"),
            (functools.partial(coroutine), "AsyncSecretCache"),
            (Asynchronous(), "AsyncSecretCache"),
            (manager, "put @contextmanager above"),
            (none, "no parameter 'secret'"),
            (stars, "no parameter 'secret'"),
            (classmethod(none), "put @classmethod above"),  # type: ignore[arg-type]
            (staticmethod(none), "put @staticmethod above"),
            ("not a function", "decorates functions"),
        ]
        for function, message in cases:
            with pytest.raises(InvalidArgument, match=message):
                decorate(function)
        with pytest.raises(InvalidArgument, match="before the yield"):
            cache.retry_on_auth_error(NAME, probe=print)(generates)
        with pytest.raises(InvalidArgument, match="0 characters"):
            cache.retry_on_auth_error("")
