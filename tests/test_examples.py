"""The examples run as they stand, against real servers, while the password of their role rotates under them."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import django
import django.conf
import httpx
import pytest
from django.db.utils import ConnectionHandler

import smcache.integrations.django
from smcache import SecretCache
from smcache.testing import rotate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from smcache.testing import PostgreSQL, SecretsManager

pytestmark = pytest.mark.servers

EXAMPLES = Path(__file__).parent.parent / "examples"
NAME = "prod/db"
# At the end the clone's password is one that no earlier version has.
PLAN: tuple[Literal["single-user", "alternating-users"], ...] = ("single-user", *("alternating-users",) * 3)
AT_ONCE = 5
roles = itertools.count(1)


@dataclass
class Database:
    """A role, and the secret that an example reads."""

    aws: SecretsManager
    pg: PostgreSQL
    role: str

    @property
    def last_user(self) -> str:
        """The user of the version that the plan ends with."""
        return f"{self.role}_clone"

    def rotate_by_plan(self, use: Callable[[], object]) -> str:
        """Rotate again and again, with traffic at each step; return the version at the end."""
        client, version = self.aws.client(), ""
        with self.pg.admin() as admin:
            for strategy in PLAN:
                version = rotate(client, NAME, admin, strategy=strategy, dwell=0, on_step=lambda *_: use())
        return version

    async def rotate_beside(self, use: Callable[[], Awaitable[None]]) -> str:
        """Do the same from a loop, in which the traffic is."""
        loop = asyncio.get_running_loop()

        async def main() -> None:
            await use()

        def in_loop() -> None:
            asyncio.run_coroutine_threadsafe(main(), loop).result(60)

        return await asyncio.to_thread(self.rotate_by_plan, in_loop)


@pytest.fixture
def database(aws: SecretsManager, pg: PostgreSQL, canary: str, monkeypatch: pytest.MonkeyPatch) -> Database:
    """What the environment of an example leads to."""
    role = f"example_{next(roles)}"
    pg.create_role(role, canary)
    aws.create(NAME, pg.secret(role, canary))
    for name, value in {**aws.environ, "SECRET_ID": NAME}.items():
        monkeypatch.setenv(name, value)
    return Database(aws, pg, role)


@pytest.fixture(autouse=True)
def pools_have_nothing_to_report(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A pool hides from its users that a connection failed, and logs it."""
    yield
    assert [record.getMessage() for record in caplog.records if record.levelname != "INFO"] == []


def load(name: str) -> Any:
    """Import an example by its path, anew each time."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested_and_says_what_it_shows() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert f'load("{path.stem}")' in Path(__file__).read_text(encoding="utf-8")
        assert "SECRET_ID" in path.read_text(encoding="utf-8").split('"""')[1]


def test_asyncpg_pool(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    example = load("asyncpg_pool")

    async def users(pool: Any) -> set[str]:
        return set(await asyncio.gather(*(pool.fetchval("select current_user") for _ in range(AT_ONCE))))

    async def main() -> None:
        async with example.cache, example.open_pool(min_size=1, max_size=AT_ONCE + 1) as pool:

            async def log_in_anew() -> None:
                await pool.expire_connections()
                assert await users(pool) <= {database.role, database.last_user}

            async with pool.acquire() as kept:
                version = await database.rotate_beside(log_in_anew)
                assert await kept.fetchval("select current_user") == database.role
            assert (await example.cache.refresh(NAME)).version_id == version
            assert await users(pool) == {database.last_user}
        assert example.cache.metrics.snapshot().auth_recoveries > 0

    asyncio.run(main())
    asyncio.run(load("asyncpg_pool").main())
    assert capsys.readouterr().out == f"{[database.last_user] * 10}\n"


def test_fastapi_service(database: Database) -> None:
    example = load("fastapi_service")

    async def main() -> None:
        transport = httpx.ASGITransport(example.app)
        async with (
            example.app.router.lifespan_context(example.app),
            httpx.AsyncClient(transport=transport, base_url="http://service") as client,
        ):

            async def users() -> set[str]:
                answers = await asyncio.gather(*(client.get("/whoami") for _ in range(AT_ONCE)))
                return {answer.raise_for_status().json()["user"] for answer in answers}

            async def log_in_anew() -> None:
                await example.pool.drain()
                assert await users() <= {database.role, database.last_user}

            version = await database.rotate_beside(log_in_anew)
            assert (await example.cache.refresh(NAME)).version_id == version
            until = time.monotonic() + 30
            while database.last_user not in await users():  # the pool replaces its connections in the background
                assert time.monotonic() < until
            metrics = (await client.get("/metrics")).raise_for_status().json()
        assert metrics["auth_recoveries"] > 0
        assert metrics["auth_unrecovered"] == 0
        assert metrics["calls_by_operation"] == {"GetSecretValue": metrics["api_calls"]}

    asyncio.run(main())


def test_psycopg_pool_service(database: Database) -> None:
    example = load("psycopg_pool_service")

    def get(_: object) -> str:
        statuses: list[str] = []
        body = b"".join(example.app({}, lambda status, _: statuses.append(status)))
        assert statuses == ["200 OK"]
        return body.decode()

    with example.cache, example.pool, ThreadPoolExecutor(AT_ONCE) as threads:

        def log_in_anew() -> None:
            example.pool.drain()
            assert set(threads.map(get, range(AT_ONCE))) <= {database.role, database.last_user}

        version = database.rotate_by_plan(log_in_anew)
        assert example.cache.refresh(NAME).version_id == version
        until = time.monotonic() + 30
        while database.last_user not in threads.map(get, range(AT_ONCE)):  # replaced in the background
            assert time.monotonic() < until
    assert example.cache.metrics.snapshot().auth_recoveries > 0


def test_lambda_handler(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "example")
    example = load("lambda_handler")

    def invoke() -> str:
        answer = example.handler({}, None)
        assert answer["statusCode"] == 200
        return str(answer["body"])

    with example.cache:
        assert invoke() == invoke() == database.role
        assert database.aws.requests == {"BatchGetSecretValue": 1}
        version = database.rotate_by_plan(invoke)
        assert example.cache.refresh(NAME).version_id == version
        assert invoke() == database.last_user
    assert example.cache.metrics.snapshot().auth_recoveries > 0


def test_sqlalchemy_service(database: Database) -> None:
    example = load("sqlalchemy_service")

    def get(_: object) -> str:
        answer = example.app.test_client().get("/whoami")
        assert answer.status_code == 200
        return str(answer.json["user"])

    with example.cache, ThreadPoolExecutor(AT_ONCE) as threads:

        def log_in_anew() -> None:
            example.engine.dispose()
            assert set(threads.map(get, range(AT_ONCE))) <= {database.role, database.last_user}

        with example.engine.connect() as kept:
            kept.detach()  # else its pool, which the test disposes of, leaves it open
            version = database.rotate_by_plan(log_in_anew)
            assert kept.exec_driver_sql("select current_user").scalar_one() == database.role
        assert example.cache.refresh(NAME).version_id == version
        example.engine.dispose()
        assert set(threads.map(get, range(AT_ONCE))) == {database.last_user}
    example.engine.dispose()
    assert example.cache.metrics.snapshot().auth_recoveries > 0


def test_django_settings(database: Database) -> None:
    if not django.conf.settings.configured:  # by another file of tests, in the same process
        django.conf.settings.configure(LOGGING_CONFIG=None)
        django.setup()
    connection = ConnectionHandler(load("django_settings").DATABASES)["default"]

    def user() -> str:
        with connection.cursor() as cursor:
            cursor.execute("select current_user")
            [(name,)] = cursor.fetchall()
        return str(name)

    def log_in_anew() -> None:
        connection.close()
        assert user() in {database.role, database.last_user}

    with SecretCache() as cache:
        smcache.integrations.django.use_cache(cache)
        assert user() == database.role
        version = database.rotate_by_plan(log_in_anew)
        assert cache.refresh(NAME).version_id == version
        connection.close()
        assert user() == database.last_user
        connection.close()
    assert cache.metrics.snapshot().auth_recoveries > 0


class Api(ThreadingHTTPServer):
    """An HTTP server that answers 401 to all keys but one."""

    daemon_threads = True
    key = "first"


class Handler(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        accepted = self.headers["Authorization"] == f"Bearer {self.server.key}"
        self.send_response(200 if accepted else 401)
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that http.server gave it
        pass


@pytest.fixture
def api() -> Iterator[Api]:
    with Api(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def test_httpx_api_key(
    api: Api, aws: SecretsManager, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    aws.create(NAME, {"key": api.key})
    for name, value in {**aws.environ, "SECRET_ID": NAME, "API_URL": f"http://127.0.0.1:{api.server_port}"}.items():
        monkeypatch.setenv(name, value)
    example = load("httpx_api_key")

    def statuses() -> list[int]:
        return [example.client.get("/").status_code for _ in range(2)]

    with example.cache, example.client:
        assert statuses() == [200, 200]
        aws_client, version = aws.client(), str(uuid.uuid4())
        pending = json.dumps({"key": "second"})
        aws_client.put_secret_value(
            SecretId=NAME, ClientRequestToken=version, SecretString=pending, VersionStages=["AWSPENDING"]
        )
        api.key = "second"
        assert statuses() == [200, 200]
        aws_client.update_secret_version_stage(
            SecretId=NAME,
            VersionStage="AWSCURRENT",
            MoveToVersionId=version,
            RemoveFromVersionId=aws_client.get_secret_value(SecretId=NAME)["VersionId"],
        )
        assert statuses() == [200, 200]
        metrics = example.cache.metrics.snapshot()
    assert (metrics.auth_failures, metrics.auth_recoveries) == (1, 1)
    load("httpx_api_key").main()
    assert capsys.readouterr().out == "ok\n"
