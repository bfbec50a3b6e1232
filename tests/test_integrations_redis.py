"""redis-py's pools, threads and asyncio, against a Valkey that really rejects passwords, and real rotations."""

from __future__ import annotations

import asyncio
import itertools
import operator
import threading
import uuid
from typing import TYPE_CHECKING, Any, cast

import pytest
import redis
import redis.asyncio
from redis.exceptions import AuthenticationError

from smcache import InvalidArgument, NoSuchKey, SecretNotFound
from smcache.integrations.redis import connection_class
from smcache.testing import rotate, valkey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import LoopThread, MakeCache, Together

    from smcache.testing import SecretsManager, Valkey

pytestmark = pytest.mark.servers

NAME = "prod/redis"
STEPS = ["createSecret", "setSecret", "testSecret", "finishSecret"]
STRATEGIES = ["single-user", "alternating-users"]
WORKERS = 10


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    with valkey() as server:
        yield server


@pytest.fixture(params=["redis", "redis.asyncio"])
def library(request: pytest.FixtureRequest) -> str:
    return cast("str", request.param)


@pytest.fixture
def kind(library: str) -> str:
    return "asyncio" if library == "redis.asyncio" else "threads"


def retries(library: str, count: int) -> Any:
    retry: Any = redis.asyncio.retry.Retry if library == "redis.asyncio" else redis.retry.Retry
    return retry(redis.backoff.NoBackoff(), count)


class Store:
    """A user whose password is in a secret, and a pool whose every checkout is a new login."""

    def __init__(self, library: str, server: Valkey, aws: SecretsManager, cache: Any, loop: LoopThread) -> None:
        self.server = server
        self.aws = aws
        self.cache = cache
        self.loop = loop if library == "redis.asyncio" else None
        self.user = f"app{uuid.uuid4().hex}"
        server.create_user(self.user, "first")
        aws.create(NAME, server.secret(self.user, "first"))
        of = redis.asyncio if self.loop else redis
        self.connection_class = connection_class(cache.cache if self.loop else cache, NAME)
        self.pool: Any = of.ConnectionPool(
            connection_class=self.connection_class,
            host=server.host,
            port=server.port,
            decode_responses=True,
            max_connections=1000,
            retry=retries(library, 10),  # as many as redis.Redis() has
            driver_info=None,  # else redis-py reads its package's metadata for each connection, a third of its CPU
        )
        self.client: Any = of.Redis(connection_pool=self.pool)

    def close(self) -> None:
        if self.loop:
            self.loop.run(self.client.aclose())
            self.loop.run(self.pool.disconnect())
        else:
            self.client.close()
            self.pool.disconnect()

    def checkout(self) -> str:
        """Take a connection out of the pool, ask who it is logged in as, and close it."""
        return str(self.loop.run(self.acheckout()) if self.loop else self._checkout())

    def _checkout(self) -> Any:
        connection = self.pool.get_connection()
        try:
            connection.send_command("ACL", "WHOAMI")
            return connection.read_response()
        finally:
            connection.disconnect()
            self.pool.release(connection)

    async def acheckout(self) -> Any:
        connection = await self.pool.get_connection()
        try:
            await connection.send_command("ACL", "WHOAMI")
            return await connection.read_response()
        finally:
            await connection.disconnect()
            await self.pool.release(connection)

    def command(self, *words: str) -> Any:
        answer = self.client.execute_command(*words)
        return self.loop.run(answer) if self.loop else answer

    def rotate(self, on_step: Callable[[str], object] = lambda _: None, strategy: Any = "single-user") -> None:
        with self.server.admin() as admin:
            client = self.aws.client()
            rotate(client, NAME, admin, strategy=strategy, dwell=0, on_step=lambda step, _: on_step(step))

    def rejected(self) -> int:
        """Count the logins as this user that the server has rejected."""
        with self.server.admin() as admin:
            log = cast("list[dict[str, Any]]", admin.acl_log(count=1000))
        return sum(int(entry["count"]) for entry in log if entry["username"] == self.user)

    def api_calls(self) -> int:
        return int(self.cache.metrics.snapshot().api_calls)


@pytest.fixture
def store(
    library: str, server: Valkey, aws: SecretsManager, make_cache: MakeCache, loop_thread: LoopThread
) -> Iterator[Store]:
    store = Store(library, server, aws, make_cache(), loop_thread)
    yield store
    store.close()


class TestRotation:
    def test_no_step_of_a_single_user_rotation_fails_a_checkout_and_each_rotation_rejects_one_login(
        self, store: Store
    ) -> None:
        store.checkout()
        seen: list[tuple[str, str, int, int]] = []
        for _ in range(3):
            store.rotate(lambda step: seen.append((step, store.checkout(), store.api_calls(), store.rejected())))
        assert [step for step, *_ in seen] == STEPS * 3
        assert {user for _, user, *_ in seen} == {store.user}
        # One read at first; then AWSCURRENT and AWSPENDING once per rotation, at setSecret.
        assert [calls for *_, calls, _ in seen] == [1, 3, 3, 3, 3, 5, 5, 5, 5, 7, 7, 7]
        assert [rejected for *_, rejected in seen] == [0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]

    def test_no_step_of_an_alternating_users_rotation_rejects_a_login(self, store: Store) -> None:
        users: list[str] = []
        for _ in range(2):
            store.rotate(lambda _: users.append(store.checkout()), "alternating-users")
            store.cache.refresh(NAME)
            users.append(store.checkout())
        assert set(users) == {store.user, f"{store.user}_clone"}
        assert store.rejected() == 0

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_under_load_no_checkout_fails_in_five_rotations(
        self, store: Store, together: Together, strategy: str
    ) -> None:
        store.checkout()
        over = threading.Event()
        moved = threading.Condition()
        done = [0] * WORKERS
        numbers = itertools.count()

        def work() -> bool:
            me = next(numbers)
            while not over.is_set():
                assert store.checkout().startswith(store.user)
                with moved:
                    done[me] += 1
                    moved.notify()
            return True

        def wait_for_checkouts(_: str) -> None:
            """Each thread has ended two checkouts, so begun one, since the step."""
            with moved:
                enough = [count + 2 for count in done]
                assert moved.wait_for(lambda: all(map(operator.ge, done, enough)), 30)

        def rotate() -> None:
            try:
                for _ in range(5):
                    store.rotate(wait_for_checkouts, strategy)
            finally:
                over.set()

        assert together(WORKERS, work, meanwhile=rotate) == [True] * WORKERS
        assert store.api_calls() <= 1 + 5 * 6
        # At setSecret all threads may be rejected at once; nobody after them is.
        assert store.rejected() <= 5 * WORKERS

    @pytest.mark.parametrize("library", ["redis"])
    def test_200_threads_rejected_at_once_make_one_set_of_api_calls(self, store: Store, together: Together) -> None:
        store.checkout()

        def storm(step: str) -> None:
            if step == "setSecret":
                assert together(200, store.checkout) == [store.user] * 200

        store.rotate(storm)
        assert store.api_calls() == 3

    @pytest.mark.parametrize("library", ["redis.asyncio"])
    def test_1000_tasks_rejected_at_once_make_one_set_of_api_calls(self, store: Store) -> None:
        store.checkout()

        async def all_at_once() -> list[Any]:
            return await asyncio.gather(*(store.acheckout() for _ in range(1000)))

        def storm(step: str) -> None:
            if step == "setSecret" and store.loop:
                assert store.loop.run(all_at_once()) == [store.user] * 1000

        store.rotate(storm)
        assert store.api_calls() == 3

    def test_an_open_connection_goes_on_and_one_that_was_killed_logs_in_with_the_new_password(
        self, store: Store
    ) -> None:
        assert store.command("SET", "key", "value") in ("OK", True)
        store.rotate(lambda _: store.command("GET", "key"))
        assert store.rejected() == 0
        with store.server.admin() as admin:
            admin.execute_command("CLIENT", "KILL", "USER", store.user)
        assert store.command("GET", "key") == "value"
        assert store.rejected() == 1

    def test_each_version_is_rejected_once_when_connections_are_opened_one_after_another(self, store: Store) -> None:
        store.checkout()
        store.rotate(lambda _: [store.checkout() for _ in range(5)])
        assert store.rejected() == 1


class TestAPasswordThatIsWrong:
    def test_costs_one_login_for_each_command_and_api_calls_stay_constant(self, store: Store) -> None:
        """Without us: 11 logins and seconds, for redis-py's AuthenticationError is a ConnectionError."""
        store.server.create_user(store.user, "not in the secret")
        for _ in range(5):
            with pytest.raises(AuthenticationError):
                store.command("PING")
        assert store.rejected() == 5
        assert store.api_calls() == 3

    def test_costs_one_login_too_where_the_command_finds_its_connection_closed(self, store: Store) -> None:
        store.command("PING")
        store.server.create_user(store.user, "not in the secret")
        with store.server.admin() as admin:
            admin.execute_command("CLIENT", "KILL", "USER", store.user)
        with pytest.raises(AuthenticationError):
            store.command("PING")
        assert store.rejected() == 1

    def test_costs_one_login_too_where_the_client_is_told_anew_how_to_retry(self, store: Store, library: str) -> None:
        store.command("PING")
        retry = retries(library, 10)
        store.client.set_retry(retry)
        assert retry == retries(library, 10), "it may serve others, and is left as it is"
        assert "call_with_retry" not in vars(retry)
        store.server.create_user(store.user, "not in the secret")
        with store.server.admin() as admin:
            admin.execute_command("CLIENT", "KILL", "USER", store.user)
        for _ in range(2):
            with pytest.raises(AuthenticationError):
                store.command("PING")
        assert store.rejected() == 2

    def test_put_right_is_accepted_and_nothing_else_had_to_be_done(self, store: Store) -> None:
        store.server.create_user(store.user, "second")
        with pytest.raises(AuthenticationError):
            store.checkout()
        store.aws.put(NAME, store.server.secret(store.user, "second"))
        store.cache.refresh(NAME)
        assert store.checkout() == store.user

    def test_redis_own_error_comes_out_with_no_context_of_ours(self, store: Store) -> None:
        store.server.create_user(store.user, "not in the secret")
        with pytest.raises(AuthenticationError) as caught:
            store.checkout()
        links = []
        error: BaseException | None = caught.value
        while error is not None:
            links.append(type(error).__module__)
            error = error.__context__
        assert {link.partition(".")[0] for link in links} == {"redis"}


class TestWhatIsNotAboutThePassword:
    def test_no_permission_asks_aws_nothing(self, store: Store) -> None:
        with store.server.admin() as admin:
            admin.execute_command("ACL", "SETUSER", store.user, "-get")
        with pytest.raises(redis.exceptions.NoPermissionError):
            store.command("GET", "key")
        assert store.api_calls() == 1

    def test_a_server_that_is_down_is_retried_as_redis_py_does_and_asks_aws_nothing(
        self, library: str, store: Store
    ) -> None:
        attempts: list[None] = []

        class Down(store.connection_class):  # type: ignore[misc, name-defined]
            def _connect(self) -> Any:
                attempts.append(None)
                raise ConnectionRefusedError

        of = redis.asyncio if library == "redis.asyncio" else redis
        connection = Down(host="127.0.0.1", port=1, retry=retries(library, 4))
        with pytest.raises(of.ConnectionError):
            store.loop.run(connection.connect()) if store.loop else connection.connect()
        assert len(attempts) == 5
        assert store.api_calls() == 1


class TestTheSecret:
    def test_without_a_username_logs_in_as_the_default_user(self, store: Store) -> None:
        store.aws.put(NAME, {"password": store.server._password})
        assert store.checkout() == "default"

    def test_without_a_password_is_an_error_that_names_what_it_has(self, store: Store) -> None:
        store.aws.put(NAME, {"username": "app"})
        with pytest.raises(NoSuchKey, match="no key 'password'"):
            store.checkout()

    def test_that_is_not_there_is_the_caches_error(self, store: Store) -> None:
        store.aws.reset()
        with pytest.raises(SecretNotFound):
            store.checkout()


@pytest.mark.parametrize("protocol", [2, 3])
def test_both_protocols_recover(store: Store, library: str, protocol: int) -> None:
    of = redis.asyncio if library == "redis.asyncio" else redis
    store.pool = of.ConnectionPool(
        connection_class=store.connection_class,
        host=store.server.host,
        port=store.server.port,
        protocol=protocol,
        decode_responses=True,
    )
    store.checkout()
    store.rotate()
    assert store.checkout() == store.user


@pytest.mark.parametrize("library", ["redis"])
def test_a_class_of_the_other_kind_is_refused(store: Store) -> None:
    with pytest.raises(InvalidArgument, match="is no class for threads"):
        connection_class(store.cache, NAME, redis.asyncio.Connection)
    with pytest.raises(InvalidArgument):
        connection_class(store.cache, "")


def test_it_builds_on_the_class_that_it_is_given(store: Store, library: str) -> None:
    of = redis.asyncio if library == "redis.asyncio" else redis
    cache = store.cache.cache if store.loop else store.cache
    assert issubclass(connection_class(cache, NAME, of.SSLConnection), of.SSLConnection)
