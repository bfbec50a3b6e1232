"""pymongo's clients, threads and asyncio, against a fake MongoDB that really rejects passwords, and real rotations."""

from __future__ import annotations

import asyncio
import json
import runpy
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from pymongo.errors import InvalidOperation, OperationFailure, ServerSelectionTimeoutError
from pymongo.monitoring import CommandListener

from smcache import AsyncSecretCache, InvalidArgument, NoSuchKey, SecretNotFound, is_auth_error
from smcache.integrations.pymongo import AsyncRotatingClient, RotatingClient
from smcache.testing import deny

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Clock, LoopThread, MakeCache, Together
    from mongo_server import Mongo

    from smcache.testing import SecretsManager

pytestmark = pytest.mark.servers

CANARY = "canary-" + "7f3a" * 4  # which conftest.py looks for
NAME = "prod/docdb"
STEPS = ["createSecret", "setSecret", "finishSecret"]
mongo = runpy.run_path(str(Path(__file__).with_name("mongo_server.py")))["mongo"]  # tests are no package
STRATEGIES = ["single-user", "alternating-users"]


@pytest.fixture(scope="module")
def server() -> Iterator[Mongo]:
    with mongo() as server:
        yield server


@pytest.fixture(params=["threads", "asyncio"])
def kind(request: pytest.FixtureRequest) -> str:
    return cast("str", request.param)


def who(client: Any) -> Any:
    """Ask who is logged in; with AsyncMongoClient, a coroutine."""
    return client.admin.command("connectionStatus")


class Store:
    """A user whose password is in a secret, and a client each of whose connections is used once."""

    def __init__(self, server: Mongo, aws: SecretsManager, cache: Any, loop: LoopThread | None) -> None:
        self.server = server
        self.aws = aws
        self.cache = cache
        self.loop = loop
        self.user = f"app{uuid.uuid4().hex}"
        server.create_user(self.user, CANARY)
        aws.create(NAME, server.secret(self.user, CANARY))
        self.mongo = self.client(maxIdleTimeMS=1)

    def client(self, **options: Any) -> Any:
        kind: Any = AsyncRotatingClient if self.loop else RotatingClient
        return kind(self.cache.cache if self.loop else self.cache, NAME, **options)

    def close(self) -> None:
        self.loop.run(self.mongo.close()) if self.loop else self.mongo.close()

    def run(self, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        done = self.mongo.run(operation, *args, **kwargs)
        return self.loop.run(done) if self.loop else done

    def checkout(self) -> str:
        """Ask who is logged in, on a connection made for it."""
        time.sleep(0.002)  # those of before are older than maxIdleTimeMS by now
        return name_in(self.run(who))

    def rotate(self, on_step: Callable[[str], object] = lambda _: None, strategy: str = "single-user") -> None:
        """Rotate as AWS's functions do; from setSecret on, a single user's old password is rejected."""
        client = self.aws.client()
        answer = client.get_secret_value(SecretId=NAME, VersionStage="AWSCURRENT")
        current, version_id = json.loads(answer["SecretString"]), str(uuid.uuid4())
        other = current["username"]
        if strategy == "alternating-users":
            other = other.removesuffix("_clone") if other.endswith("_clone") else f"{other}_clone"
        pending = {**current, "username": other, "password": uuid.uuid4().hex}
        client.put_secret_value(
            SecretId=NAME,
            ClientRequestToken=version_id,
            SecretString=json.dumps(pending),
            VersionStages=["AWSPENDING"],
        )
        on_step("createSecret")
        self.server.create_user(pending["username"], pending["password"])
        on_step("setSecret")
        client.update_secret_version_stage(
            SecretId=NAME,
            VersionStage="AWSCURRENT",
            MoveToVersionId=version_id,
            RemoveFromVersionId=answer["VersionId"],
        )
        client.update_secret_version_stage(SecretId=NAME, VersionStage="AWSPENDING", RemoveFromVersionId=version_id)
        on_step("finishSecret")

    def rejected(self) -> int:
        return self.server.rejected(self.user)

    def api_calls(self) -> int:
        return int(self.cache.metrics.snapshot().api_calls)


def name_in(status: Any) -> str:
    (user,) = status["authInfo"]["authenticatedUsers"]
    return str(user["user"])


@pytest.fixture
def store(
    server: Mongo, aws: SecretsManager, make_cache: MakeCache, loop_thread: LoopThread, kind: str
) -> Iterator[Store]:
    store = Store(server, aws, make_cache(), loop_thread if kind == "asyncio" else None)
    yield store
    store.close()


class TestRotation:
    def test_no_step_of_a_single_user_rotation_fails_an_operation_and_each_rotation_rejects_one_login(
        self, store: Store
    ) -> None:
        store.checkout()
        seen: list[tuple[str, str, int, int]] = []
        for _ in range(3):
            store.rotate(lambda step: seen.append((step, store.checkout(), store.api_calls(), store.rejected())))
        assert [step for step, *_ in seen] == STEPS * 3
        assert {user for _, user, *_ in seen} == {store.user}
        # One read at first; then AWSCURRENT and AWSPENDING once per rotation, at setSecret.
        assert [calls for *_, calls, _ in seen] == [1, 3, 3, 3, 5, 5, 5, 7, 7]
        assert [rejected for *_, rejected in seen] == [0, 1, 1, 1, 2, 2, 2, 3, 3]
        assert store.cache.metrics.snapshot().auth_recoveries == 3

    def test_no_step_of_an_alternating_users_rotation_rejects_a_login(self, store: Store) -> None:
        users: list[str] = []
        for _ in range(2):
            store.rotate(lambda _: users.append(store.checkout()), "alternating-users")
            store.cache.refresh(NAME)
            users.append(store.checkout())
        assert users == [store.user] * 3 + [f"{store.user}_clone"] * 4 + [store.user]
        assert store.rejected() == store.server.rejected(f"{store.user}_clone") == 0

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_under_load_no_operation_fails_in_three_rotations(
        self, store: Store, together: Together, strategy: str
    ) -> None:
        store.checkout()
        over = threading.Event()
        per_step = threading.Semaphore(0)

        def work() -> bool:
            while not over.is_set():
                assert store.checkout().startswith(store.user)
                per_step.release()
            return True

        def wait_for_operations(_: str) -> None:
            for _each in range(per_step._value + 20):
                assert per_step.acquire(timeout=30)

        def rotate() -> None:
            try:
                for _ in range(3):
                    store.rotate(wait_for_operations, strategy)
            finally:
                over.set()

        assert together(10, work, meanwhile=rotate) == [True] * 10
        assert store.api_calls() <= 1 + 3 * 6

    @pytest.mark.parametrize("kind", ["threads"])
    def test_200_threads_rejected_at_once_all_recover_with_one_set_of_api_calls(
        self, store: Store, together: Together
    ) -> None:
        """By itself, pymongo tells most of them that "the connection pool is paused", which is no auth error."""
        store.checkout()

        def storm(step: str) -> None:
            if step == "setSecret":
                assert together(200, store.checkout) == [store.user] * 200

        store.rotate(storm)
        assert store.api_calls() == 3
        assert store.cache.metrics.snapshot().auth_unrecovered == 0

    @pytest.mark.parametrize("kind", ["asyncio"])
    def test_1000_tasks_rejected_at_once_all_recover_with_one_set_of_api_calls(self, store: Store) -> None:
        store.checkout()

        async def all_at_once() -> list[Any]:
            return await asyncio.gather(*(store.mongo.run(who) for _ in range(1000)))

        def storm(step: str) -> None:
            if step == "setSecret" and store.loop:
                time.sleep(0.002)
                assert {name_in(status) for status in store.loop.run(all_at_once())} == {store.user}

        store.rotate(storm)
        assert store.api_calls() == 3

    def test_an_open_connection_goes_on_when_the_password_changes(self, store: Store) -> None:
        store.close()
        store.mongo = store.client()
        logins = [store.run(who) and store.server.logins(store.user)]
        store.rotate(lambda _: logins.append(store.run(who) and store.server.logins(store.user)))
        assert logins == [1] * 4
        assert store.rejected() == 0

    def test_what_awspending_opened_serves_on_when_it_becomes_awscurrent(self, store: Store) -> None:
        store.close()
        store.mongo = store.client()
        clients: list[Any] = []

        def use(client: Any) -> Any:
            clients.append(client)
            return who(client)

        def at(step: str) -> None:
            if step == "setSecret":  # with no connection open, so that one is needed
                store.close()
                store.run(use)

        store.rotate(at)
        store.cache.refresh(NAME)
        store.run(use)
        assert len(set(map(id, clients))) == 1


class TestTheClientThatIsReplaced:
    def test_is_closed_when_the_last_operation_that_uses_it_has_ended(
        self, store: Store, loop_thread: LoopThread
    ) -> None:
        entered, leave = threading.Event(), threading.Event()
        found: list[Any] = []

        def long(client: Any) -> Any:
            found.append(client)
            entered.set()
            assert leave.wait(30)
            return who(client)

        async def long_async(client: Any) -> Any:
            found.append(client)
            entered.set()
            await asyncio.to_thread(leave.wait, 30)
            return await who(client)

        store.checkout()
        answers: list[Any] = []
        operation = long_async if store.loop else long
        thread = threading.Thread(target=lambda: answers.append(store.run(operation)))
        thread.start()
        assert entered.wait(30)
        store.rotate(strategy="alternating-users")
        store.cache.refresh(NAME)
        assert store.checkout() == f"{store.user}_clone"
        leave.set()
        thread.join(30)
        assert [name_in(answer) for answer in answers] == [store.user], "it was not closed under the operation"
        with pytest.raises(InvalidOperation):
            loop_thread.run(who(found[0])) if store.loop else who(found[0])

    def test_leaves_nothing_behind(self, store: Store) -> None:
        for _ in range(3):
            store.rotate()
            store.cache.refresh(NAME)
            store.checkout()
        assert len(store.mongo._clients._lent) == 1

    def test_close_closes_it_and_the_next_operation_makes_another(self, store: Store) -> None:
        store.checkout()
        store.close()
        assert store.mongo._clients._lent == {}
        assert store.checkout() == store.user

    def test_goes_on_where_the_new_password_is_wrong_which_is_tried_once(self, store: Store) -> None:
        store.checkout()
        store.aws.put(NAME, store.server.secret(store.user, "a typo"))
        store.cache.refresh(NAME)
        assert [store.checkout() for _ in range(3)] == [store.user] * 3
        assert store.rejected() == 1
        assert store.api_calls() == 2
        store.server.create_user(store.user, "second")
        store.aws.put(NAME, store.server.secret(store.user, "second"))
        store.cache.refresh(NAME)
        assert store.checkout() == store.user
        assert store.rejected() == 1
        assert len(store.mongo._clients._lent) == 1

    def test_is_refused_in_the_end_and_a_rotation_is_found_all_the_same(self, store: Store) -> None:
        store.checkout()
        store.aws.put(NAME, store.server.secret(store.user, "a typo"))
        store.cache.refresh(NAME)
        store.checkout()
        store.rotate(lambda _: store.checkout())
        assert store.checkout() == store.user
        assert store.rejected() == 3, "the old password once, and the typo beside that and beside AWSPENDING"

    @pytest.mark.parametrize("kind", ["threads"])  # what blocks would block the loop
    def test_serves_others_until_the_new_version_has_logged_in(self, store: Store) -> None:
        login, leave = threading.Event(), threading.Event()

        class Listener(CommandListener):
            def started(self, event: Any) -> None:
                if event.command_name == "ping":
                    login.set()
                    assert leave.wait(30)

            def succeeded(self, event: Any) -> None:
                pass

            def failed(self, event: Any) -> None:
                pass

        leave.set()
        store.close()
        store.mongo = store.client(event_listeners=[Listener()])
        store.run(who)
        login.clear()
        leave.clear()
        store.rotate(strategy="alternating-users")
        store.cache.refresh(NAME)
        answers: list[str] = []
        thread = threading.Thread(target=lambda: answers.append(name_in(store.run(who))))
        thread.start()
        assert login.wait(30)
        assert name_in(store.run(who)) == store.user
        leave.set()
        thread.join(30)
        assert [*answers, name_in(store.run(who))] == [f"{store.user}_clone"] * 2

    @pytest.mark.parametrize("kind", ["threads"])  # AsyncMongoClient may leave a socket open here, and a warning of it
    def test_hides_no_server_of_the_new_version_that_is_down(self, store: Store) -> None:
        store.close()
        store.mongo = store.client(serverSelectionTimeoutMS=50)
        store.run(who)
        store.aws.put(NAME, {**store.server.secret(store.user, CANARY), "port": 1})
        store.cache.refresh(NAME)
        for _ in range(2):
            with pytest.raises(ServerSelectionTimeoutError):
                store.run(who)


class TestAPasswordThatIsWrong:
    def test_costs_one_login_for_each_operation_and_api_calls_stay_constant(self, store: Store) -> None:
        store.server.create_user(store.user, "not in the secret")
        for _ in range(5):
            with pytest.raises(OperationFailure, match=r"Authentication failed\.") as caught:
                store.checkout()
            assert caught.value.code == 18
        assert store.rejected() == 5
        assert store.api_calls() == 3

    def test_costs_no_more_where_a_client_has_logged_in_before(self, store: Store) -> None:
        store.checkout()
        store.server.create_user(store.user, "not in the secret")
        for _ in range(2):  # half a second each: pymongo looks after the server first
            with pytest.raises(OperationFailure):
                store.checkout()
        assert store.rejected() == 2
        assert store.api_calls() == 3

    def test_put_right_is_accepted_and_nothing_else_had_to_be_done(self, store: Store) -> None:
        store.server.create_user(store.user, "second")
        with pytest.raises(OperationFailure):
            store.checkout()
        store.aws.put(NAME, store.server.secret(store.user, "second"))
        store.cache.refresh(NAME)
        assert store.checkout() == store.user


class TestWhatIsNotAboutThePassword:
    def test_no_permission_is_not_called_again_and_asks_aws_nothing(self, store: Store) -> None:
        calls: list[None] = []

        def forbidden(client: Any) -> Any:
            calls.append(None)
            return client.admin.command("listDatabases")

        with pytest.raises(OperationFailure) as caught:
            store.run(forbidden)
        assert caught.value.code == 13
        assert len(calls) == store.api_calls() == 1

    @pytest.mark.parametrize("kind", ["threads"])  # AsyncMongoClient may leave a socket open here, and a warning of it
    def test_a_server_that_is_down_asks_aws_nothing(self, store: Store) -> None:
        store.aws.put(NAME, {**store.server.secret(store.user, "x"), "port": 1})
        store.mongo = store.client(serverSelectionTimeoutMS=50)
        with pytest.raises(ServerSelectionTimeoutError):
            store.checkout()
        assert store.api_calls() == 1

    def test_an_auth_error_of_something_else_is_not_taken_for_ours(self, store: Store) -> None:
        class Refused(Exception):
            sqlstate = "28P01"

        def operation(_: Any) -> Any:
            raise Refused

        assert is_auth_error(Refused())
        with pytest.raises(Refused):
            store.run(operation)
        assert store.api_calls() == 1

    def test_a_client_that_has_logged_in_goes_on_while_aws_denies_the_secret(self, store: Store, clock: Clock) -> None:
        store.checkout()
        clock.advance(1000)
        with store.aws.inject(deny()):
            assert store.checkout() == store.user


class TestTheSecret:
    @pytest.mark.parametrize("missing", ["username", "password", "host"])
    def test_without_a_field_that_is_needed_is_an_error_that_names_it(self, store: Store, missing: str) -> None:
        fields = store.server.secret(store.user, "x")
        store.aws.put(NAME, {name: value for name, value in fields.items() if name != missing})
        with pytest.raises(NoSuchKey, match=f"no key '{missing}'; the secret has 'dbname', 'engine'"):
            store.checkout()

    def test_that_is_not_there_is_the_caches_error(self, store: Store) -> None:
        store.aws.reset()
        with pytest.raises(SecretNotFound):
            store.checkout()

    def test_says_where_the_server_is_unless_a_host_is_given(self, store: Store) -> None:
        store.aws.put(NAME, {"username": store.user, "password": CANARY, "host": "192.0.2.1", "dbname": "x"})
        uri = f"mongodb://somebody:else@{store.server.host}:{store.server.port}/?authSource=admin"
        for place in ({"host": store.server.host, "port": store.server.port}, {"host": uri}):
            store.mongo = store.client(**place)
            assert name_in(store.run(who)) == store.user
            store.close()

    def test_says_where_its_user_is_known(self, store: Store) -> None:
        store.aws.put(NAME, {**store.server.secret(store.user, CANARY), "dbname": "shop"})
        sources: list[str] = []

        class Listener(CommandListener):
            def started(self, event: Any) -> None:
                sources.append(event.database_name)

            def succeeded(self, event: Any) -> None:
                pass

            def failed(self, event: Any) -> None:
                pass

        store.close()
        store.mongo = store.client(event_listeners=[Listener()])
        store.run(who)
        assert sources[0] == "shop"

    def test_is_in_no_repr(self, store: Store) -> None:
        store.checkout()
        assert CANARY not in f"{store.mongo!r} {store.mongo._clients.logged_in.client!r}"


def test_arguments_go_to_the_operation_and_its_result_comes_back(store: Store) -> None:
    def sync(client: Any, *args: int, **kwargs: int) -> Any:
        return args, kwargs

    async def coroutine(client: Any, *args: int, **kwargs: int) -> Any:
        return args, kwargs

    assert store.run(coroutine if store.loop else sync, 1, two=2) == ((1,), {"two": 2})


@pytest.mark.parametrize("kind", ["threads"])
def test_a_cache_of_the_other_kind_or_an_impossible_id_is_refused(store: Store) -> None:
    wrong: Any = AsyncSecretCache(store.aws.client())
    with pytest.raises(InvalidArgument, match="RotatingClient needs a SecretCache"):
        RotatingClient(wrong, NAME)
    with pytest.raises(InvalidArgument, match="AsyncRotatingClient needs an AsyncSecretCache"):
        AsyncRotatingClient(store.cache, NAME)
    with pytest.raises(InvalidArgument):
        RotatingClient(store.cache, "")
