"""API keys in httpx and requests: a server that really checks them, and keys that really rotate."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import operator
import ssl
import threading
import traceback
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import requests

from smcache import InvalidArgument, SecretNotFound, SecretValueError
from smcache.integrations.httpx import SecretAuth as HttpxAuth
from smcache.integrations.requests import SecretAuth as RequestsAuth
from smcache.testing import deny, latency

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from conftest import Clock, LoopThread, MakeCache, Together

    from smcache import SecretCache
    from smcache.testing import SecretsManager

pytestmark = pytest.mark.servers

NAME = "prod/api"
FIRST = "first-key"
WORKERS = 8
#: Nothing here speaks TLS; httpx reads the system's certificates for each client otherwise, 20 ms of CPU.
TRUSTING_NOBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@dataclass
class Api:
    """An HTTP server that answers 401 to all but some keys."""

    url: str = ""
    accepted: set[str] = field(default_factory=lambda: {f"Bearer {FIRST}"})
    header: str = "Authorization"
    seen: list[str | None] = field(default_factory=list)  # what each request said in the header
    bodies: list[bytes] = field(default_factory=list)
    ports: set[int] = field(default_factory=set)  # of the clients: one for each connection
    busy: int = 0  # the status with which every other request is answered, whatever its key

    @property
    def refused(self) -> int:
        return sum(said not in self.accepted for said in self.seen)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        api = cast("Any", self.server).api
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        body = self.read_chunks() if chunked else self.rfile.read(int(self.headers.get("Content-Length", 0)))
        api.bodies.append(body)
        api.ports.add(self.client_address[1])
        to = parse_qs(urlsplit(self.path).query).get("to")
        if to:
            self.answer(302, {"Location": to[0]})
            return
        said = self.headers.get(api.header)
        api.seen.append(said)
        if self.path == "/hang-up" and said in api.accepted:
            self.close_connection = True
            return
        if api.busy and len(api.seen) % 2 == 0:
            self.answer(api.busy, {})
            return
        self.answer(200 if said in api.accepted else 403 if self.path == "/forbidden" else 401, {})

    do_POST = do_GET  # noqa: N815 - the name that http.server looks for

    def read_chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that http.server gave it
        pass


@contextlib.contextmanager
def serve(api: Api) -> Iterator[Api]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.request_queue_size = 128
    server.socket.listen(128)
    cast("Any", server).api = api
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.fixture
def api() -> Iterator[Api]:
    with serve(Api()) as server:
        yield server


class Rotation:
    """The rotation of a key, step by step; the server takes only the new one from `set_secret` on."""

    def __init__(self, aws: SecretsManager, api: Api, key: str) -> None:
        self.client = aws.client()
        self.api = api
        self.key = key
        self.version_id = str(uuid.uuid4())

    def create_secret(self) -> None:
        self.client.put_secret_value(
            SecretId=NAME,
            ClientRequestToken=self.version_id,
            SecretString=json.dumps({"key": self.key}),
            VersionStages=["AWSPENDING"],
        )

    def set_secret(self) -> None:
        self.api.accepted = {f"Bearer {self.key}"}

    def finish_secret(self) -> None:
        stages = self.client.describe_secret(SecretId=NAME)["VersionIdsToStages"]
        current = next(version for version, labels in stages.items() if "AWSCURRENT" in labels)
        self.client.update_secret_version_stage(
            SecretId=NAME, VersionStage="AWSCURRENT", MoveToVersionId=self.version_id, RemoveFromVersionId=current
        )
        self.client.update_secret_version_stage(
            SecretId=NAME, VersionStage="AWSPENDING", RemoveFromVersionId=self.version_id
        )

    def run(self) -> None:
        self.create_secret()
        self.set_secret()
        self.finish_secret()


class Finishing(list[float]):
    """The sleeps of a clock; in the third, the rotation finishes."""

    def __init__(self, rotation: Rotation) -> None:
        super().__init__()
        self.rotation = rotation

    def append(self, seconds: float) -> None:
        super().append(seconds)
        if len(self) == 3:
            self.rotation.finish_secret()


LIBRARIES = ["httpx", "httpx-async", "requests"]


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> str:
    return cast("str", request.param)


@pytest.fixture
def kind(library: str) -> str:
    return "asyncio" if library == "httpx-async" else "threads"


class Client:
    """One HTTP client of a library, with one `SecretAuth`; it returns what each call got."""

    def __init__(self, library: str, cache: Any, loop: LoopThread, **options: Any) -> None:
        self.library = library
        self.cache: SecretCache = cache
        self.loop = loop
        options = {"value": "key", **options}
        self.auth: Any
        self.client: Any
        if library == "requests":
            self.auth = RequestsAuth(cache, NAME, **options)
            self.client = requests.Session()
            self.client.trust_env = False  # else it reads the environment and ~/.netrc for each request
            adapter = requests.adapters.HTTPAdapter(pool_connections=5, pool_maxsize=64)
            self.client.mount("http://", adapter)
        elif library == "httpx":
            self.auth = HttpxAuth(cache, NAME, **options)
            self.client = httpx.Client(trust_env=False, verify=TRUSTING_NOBODY, timeout=30)
        else:
            self.auth = HttpxAuth(cache.cache, NAME, **options)
            self.client = httpx.AsyncClient(trust_env=False, verify=TRUSTING_NOBODY, timeout=30)

    def close(self) -> None:
        if self.library == "httpx-async":
            self.loop.run(self.client.aclose())
        else:
            self.client.close()

    def get(self, url: str) -> Any:
        return self.send("GET", url)

    def post(self, url: str, body: Any) -> Any:
        return self.send("POST", url, **{"data" if self.library == "requests" else "content": body})

    def send(self, method: str, url: str, **options: Any) -> Any:
        follow = {} if self.library == "requests" else {"follow_redirects": True}
        sent = self.client.request(method, url, auth=self.auth, **follow, **options)
        return self.loop.run(sent) if self.library == "httpx-async" else sent

    def status(self, url: str) -> int:
        return int(self.get(url).status_code)

    def api_calls(self) -> int:
        return self.cache.metrics.snapshot().api_calls


@pytest.fixture
def make_http(
    library: str, make_cache: MakeCache, loop_thread: LoopThread, aws: SecretsManager
) -> Iterator[Callable[..., Client]]:
    aws.create(NAME, {"key": FIRST})
    with contextlib.ExitStack() as stack:

        def make(**options: Any) -> Client:
            client = Client(library, make_cache(), loop_thread, **options)
            stack.callback(client.close)
            return client

        yield make


@pytest.fixture
def http(make_http: Callable[..., Client]) -> Client:
    return make_http()


class TestRotation:
    def test_no_step_of_a_rotation_shows_a_401_and_each_refuses_one_request(
        self, http: Client, api: Api, aws: SecretsManager
    ) -> None:
        http.get(api.url)
        statuses: list[int] = []
        calls: list[int] = []
        for number in range(3):
            rotation = Rotation(aws, api, f"key-{number}")
            for step in (rotation.create_secret, rotation.set_secret, rotation.finish_secret):
                step()
                statuses += [http.status(api.url), http.status(api.url)]
                calls.append(http.api_calls())
        assert statuses == [200] * 18
        # One read at first; then AWSCURRENT and AWSPENDING, once per rotation, when the server changes its mind.
        assert calls == [1, 3, 3, 3, 5, 5, 5, 7, 7]
        assert len(api.seen) == 1 + 18 + 3
        assert http.cache.metrics.snapshot().auth_failures == 3
        assert http.cache.metrics.snapshot().auth_recoveries == 3

    def test_what_the_server_takes_while_only_awspending_is_accepted_is_where_later_requests_start(
        self, http: Client, api: Api, aws: SecretsManager
    ) -> None:
        http.get(api.url)
        rotation = Rotation(aws, api, "second-key")
        rotation.create_secret()
        rotation.set_secret()
        assert [http.status(api.url) for _ in range(5)] == [200] * 5
        assert api.seen == [f"Bearer {FIRST}"] * 2 + ["Bearer second-key"] * 5

    def test_a_rotation_that_is_over_costs_one_api_call(self, http: Client, api: Api, aws: SecretsManager) -> None:
        http.get(api.url)
        Rotation(aws, api, "second-key").run()
        assert http.status(api.url) == 200
        assert http.api_calls() == 2

    @pytest.mark.parametrize("busy", [429, 503])
    def test_an_awspending_that_a_busy_server_has_not_looked_at_counts_neither_as_taken_nor_as_refused(
        self, http: Client, api: Api, aws: SecretsManager, busy: int
    ) -> None:
        http.get(api.url)
        api.seen.clear()
        rotation = Rotation(aws, api, "second-key")
        rotation.create_secret()
        rotation.set_secret()
        api.busy = busy
        assert http.status(api.url) == busy
        assert http.cache.metrics.snapshot().auth_recoveries == 0
        assert http.status(api.url) == 200
        assert api.seen == [f"Bearer {FIRST}", *["Bearer second-key"] * 2]
        assert http.api_calls() == 3

    def test_under_load_no_request_fails_in_five_rotations(
        self, http: Client, api: Api, aws: SecretsManager, together: Together
    ) -> None:
        http.get(api.url)
        over = threading.Event()
        moved = threading.Condition()
        done = [0] * WORKERS
        numbers = itertools.count()

        def work() -> bool:
            me = next(numbers)
            while not over.is_set():
                assert http.status(api.url) == 200
                with moved:
                    done[me] += 1
                    moved.notify()
            return True

        def wait_for_requests() -> None:
            """Each thread has ended two requests, so begun one, since the step."""
            with moved:
                enough = [count + 2 for count in done]
                assert moved.wait_for(lambda: all(map(operator.ge, done, enough)), 30)

        def rotate() -> None:
            try:
                for number in range(5):
                    rotation = Rotation(aws, api, f"key-{number}")
                    for step in (rotation.create_secret, rotation.set_secret, rotation.finish_secret):
                        step()
                        wait_for_requests()
            finally:
                over.set()

        assert together(WORKERS, work, meanwhile=rotate) == [True] * WORKERS
        assert http.api_calls() <= 1 + 5 * 6

    def test_a_storm_of_401s_makes_one_set_of_api_calls(
        self, http: Client, api: Api, aws: SecretsManager, together: Together
    ) -> None:
        http.get(api.url)
        rotation = Rotation(aws, api, "second-key")
        rotation.create_secret()
        rotation.set_secret()
        assert together(50, lambda: http.status(api.url)) == [200] * 50
        assert http.api_calls() == 3


@pytest.mark.parametrize("library", ["httpx-async"])
def test_a_thousand_tasks_refused_at_once_all_recover_with_one_set_of_api_calls(
    api: Api, aws: SecretsManager, http: Client
) -> None:
    http.get(api.url)
    rotation = Rotation(aws, api, "second-key")
    rotation.create_secret()
    rotation.set_secret()

    async def storm() -> list[int]:
        # For each request a pool looks at all its connections and all that wait: a large one takes far longer.
        options: dict[str, Any] = {"trust_env": False, "verify": TRUSTING_NOBODY, "timeout": 30}
        clients = [httpx.AsyncClient(limits=httpx.Limits(max_connections=2), **options) for _ in range(100)]
        responses = await asyncio.gather(*(client.get(api.url, auth=http.auth) for client in clients * 10))
        await asyncio.gather(*(client.aclose() for client in clients))
        return [response.status_code for response in responses]

    assert http.loop.run(storm()) == [200] * 1000
    assert api.seen.count(f"Bearer {FIRST}") == 1 + 1000
    assert http.api_calls() == 3


class TestAKeyThatIsWrong:
    def test_its_401_comes_back_after_one_request_and_api_calls_stay_constant(
        self, http: Client, api: Api, together: Together
    ) -> None:
        api.accepted = set()
        responses = [http.get(api.url) for _ in range(10)]
        assert [response.status_code for response in responses] == [401] * 10
        assert len(api.seen) == 10
        assert together(20, lambda: http.status(api.url)) == [401] * 20
        assert len(api.seen) == 30
        assert http.api_calls() == 3

    def test_accepted_again_it_is_doubted_no_more_and_the_next_rotation_recovers_at_once(
        self, http: Client, api: Api, aws: SecretsManager
    ) -> None:
        """The cooldown of a refused version ends with its first success."""
        working = api.accepted
        api.accepted = set()
        assert http.status(api.url) == 401
        api.accepted = working
        assert http.status(api.url) == 200
        rotation = Rotation(aws, api, "second-key")
        rotation.create_secret()
        rotation.set_secret()
        assert http.status(api.url) == 200

    @pytest.mark.parametrize("busy", [429, 500, 503])
    def test_what_a_busy_server_answers_in_between_is_no_reason_to_ask_aws_again(
        self, http: Client, api: Api, busy: int
    ) -> None:
        api.accepted, api.busy = set(), busy
        assert [http.status(api.url) for _ in range(20)] == [401, busy] * 10
        assert http.api_calls() == 3

    def test_a_403_is_not_about_the_key(self, http: Client, api: Api) -> None:
        api.accepted = set()
        assert http.status(f"{api.url}/forbidden") == 403
        assert (len(api.seen), http.api_calls()) == (1, 1)

    @pytest.mark.parametrize("setup", [{}, {"header": "X-Api-Key"}])
    def test_a_403_is_about_the_key_where_auth_result_says_so(
        self, make_http: Callable[..., Client], api: Api, aws: SecretsManager, setup: dict[str, str]
    ) -> None:
        http = make_http(auth_result=lambda response: response.status_code == 403, **setup)
        api.header = setup.get("header", "Authorization")
        rotation = Rotation(aws, api, "second-key")
        rotation.create_secret()
        api.accepted = {"second-key", "Bearer second-key"}
        assert http.status(f"{api.url}/forbidden") == 200
        api.accepted = set()
        assert http.status(f"{api.url}/forbidden") == 403
        assert http.status(api.url) == 401
        assert http.cache.metrics.snapshot().auth_recoveries == 1

    def test_without_leave_to_read_awspending_the_request_waits_for_awscurrent(
        self, http: Client, api: Api, aws: SecretsManager, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        http.get(api.url)
        rotation = Rotation(aws, api, "second-key")
        rotation.create_secret()
        rotation.set_secret()
        aws.inject(latency(0))  # AWSCURRENT, as it is
        aws.inject(deny())  # AWSPENDING
        monkeypatch.setattr(clock, "slept", finishing := Finishing(rotation))
        assert http.status(api.url) == 200
        assert 0 < sum(finishing) < 60


class TestWhatIsSent:
    @pytest.mark.parametrize(
        ("options", "header", "said"),
        [
            ({}, "Authorization", f"Bearer {FIRST}"),
            ({"header": "authorization"}, "Authorization", f"Bearer {FIRST}"),
            ({"header": "X-Api-Key"}, "X-Api-Key", FIRST),
            ({"value": lambda secret: f"Token {secret['key']}"}, "Authorization", f"Token {FIRST}"),
            ({"value": None}, "Authorization", 'Bearer {"key": "first-key"}'),
        ],
    )
    def test_the_header_says(
        self, make_http: Callable[..., Client], api: Api, options: dict[str, Any], header: str, said: str
    ) -> None:
        api.header, api.accepted = header, {said}
        assert make_http(**options).status(api.url) == 200

    def test_a_key_that_the_secret_lacks_is_named_with_those_it_has(
        self, make_http: Callable[..., Client], api: Api
    ) -> None:
        with pytest.raises(SecretValueError, match=r"no key 'token'; the secret has .*key"):
            make_http(value="token").get(api.url)
        assert api.seen == []

    @pytest.mark.parametrize("ending", ["\n", " ", "\r\nX-Other: 1", "é", "\0"])
    def test_a_value_that_no_header_can_hold_is_refused_and_not_shown(
        self, http: Client, api: Api, aws: SecretsManager, canary: str, ending: str
    ) -> None:
        aws.put(NAME, {"key": canary + ending})
        with pytest.raises(SecretValueError, match="no line of printable ASCII") as caught:
            http.get(api.url)
        assert canary not in str(caught.value)
        assert api.seen == []

    @pytest.mark.parametrize("value", ["", 7])
    def test_an_empty_value_and_one_that_is_no_text_are_refused(
        self, http: Client, api: Api, aws: SecretsManager, value: object
    ) -> None:
        aws.put(NAME, {"key": value})
        with pytest.raises(SecretValueError, match="no line"):
            http.get(api.url)

    def test_a_secret_that_is_not_there_is_the_caches_error(self, http: Client, api: Api, aws: SecretsManager) -> None:
        aws.reset()
        with pytest.raises(SecretNotFound):
            http.get(api.url)

    def test_the_refused_answer_is_in_the_history_and_its_connection_is_used_again(
        self, http: Client, api: Api, aws: SecretsManager
    ) -> None:
        http.get(api.url)
        Rotation(aws, api, "second-key").run()
        response = http.get(api.url)
        assert [answer.status_code for answer in response.history] == [401]
        assert len(api.ports) == 1


class TestBodies:
    def test_bytes_are_sent_again(self, http: Client, api: Api, aws: SecretsManager) -> None:
        http.get(api.url)
        Rotation(aws, api, "second-key").run()
        assert http.post(api.url, b"body").status_code == 200
        assert api.bodies[1:] == [b"body", b"body"]

    def test_a_stream_is_not_sent_again_and_the_next_request_has_the_other_version(
        self, http: Client, api: Api, aws: SecretsManager
    ) -> None:
        http.get(api.url)
        Rotation(aws, api, "second-key").run()
        assert http.post(api.url, stream(http.library)).status_code == 401
        assert api.bodies[1:] == [b"ab"]
        assert http.post(api.url, stream(http.library)).status_code == 200
        assert http.cache.metrics.snapshot().auth_failures == 1

    def test_the_401_of_a_stream_comes_back_at_once_where_others_wait_for_a_rotation(
        self, http: Client, api: Api, aws: SecretsManager, clock: Clock
    ) -> None:
        http.get(api.url)
        api.accepted = set()
        aws.inject(latency(0))  # AWSCURRENT, as it is
        aws.inject(deny())  # AWSPENDING
        assert http.post(api.url, stream(http.library)).status_code == 401
        assert (clock.slept, http.api_calls()) == ([], 1)
        assert http.post(api.url, b"body").status_code == 401
        assert sum(clock.slept) >= 59


def stream(library: str) -> Any:
    """Return a body that can be read once."""

    async def parts() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    return parts() if library == "httpx-async" else iter([b"a", b"b"])


class TestRedirects:
    def test_to_the_same_host_keeps_the_key_and_recovers(self, http: Client, api: Api, aws: SecretsManager) -> None:
        http.get(api.url)
        rotation = Rotation(aws, api, "second-key")
        rotation.create_secret()
        rotation.set_secret()
        assert http.status(f"{api.url}/?to=/there") == 200
        assert http.status(f"{api.url}/?to=/there") == 200
        assert http.cache.metrics.snapshot().auth_failures == 1

    def test_to_another_host_takes_it_off_and_its_401_is_not_about_the_key(self, http: Client, api: Api) -> None:
        with serve(Api()) as other:
            assert http.status(f"{api.url}/?to={other.url}/") == 401
        assert other.seen == [None]
        assert http.api_calls() == 1

    @pytest.mark.parametrize("library", ["requests"])
    def test_takes_a_header_of_ones_own_off_too(self, make_http: Callable[..., Client], api: Api) -> None:
        with serve(Api(header="X-Api-Key")) as other:
            assert make_http(header="X-Api-Key").status(f"{api.url}/?to={other.url}/") == 401
        assert other.seen == [None]


class TestRequests:
    @pytest.fixture
    def library(self) -> str:
        return "requests"

    def test_a_file_is_sent_again_from_where_it_was(self, http: Client, api: Api, aws: SecretsManager) -> None:
        http.get(api.url)
        Rotation(aws, api, "second-key").run()
        body = io.BytesIO(b"head and body")
        body.seek(9)
        assert http.post(api.url, body).status_code == 200
        assert api.bodies[1:] == [b"body", b"body"]

    def test_a_prepared_request_that_is_sent_once_more_recovers(
        self, http: Client, api: Api, aws: SecretsManager
    ) -> None:
        prepared = http.client.prepare_request(requests.Request("GET", api.url, auth=http.auth))
        assert http.client.send(prepared).status_code == 200
        Rotation(aws, api, "second-key").run()
        assert http.client.send(prepared).status_code == 200
        assert http.client.send(prepared).status_code == 200
        assert (api.refused, http.api_calls()) == (2, 2)

    def test_an_answer_that_is_streamed_recovers(self, http: Client, api: Api, aws: SecretsManager) -> None:
        http.get(api.url)
        Rotation(aws, api, "second-key").run()
        with http.client.get(api.url, auth=http.auth, stream=True) as response:
            assert (response.status_code, response.content) == (200, b"ok")

    def test_a_connection_that_breaks_shows_no_key_in_a_traceback_of_ours(
        self, http: Client, api: Api, aws: SecretsManager, canary: str
    ) -> None:
        http.get(api.url)
        Rotation(aws, api, canary).run()
        with pytest.raises(requests.ConnectionError) as caught:
            http.get(f"{api.url}/hang-up")
        report = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        ours = [frame.locals for frame in report.stack if "/smcache/" in frame.filename]
        assert ours
        assert canary not in repr(ours)


class TestTheWrongKindOfCache:
    def test_httpx_client_refuses_an_asyncio_cache(self, api: Api, make_http: Callable[..., Client]) -> None:
        http = make_http()
        if http.library == "httpx-async":
            with httpx.Client() as client, pytest.raises(InvalidArgument, match="needs a SecretCache"):
                client.get(api.url, auth=http.auth)
        elif http.library == "httpx":

            async def get() -> None:
                async with httpx.AsyncClient() as client:
                    await client.get(api.url, auth=http.auth)

            with pytest.raises(InvalidArgument, match="needs an AsyncSecretCache"):
                asyncio.run(get())

    @pytest.mark.parametrize("secret_id", ["", " ", None])
    def test_a_name_that_no_secret_has_is_refused_when_it_is_made(
        self, http: Client, secret_id: Any, library: str
    ) -> None:
        with pytest.raises(InvalidArgument):
            type(http.auth)(http.cache, secret_id)
