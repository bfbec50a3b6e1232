"""The kit's MariaDB: real logins at a real server."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pymysql
import pytest

from smcache.testing import mariadb_server as module
from smcache.testing._process import account_of_server, free_port
from smcache.testing.mariadb_server import INSTALL, is_installed, mariadb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from smcache.testing.mariadb_server import MariaDB

pytestmark = pytest.mark.servers

PASSWORD = "it's a \\ p@ss/word: %s"


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[MariaDB]:
    if not is_installed() and os.environ.get("SMCACHE_DEMAND_MARIADB") != "1":
        pytest.skip(f"no MariaDB here; to install it: {INSTALL}")
    with mariadb() as server:
        server.create_user("app", PASSWORD)
        yield server


def login(server: MariaDB, user: str, password: str) -> pymysql.Connection[pymysql.cursors.Cursor]:
    return pymysql.connect(
        host=server.host, port=server.port, user=user, password=password, database=server.dbname, ssl_disabled=True
    )


def test_the_right_password_logs_in_and_a_wrong_one_is_rejected(server: MariaDB) -> None:
    login(server, "app", PASSWORD).close()
    with pytest.raises(pymysql.OperationalError, match="1045"):
        login(server, "app", PASSWORD.upper())


@pytest.mark.parametrize("user", ["root", "app", "", "mysql", "nobody", "mariadb.sys"])
@pytest.mark.parametrize("password", ["", "guess"])
def test_nobody_is_trusted(server: MariaDB, user: str, password: str) -> None:
    with pytest.raises(pymysql.OperationalError, match=r"1045|4151|1698"):
        login(server, user or "''", password)


def test_a_secret_is_what_rds_stores_and_logs_in(server: MariaDB) -> None:
    secret = server.secret("app", PASSWORD)
    assert sorted(secret) == ["dbname", "engine", "host", "password", "port", "username"]
    assert secret["engine"] == "mariadb"
    pymysql.connect(
        host=secret["host"],
        port=secret["port"],
        user=secret["username"],
        password=secret["password"],
        database=secret["dbname"],
    ).close()


def test_the_password_of_the_administrator_is_in_no_command_line_file_or_repr(server: MariaDB) -> None:
    assert server._process.directory is not None
    password = server._password.encode()
    files = [path for path in server._process.directory.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if password in path.read_bytes()]
    commands = subprocess.run(["ps", "-A", "-ww", "-o", "args"], capture_output=True, check=True).stdout  # noqa: S607 - found on PATH
    assert f"--port={server.port}".encode() in commands
    assert password not in commands
    assert server._password not in repr(server)


def test_it_is_gone_when_the_block_ends_also_by_an_error_and_stopping_twice_is_no_error(server: MariaDB) -> None:
    with pytest.raises(ZeroDivisionError), mariadb() as other:  # noqa: PT012 - the block is the point
        assert other.port != server.port
        directory = other._process.directory
        other.stop()
        raise ZeroDivisionError
    assert directory is not None
    assert not directory.exists()
    assert not accepts(other.port)
    server.admin().close()  # the first one still runs


def test_no_server_outlives_a_killed_process() -> None:
    script = (
        "import signal\n"
        "from smcache.testing.mariadb_server import mariadb\n"
        "with mariadb() as server:\n"
        "    print(server.port, server._process.directory, flush=True)\n"
        "    signal.pause()\n"
    )
    with contextlib.ExitStack() as stack:
        parents = []
        for _ in range(2):
            parent = stack.enter_context(
                subprocess.Popen(  # noqa: S603 - our own command
                    [sys.executable, "-c", script],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    start_new_session=True,
                )
            )
            stack.callback(parent.kill)  # leaving waits for its end
            parents.append(parent)
        for parent, number in zip(parents, (signal.SIGTERM, signal.SIGKILL), strict=True):
            assert parent.stdout is not None
            port, directory = parent.stdout.readline().split()
            assert accepts(int(port))
            os.killpg(parent.pid, number)
            assert parent.wait(30) != 0
            until(lambda directory=directory: not Path(directory).exists())  # type: ignore[misc] # it infers no lambda
            assert not accepts(int(port))


def test_a_server_that_starts_leaves_the_temporary_tables_of_others_alone() -> None:
    """Servers that start at the same time would fail otherwise, where they share /tmp."""
    theirs = Path("/tmp") / f"#sql-temptable-smcache-{os.getpid()}.frm"  # noqa: S108 - a name as MariaDB's
    try:
        theirs.touch()
        if account := account_of_server():
            os.chown(theirs, account["user"], account["group"])
        with mariadb():
            assert theirs.exists()
    finally:
        theirs.unlink(missing_ok=True)


def test_a_server_that_does_not_start_is_an_error_with_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.MariaDB, "host", "256.0.0.1")
    with pytest.raises(RuntimeError, match="MariaDB did not start"), mariadb():
        pass


def test_an_address_that_was_taken_meanwhile_is_replaced_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [taken.getsockname()[1]]
        monkeypatch.setattr(module, "free_port", lambda: ports.pop() if ports else free_port())
        with mariadb() as server:
            assert server.port != taken.getsockname()[1]
    assert ports == []


def test_where_it_is_not_installed_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SEARCHED", "/nowhere")
    assert not is_installed()
    with pytest.raises(RuntimeError, match=INSTALL), mariadb():
        pass


def test_without_pymysql_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from smcache.errors import MissingExtra  # noqa: PLC0415

    monkeypatch.setitem(sys.modules, "pymysql", None)
    with pytest.raises(MissingExtra, match=r"smcache\[testing\]"), mariadb():
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
