"""What the process, the clock and the network do to a cache: forks, stops, restores, and servers that never end."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import snapshot_restore_py
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.config import Config

from smcache import AccessDenied, AsyncSecretCache, CacheConfig, Secret, SecretCache, Unavailable, _lifecycle
from smcache._clock import default_clock, thawing_clock
from smcache._core import Core, Entry, Flight, Key, Lead
from smcache._recovery import Recovery
from smcache.metrics import Metrics
from smcache.sources import Answer
from smcache.testing import server_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import MakeCache, WaitUntilIdle

    from smcache.testing import SecretsManager

NAME = "prod/db"
YEARS = 10 * 365 * 86_400.0

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
linux = pytest.mark.skipif(sys.platform != "linux", reason="sockets are looked up in /proc")


def run_python(
    code: str, aws: SecretsManager, meanwhile: Callable[[subprocess.Popen[str]], object] = lambda _: None
) -> str:
    """Run a program of its own, since a fork of the test process would take pytest along; return what it prints.

    The program's ``input()`` returns when ``meanwhile``, which is called with the process, has returned.
    """
    with subprocess.Popen(  # noqa: S603 - our own code
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(code)],
        env={**os.environ, **aws.environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            meanwhile(process)
            printed, complaints = process.communicate("\n", timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, complaints
    return printed


@forks
class TestFork:
    """Real processes, forked while threads hold locks and requests are under way."""

    def test_a_child_starts_with_the_parents_values_and_a_client_of_its_own(self, aws: SecretsManager) -> None:
        aws.create(NAME, "v1")
        printed = run_python(
            """
            import os
            from smcache import SecretCache
            cache = SecretCache()
            mine = cache.get("prod/db")
            client = cache._sources[0]._client
            if os.fork() == 0:
                assert cache.get("prod/db") is mine
                assert cache.refresh("prod/db") is mine
                assert cache._sources[0]._client is not client
                print("child", flush=True)
                os._exit(0)
            assert os.wait()[1] == 0
            assert cache.refresh("prod/db") is mine
            assert cache._sources[0]._client is client
            print("parent")
            """,
            aws,
        )
        assert printed.split() == ["child", "parent"]
        assert aws.requests == {"GetSecretValue": 3}

    def test_a_child_keeps_a_client_or_source_that_was_given(self, aws: SecretsManager) -> None:
        """The cache cannot make another: it is for the user to give none where processes are forked."""
        aws.create(NAME, "v1")
        printed = run_python(
            """
            import os, boto3
            from smcache import Secret, SecretCache
            from smcache.sources import Answer
            class Mine:
                def fetch(self, *_): return Answer(Secret("mine", name="prod/db", version_id="1"))
                def close(self): ...
            client = boto3.client("secretsmanager")
            caches = SecretCache(client), SecretCache(source=Mine())
            if os.fork() == 0:
                kept = caches[0]._sources[0]._client is client
                print([cache.get("prod/db").string for cache in caches], kept, flush=True)
                os._exit(0)
            assert os.wait()[1] == 0
            """,
            aws,
        )
        assert printed.strip() == "['v1', 'mine'] True"

    def test_children_forked_in_the_middle_of_reads_and_requests_do_not_hang(self, aws: SecretsManager) -> None:
        for n in range(8):
            aws.create(f"s{n}", "v")
        printed = run_python(
            """
            import os, threading
            from smcache import SecretCache
            cache = SecretCache()
            cache.get("s0")  # no process forks well in the middle of an import, and the first read imports botocore
            going = True
            def read(n):
                while going:
                    cache.invalidate(f"s{n}")
                    assert cache.get(f"s{n}").string == "v"
            threads = [threading.Thread(target=read, args=(n,)) for n in range(8)]
            for thread in threads: thread.start()
            children = []
            for n in range(20):
                child = os.fork()
                if child == 0:
                    # Half of them ask for what a thread of the parent is asking for at this moment.
                    for name in {f"s{n % 8}", "s0"}:
                        assert cache.get(name).string == "v"
                    os._exit(0)
                children.append(child)
            codes = [os.waitpid(child, 0)[1] for child in children]
            going = False
            for thread in threads: thread.join()
            print(codes)
            """,
            aws,
        )
        assert printed.strip() == str([0] * 20)

    def test_a_child_of_a_loop_that_runs_has_loops_and_requests_of_its_own(self, aws: SecretsManager) -> None:
        """The parent's loop runs in a thread, and waits for AWS when the process forks."""
        aws.create(NAME, "v1")
        with aws.hold() as hold:

            def child_asks_too(process: subprocess.Popen[str]) -> None:
                hold.wait_for(1)
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
                hold.wait_for(2)
                hold.release()

            printed = run_python(
                """
                import asyncio, os, threading
                from smcache import AsyncSecretCache
                cache = AsyncSecretCache()
                loop = asyncio.new_event_loop()
                threading.Thread(target=loop.run_forever, daemon=True).start()
                reading = asyncio.run_coroutine_threadsafe(cache.get("prod/db"), loop)
                input()
                if os.fork() == 0:
                    print("child", asyncio.run(cache.get("prod/db")).string, flush=True)
                    os._exit(0)
                assert os.wait()[1] == 0
                print("parent", reading.result(30).string)
                """,
                aws,
                child_asks_too,
            )
        assert printed.splitlines() == ["child v1", "parent v1"]
        assert aws.requests == {"GetSecretValue": 2}

    @linux
    @pytest.mark.parametrize(
        ("kind", "aio"), [("SecretCache", True), ("AsyncSecretCache", True), ("AsyncSecretCache", False)]
    )
    def test_parent_and_child_talk_to_aws_through_different_sockets(
        self, aws: SecretsManager, kind: str, *, aio: bool
    ) -> None:
        """And the parent's stay connected, whatever the child throws away."""
        aws.create(NAME, "v1")
        printed = run_python(
            f"""
            import asyncio, gc, os, sys, threading
            from smcache import {kind}
            from smcache.sources import aioboto
            if not {aio}:
                aioboto.find_spec = lambda name: None  # as without the extra
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, daemon=True).start()
            def in_thread(reading): return asyncio.run_coroutine_threadsafe(reading, loop).result(30)
            def here(reading): return asyncio.run(reading)
            if "{kind}" == "SecretCache":
                def in_thread(secret): return secret
                here = in_thread
            connected = []
            def note(event, args):
                if event == "socket.connect" and args[0].family != 1:
                    connected.append(os.readlink(f"/proc/self/fd/{{args[0].fileno()}}"))
            sys.addaudithook(note)
            cache = {kind}()
            in_thread(cache.refresh("prod/db"))
            parents = list(connected)
            child = os.fork()
            if child == 0:
                here(cache.refresh("prod/db"))
                gc.collect()
                childs = connected[len(parents):]
                assert childs and not set(parents) & set(childs), connected
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            in_thread(cache.refresh("prod/db"))
            assert connected == parents and len(parents) == 1, connected
            assert cache.metrics.snapshot().api_errors == 0
            print("done", flush=True)
            os._exit(0)  # with a loop in a thread
            """,
            aws,
        )
        assert printed == "done\n"
        assert aws.requests == {"GetSecretValue": 3}

    def test_a_second_thread_forks_when_the_first_has_let_go_of_the_caches(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A fake cache and no fork: only so does the second begin at the worst moment."""
        steps: list[str] = []

        def fork() -> None:
            _lifecycle._before_fork()
            _lifecycle._after_fork_in_parent()

        second = threading.Thread(target=fork)

        class Held:
            def _hold(self) -> None:
                steps.append("hold")

            def _let_go(self) -> None:
                if second.ident is None:
                    second.start()
                    second.join(0.1)  # it cannot end before this has
                steps.append("let go")

        cache: Any = Held()
        monkeypatch.setattr(_lifecycle, "_caches", {cache})
        fork()
        second.join(30)
        assert steps == ["hold", "let go"] * 2


@pytest.mark.parametrize("kind", [SecretCache, AsyncSecretCache])
def test_a_process_that_is_spawned_is_told_to_make_a_cache_of_its_own(kind: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match="make one in each process"):
        multiprocessing.get_context("spawn").Process(target=print, args=(kind(),)).start()


def test_a_secret_is_not_sent_to_a_process_that_is_spawned() -> None:
    secret = Secret("value", name=NAME, version_id="1")
    with pytest.raises(TypeError, match="Secret"):
        multiprocessing.get_context("spawn").Process(target=print, args=(secret,)).start()


def test_what_happens_last_is_told_before_the_process_ends() -> None:
    """A job of a second, say, whose only rotation callback or span it is."""
    script = """
        import time
        from smcache import Secret, SecretCache
        from smcache.sources import Answer

        class Source:
            def fetch(self, name, stage, version_id):
                return Answer(Secret("value", name=name, version_id="v"))
            def close(self): ...

        def listen(event):
            time.sleep(0.2)
            print(event.secret_id, flush=True)

        with SecretCache(source=Source()) as cache:
            cache.subscribe(listen)
            for name in "abc":
                cache.get(name)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)  # noqa: S603 - our own code
    assert done.stdout.split() == ["a", "b", "c"]


@forks
def test_a_child_forked_while_a_library_is_being_imported_can_use_it() -> None:
    """What retries a fetch is imported by the first one that fails, in a thread that the child does not have."""
    script = """
        import importlib.abc, os, sys, threading
        from smcache import Secret, SecretCache, Unavailable
        from smcache.sources import Answer

        importing = threading.Event()

        class Slow(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name == "tenacity.retry":  # a part of it
                    importing.set()
                    threading.Event().wait(0.5)

        class Source:
            calls = 0
            def fetch(self, name, stage, version_id):
                self.calls += 1
                if self.calls % 2:
                    raise Unavailable("once")
                return Answer(Secret("value", name=name, version_id="v"))
            def close(self): ...

        sys.meta_path.insert(0, Slow())
        cache = SecretCache(source=Source())
        reader = threading.Thread(target=cache.get, args=("a",))
        reader.start()
        assert importing.wait(30)
        if os.fork() == 0:
            cache._sources[0].calls = 0
            print(cache.get("b").string, flush=True)
            os._exit(0)
        reader.join()
        print(os.wait()[1])
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)  # noqa: S603 - our own code
    assert done.stdout.split() == ["value", "0"], done.stderr


GUNICORN_APP = """
import os
from smcache import CacheConfig, SecretCache

cache = SecretCache(config=CacheConfig(ttl=0.2))
first = cache.get("prod/db")

def application(environ, start_response):
    secret = cache.get("prod/db")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getppid()} {os.getpid()} {first.string} {secret.string}".encode()]
"""


@forks
class TestGunicorn:
    def test_preloaded_workers_have_the_secret_and_see_its_rotation(self, aws: SecretsManager, tmp_path: Path) -> None:
        aws.create(NAME, "v1")
        (tmp_path / "shop.py").write_text(GUNICORN_APP)
        with gunicorn(tmp_path, aws) as url:
            assert set(ask_both_workers(url, "v1").values()) == {"v1"}
            aws.put(NAME, "v2")
            assert set(ask_both_workers(url, "v2").values()) == {"v1"}, "they were forked from one that had read it"


@contextmanager
def gunicorn(directory: Path, aws: SecretsManager) -> Iterator[str]:
    """Run two workers of the app ``shop`` on a free port, in a process group of their own, which ends with them."""
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--bind", "127.0.0.1:0"]
    process = subprocess.Popen(  # noqa: S603 - our own code
        [*command, "shop:application"],
        cwd=directory,
        env={**os.environ, **aws.environ, "HOME": str(directory)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    printed: list[str] = []
    listening = (re.search(r"Listening at: (http://\S+)", line) for line in iter(process.stderr.readline, ""))
    try:
        match = next((found for found in listening if found), None)
        assert match is not None, "gunicorn did not start"
        drain = threading.Thread(target=printed.extend, args=(process.stderr,), daemon=True)
        drain.start()
        yield match[1]
        process.terminate()
        assert process.wait(30) == 0, "a worker hung: " + "".join(printed)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        process.stderr.close()


def ask_both_workers(url: str, wanted: str) -> dict[str, str]:
    """Ask from four clients at a time until both workers have answered with a value; return what each began with."""
    answers: dict[str, str] = {}

    def ask(_: int) -> None:
        with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310 - on the loopback device
            _, worker, first, now = response.read().decode().split()
        if now == wanted:
            answers[worker] = first

    end = time.monotonic() + 60
    with ThreadPoolExecutor(4) as clients:
        while len(answers) < 2:
            assert time.monotonic() < end, f"only {answers} have {wanted}"
            list(clients.map(ask, range(4)))
    return answers


class TestStopped:
    @pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="nothing is stopped here")
    @pytest.mark.parametrize("kind", ["SecretCache", "AsyncSecretCache"])
    def test_time_in_which_the_process_was_stopped_counts_towards_the_ttl(self, aws: SecretsManager, kind: str) -> None:
        aws.create(NAME, "v1")
        ttl = 1.0

        def stop_and_go(process: subprocess.Popen[str]) -> None:
            assert process.stdout is not None
            assert process.stdout.readline() == "v1\n"
            process.send_signal(signal.SIGSTOP)
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            aws.put(NAME, "v2")
            time.sleep(ttl + 0.01)
            process.send_signal(signal.SIGCONT)

        printed = run_python(
            f"""
            import asyncio
            from smcache import {kind}, CacheConfig
            cache = {kind}(config=CacheConfig(ttl={ttl}))
            async def read():
                secret = cache.get("prod/db")
                return secret if "{kind}" == "SecretCache" else await secret
            async def main():
                print((await read()).string, flush=True)
                input()
                print((await read()).string)
            asyncio.run(main())
            """,
            aws,
            stop_and_go,
        )
        assert printed == "v2\n"


class TestClocks:
    def test_time_goes_on_whatever_the_time_of_day_is_set_to(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock, began = default_clock(), time.time()
        readings = [clock()]
        for jump in (YEARS, -YEARS, 0.0):
            monkeypatch.setattr(time, "time", lambda jump=jump: began + jump)
            readings.append(clock())
        assert readings == sorted(readings)
        assert readings[-1] - readings[0] < YEARS / 2

    def test_after_a_freeze_the_time_of_day_tells_how_long_it_was(self) -> None:
        monotonic, time_of_day = [100.0], [1e9]
        clock = thawing_clock(lambda: monotonic[0], lambda: time_of_day[0])
        began = clock()
        time_of_day[0] += 3_600  # frozen: no clock of the machine goes on
        assert clock() - began == 3_600
        monotonic[0] += 5
        time_of_day[0] += 5
        assert clock() - began == 3_605

    def test_freezes_too_short_to_be_told_from_an_adjusted_clock_add_up(self) -> None:
        monotonic, time_of_day = [100.0], [1e9]
        clock = thawing_clock(lambda: monotonic[0], lambda: time_of_day[0])
        began = clock()
        for _ in range(1_000):
            monotonic[0] += 0.1
            time_of_day[0] += 0.5
            clock()
        assert clock() - began == pytest.approx(500, abs=1)

    def test_a_time_of_day_set_back_takes_no_time_back(self) -> None:
        monotonic, time_of_day = [100.0], [1e9]
        clock = thawing_clock(lambda: monotonic[0], lambda: time_of_day[0])
        began = clock()
        time_of_day[0] -= YEARS
        assert clock() == began
        monotonic[0] += 5
        assert clock() - began == 5, "nor does it stand still"

    @pytest.mark.parametrize("on_lambda", [False, True])
    def test_a_wall_clock_that_jumps_back_and_forth_by_years_does_no_harm(
        self, aws: SecretsManager, monkeypatch: pytest.MonkeyPatch, wait_until_idle: WaitUntilIdle, *, on_lambda: bool
    ) -> None:
        aws.create(NAME, "v1")
        if on_lambda:
            monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "f")
        wall, jump = time.time, 0.0
        monkeypatch.setattr(time, "time", lambda: wall() + jump)
        with SecretCache(aws.client()) as cache:
            secret = cache.get(NAME)
            for offset in (YEARS, -YEARS, 2 * YEARS, 0.0):
                jump = offset
                assert cache.get(NAME) is secret
            wait_until_idle(cache)
        # On Lambda a leap ahead may have been a freeze, so AWS is asked once for each.
        assert aws.requests == {"GetSecretValue": 3 if on_lambda else 1}


@pytest.mark.parametrize("kind", ["threads", "aiobotocore", "botocore in threads"])
class TestRestored:
    """Lambda SnapStart: the registry of hooks is AWS's own, and the test runs them as the runtime does."""

    def test_what_was_cached_in_the_snapshot_is_asked_for_again(
        self, aws: SecretsManager, make_cache: MakeCache
    ) -> None:
        aws.create(NAME, "v1")
        cache = make_cache()
        cache.get(NAME)
        aws.put(NAME, "v2")
        assert cache.get(NAME).string == "v1"
        restore()
        assert cache.get(NAME).string == "v2"
        cache.get(NAME)
        assert aws.requests == {"GetSecretValue": 2}

    def test_while_aws_is_unavailable_the_value_of_the_snapshot_is_served(
        self, aws: SecretsManager, make_cache: MakeCache
    ) -> None:
        aws.create(NAME, "v1")
        cache = make_cache()
        secret = cache.get(NAME)
        with aws.inject(server_error(), times=None):
            restore()
            assert cache.get(NAME) is secret
        assert cache.metrics.snapshot().stale_served == 1

    def test_a_process_is_registered_once(self, make_cache: MakeCache) -> None:
        make_cache()
        make_cache()
        hooks: list[Any] = [hook for hook, *_ in snapshot_restore_py.get_after_restore()]
        assert [hook.__module__.partition(".")[0] for hook in hooks].count("smcache") == 1


def restore() -> None:
    for hook, args, kwargs in snapshot_restore_py.get_after_restore():
        hook(*args, **kwargs)


class Trouble:
    """Something between us and AWS that never ends by itself. ``release`` ends it."""

    def __init__(self) -> None:
        self.endpoint_url = ""
        self.released = threading.Event()
        self.reached = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def listen(self, backlog: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", 0), backlog=backlog)
        self._sockets.append(listener)
        self.endpoint_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        return listener

    def serve(self, answer: Callable[[socket.socket], object]) -> None:
        listener = self.listen(128)

        def serve_one(connection: socket.socket) -> None:
            with connection:
                answer(connection)

        def accept() -> None:
            with suppress(OSError):  # it has been shut down
                while True:
                    connection, _ = listener.accept()
                    self.reached.set()
                    self._start(serve_one, connection)

        self._start(accept)

    def _start(self, run: Callable[..., object], *args: object) -> None:
        thread = threading.Thread(target=run, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def release(self) -> None:
        self.released.set()
        for open_socket in self._sockets:
            with suppress(OSError):  # not connected, or done before
                open_socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:  # the first accepts, and starts the others
            thread.join(30)
        for open_socket in self._sockets:
            open_socket.close()


def accepts_and_never_answers(trouble: Trouble, _: pytest.MonkeyPatch) -> None:
    trouble.serve(lambda _: trouble.released.wait())


def answers_a_byte_at_a_time(trouble: Trouble, _: pytest.MonkeyPatch) -> None:
    """No pause is as long as any timeout; the whole answer takes two days."""

    def drip(connection: socket.socket) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
        for position in range(1_000_000):
            if trouble.released.wait(0.2):
                return
            try:
                connection.send(head[position : position + 1] or b" ")
            except OSError:  # they have left
                return

    trouble.serve(drip)


def never_accepts(trouble: Trouble, _: pytest.MonkeyPatch) -> None:
    """Its queue is full of connections that nobody accepts, so that no further one is established."""
    port = trouble.listen(0).getsockname()[1]
    for _number in range(8):
        waiting = socket.socket()
        trouble._sockets.append(waiting)
        waiting.setblocking(False)  # noqa: FBT003 - its only parameter
        waiting.connect_ex(("127.0.0.1", port))


def has_no_address(trouble: Trouble, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake: a resolver that hangs for this one name."""
    resolve = socket.getaddrinfo
    trouble.endpoint_url = "http://secretsmanager.invalid:80"

    def hang(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host == "secretsmanager.invalid":
            trouble.reached.set()
            trouble.released.wait()
            raise socket.gaierror
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", hang)


@pytest.mark.parametrize("kind", ["threads", "aiobotocore", "botocore in threads"])
@pytest.mark.parametrize("begin", [accepts_and_never_answers, answers_a_byte_at_a_time, never_accepts, has_no_address])
class TestDeadlines:
    """The clients are the user's, and would wait for a minute or more."""

    FETCH_TIMEOUT = 0.3
    GENEROUS = 10.0  # for a machine that is busy; without a deadline all of these calls take a minute and more

    def test_no_call_outlasts_its_deadline_whatever_the_server_does(
        self,
        kind: str,
        begin: Callable[[Trouble, pytest.MonkeyPatch], None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        trouble = Trouble()
        begin(trouble, monkeypatch)
        try:
            run = self._from_threads if kind == "threads" else self._from_tasks
            outcomes = run(kind, trouble)
            if begin is not never_accepts:
                assert trouble.reached.wait(30)
        finally:
            trouble.release()
        assert len(outcomes) == 7
        assert all(seconds < self.GENEROUS for _, seconds in outcomes), outcomes
        *errors, prefetched = [outcome for outcome, _ in outcomes]
        assert all(isinstance(error, Unavailable) for error in [*errors, *prefetched.values()])
        assert prefetched.keys() == {NAME, "other"}

    def _from_threads(self, _: str, trouble: Trouble) -> list[tuple[Any, float]]:
        client = boto3.client("secretsmanager", config=Config(retries={"total_max_attempts": 1}), **login(trouble))
        with SecretCache(client, config=CacheConfig(fetch_timeout=self.FETCH_TIMEOUT)) as cache:

            def timed(call: Callable[[], Any]) -> tuple[Any, float]:
                began = time.monotonic()
                try:
                    outcome = call()
                except Unavailable as error:
                    outcome = error
                return outcome, time.monotonic() - began

            read = [lambda: cache.get(NAME)] * 4
            ask = [lambda: cache.refresh(NAME)] * 2
            with ThreadPoolExecutor(7) as callers:
                return list(callers.map(timed, [*read, *ask, lambda: cache.prefetch([NAME, "other"])]))

    def _from_tasks(self, kind: str, trouble: Trouble) -> list[tuple[Any, float]]:
        async def timed(call: Any) -> tuple[Any, float]:
            began = time.monotonic()
            try:
                outcome = await call
            except Unavailable as error:
                outcome = error
            return outcome, time.monotonic() - began

        async def ask(client: Any) -> list[tuple[Any, float]]:
            async with AsyncSecretCache(client, config=CacheConfig(fetch_timeout=self.FETCH_TIMEOUT)) as cache:
                calls: list[Any] = [*(cache.get(NAME) for _ in range(4)), *(cache.refresh(NAME) for _ in range(2))]
                calls.append(cache.prefetch([NAME, "other"]))
                return await asyncio.gather(*map(timed, calls))

        async def main() -> list[tuple[Any, float]]:
            try:
                if kind == "aiobotocore":
                    config = AioConfig(retries={"total_max_attempts": 1})
                    async with get_session().create_client("secretsmanager", config=config, **login(trouble)) as client:
                        return await ask(client)
                config = Config(retries={"total_max_attempts": 1})
                return await ask(boto3.client("secretsmanager", config=config, **login(trouble)))
            finally:
                trouble.release()  # the end of a loop waits for its own threads, in which aiohttp resolves names

        return asyncio.run(main())


def login(trouble: Trouble) -> dict[str, Any]:
    return {
        "endpoint_url": trouble.endpoint_url,
        "region_name": "us-east-1",
        "aws_access_key_id": "testing",
        "aws_secret_access_key": "testing",
    }


class FakeSource:
    """In memory: for more secrets than moto has patience for. It denies those whose ids begin with "denied"."""

    def fetch(self, secret_id: str, stage: str | None, version_id: str | None) -> Answer[Secret]:
        if secret_id.startswith("denied"):
            raise AccessDenied("no", secret_id=secret_id)
        return Answer(some_secret(secret_id))

    def close(self) -> None: ...


class FakeAsyncSource(FakeSource):
    async def fetch(self, *what: Any) -> Answer[Secret]:  # type: ignore[override]
        return super().fetch(*what)

    def leave_loop(self) -> None: ...

    async def close(self) -> None: ...  # type: ignore[override]


def some_secret(secret_id: str) -> Secret:
    return Secret("v", name=secret_id, arn=f"arn:{secret_id}", version_id="1")


class TestBounded:
    SIZE = 1_024

    @pytest.mark.parametrize("denied", [False, True])
    def test_100000_ids_through_the_core_leave_as_many_entries_as_were_asked_for(self, *, denied: bool) -> None:
        metrics = Metrics(threading.Lock())
        core: Core[object] = Core(CacheConfig(max_size=self.SIZE), metrics, lambda: 0.5, object, deque())
        for number in range(100_000):
            key = Key(f"id-{number}")
            step = core.read(key, 0.0)
            assert isinstance(step, Lead)
            if denied:
                core.failed(step.flight, AccessDenied("no"), 0.0)
            else:
                core.landed(step.flight, some_secret(key.secret_id), 0.0)
            core.settle(step.flight, 0.0, 10.0)
            core.events.clear()  # as a driver does, which hands them over
        del step
        self._has_nothing_left_over(core, metrics, self.SIZE * (not denied), self.SIZE * denied)

    def test_100000_rejected_credentials_leave_as_many_cases_as_were_asked_for(self) -> None:
        config = CacheConfig(max_size=self.SIZE)
        metrics = Metrics(threading.Lock())
        core: Core[object] = Core(config, metrics, lambda: 0.5, object, deque())
        recovery = Recovery(config, metrics, lambda: 0.5, core)
        for number in range(100_000):
            secret = some_secret(f"id-{number}")
            call, _ = recovery.begin(secret.name, secret, 0.0)
            recovery.rejected(call, secret, "rejected", 0.0)
            core.events.clear()
        assert len(recovery._cases) == self.SIZE

    def test_3000_ids_of_which_half_are_denied_leave_no_thread_behind(self, wait_until_idle: WaitUntilIdle) -> None:
        cache = SecretCache(source=FakeSource(), config=CacheConfig(max_size=self.SIZE))
        wait_until_idle(cache)
        threads = threading.active_count()
        for number in range(1_500):
            cache.get(f"id-{number}")
            with pytest.raises(AccessDenied):
                cache.get(f"denied-{number}")
        wait_until_idle(cache)
        assert threading.active_count() == threads
        assert not is_held(cache._lock)
        assert not cache._listeners._waiting
        self._has_nothing_left_over(cache._core, cache.metrics, self.SIZE, self.SIZE)
        cache.close()
        self._has_nothing_left_over(cache._core, cache.metrics, 0, 0)

    def test_3000_ids_of_which_half_are_denied_leave_no_task_behind(self) -> None:
        async def main() -> None:
            cache = AsyncSecretCache(source=FakeAsyncSource(), config=CacheConfig(max_size=self.SIZE))
            for number in range(1_500):
                await cache.get(f"id-{number}")
                with pytest.raises(AccessDenied):
                    await cache.get(f"denied-{number}")
            while tasks := cache._fetching | cache._telling:
                await asyncio.gather(*tasks)
                await asyncio.sleep(0)  # their last callbacks
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert not is_held(cache._snapshot_lock)
            assert not cache._listeners._waiting
            self._has_nothing_left_over(cache._core, cache.metrics, self.SIZE, self.SIZE)
            await cache.close()
            self._has_nothing_left_over(cache._core, cache.metrics, 0, 0)

        asyncio.run(main())

    @staticmethod
    def _has_nothing_left_over(core: Core[Any], metrics: Metrics, entries: int, refusals: int) -> None:
        assert len(core._table) == len(core.hot) == len(core._entries_by_arn) == entries
        assert len(core._refusals) == refusals
        assert not core._flights
        assert not core.events
        metrics.snapshot()
        assert not metrics._retired
        gc.collect()
        alive = [type(thing) for thing in gc.get_objects() if type(thing) in (Entry, Flight) and made_here(thing)]
        assert alive == [Entry] * entries


def is_held(lock: Any) -> bool:
    """Tell whether a reentrant lock has not been let go of; another thread has to look."""

    def look() -> bool:
        if not lock.acquire(blocking=False):
            return True
        lock.release()
        return False

    with ThreadPoolExecutor(1) as other:
        return other.submit(look).result()


def made_here(thing: Entry | Flight[Any]) -> bool:
    return thing.key.secret_id.startswith(("id-", "denied-"))
