"""A MariaDB to throw away, which wants a password from everybody."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smcache.testing._process import LOG_TAIL, GuardedProcess, account_of_server, free_port, random_password

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pymysql

__all__ = ["INSTALL", "MariaDB", "is_installed", "mariadb"]

#: What to run where there is no server: no package on PyPI carries one.
INSTALL = "apt-get install -y mariadb-server"

_SEARCHED = f"{os.defpath}:/usr/sbin:/usr/local/sbin:/usr/local/bin"  # Debian keeps servers in /usr/sbin
_ENVIRONMENT = {"PATH": _SEARCHED, "TZ": "UTC"}  # no MYSQL_* variable of the caller
_MAX_CONNECTIONS = 1100  # 1,000 tasks and some more


@contextlib.contextmanager
def mariadb() -> Iterator[MariaDB]:
    """Run the system's MariaDB on a free port of 127.0.0.1 for the length of a `with` block.

    Every login, the administrator's too, takes a password (mysql_native_password). Its data are gone when the block
    ends, however it ends, and when the process is killed. It runs `mariadbd` and `mariadb-install-db` as Debian's
    package mariadb-server installs them. Root may call this: the server runs as `nobody`.

    Raises:
        MissingExtra: PyMySQL is not installed.
        RuntimeError: there is no MariaDB, and the text says how to install it; or it did not start, and the text
            ends with its log.
    """
    server = MariaDB()
    try:
        yield server
    finally:
        server.stop()


class MariaDB:
    """A running server, made by `mariadb`.

    Attributes:
        host: "127.0.0.1".
        port: a free one.
        dbname: the database, "app".
        superuser: the name of the administrator, "root".
    """

    host = "127.0.0.1"
    dbname = "app"
    superuser = "root"

    def __init__(self) -> None:
        try:
            import pymysql  # noqa: PLC0415 - in an extra
        except ImportError as error:
            from smcache.errors import MissingExtra  # noqa: PLC0415 - needed in this one case

            raise MissingExtra("the MariaDB test server", "testing") from error
        self._connect = pymysql.connect
        self._server = _find("mariadbd")
        self._installer = _find("mariadb-install-db")
        self._process = GuardedProcess("MariaDB", "KILL")
        self._password = random_password()
        self.port = 0
        self._process.start(self._start)
        try:
            with self.admin() as admin, admin.cursor() as cursor:
                cursor.execute(f"CREATE DATABASE {self.dbname}")
        except BaseException:
            self.stop()
            raise

    def admin(self) -> pymysql.Connection[Any]:
        """A new connection as the administrator, in autocommit mode. The caller closes it."""
        return self._connect(
            host=self.host,
            port=self.port,
            user=self.superuser,
            password=self._password,
            autocommit=True,
            connect_timeout=30,
            read_timeout=60,  # connect_timeout does not cover the handshake
            ssl_disabled=True,  # else PyMySQL reads all of the system's certificates, 20 ms of CPU
        )

    def create_user(self, name: str, password: str) -> None:
        """Create a user, from any host, who may do anything in the database.

        Raises:
            pymysql.Error: the server refused, e.g. because the user exists.
        """
        with self.admin() as admin, admin.cursor() as cursor:
            cursor.execute("CREATE USER %s IDENTIFIED BY %s", (name, password))
            cursor.execute(f"GRANT ALL ON {self.dbname}.* TO %s", (name,))

    def secret(self, username: str, password: str) -> dict[str, Any]:
        """What the secret of an RDS database holds, for this server.

        Its keys are those of
        https://docs.aws.amazon.com/secretsmanager/latest/userguide/reference_secret_json_structure.html
        """
        return {
            "engine": "mariadb",
            "host": self.host,
            "port": self.port,
            "username": username,
            "password": password,
            "dbname": self.dbname,
        }

    def stop(self) -> None:
        """Stop at once and remove the data. A second call does nothing."""
        self._process.stop()

    def _start(self) -> bool:
        """Start on a port that was free a moment ago; False if it no longer is."""
        account = account_of_server()
        directory = self._process.directory = Path(tempfile.mkdtemp(prefix="smcache-mariadb-"))
        if account:
            os.chown(directory, account["user"], account["group"])
        self._install(directory, account)
        self.port = free_port()
        command = [
            *(self._server, "--no-defaults"),  # nothing of the system's server: not its data, socket or options
            *(f"--datadir={directory}/data", f"--tmpdir={directory}"),
            *(f"--bind-address={self.host}", f"--port={self.port}", f"--socket={directory}/socket"),
            *(f"--pid-file={directory}/pid", "--skip-name-resolve"),
            *(f"--max-connections={_MAX_CONNECTIONS}", f"--back-log={_MAX_CONNECTIONS}"),
            *("--max-connect-errors=1000000", "--innodb-flush-log-at-trx-commit=0"),
            *("--innodb-buffer-pool-size=16M", "--innodb-log-file-size=4M", "--aria-log-file-size=8M"),
            *("--performance-schema=OFF", f"--init-file={directory}/first.sql"),
        ]
        # Its own log: on the port, somebody else may answer.
        ready = self._process.run(
            command, is_ready=lambda log: "ready for connections" in log, env=_ENVIRONMENT, account=account
        )
        (directory / "first.sql").unlink(missing_ok=True)  # with its directory, if the server has ended
        return ready

    def _install(self, directory: Path, account: Mapping[str, Any]) -> None:
        done = subprocess.run(  # noqa: S603 - our own command
            [
                # A tmpdir of its own: a MariaDB that starts removes the temporary tables of others in a shared one.
                *(self._installer, "--no-defaults", f"--datadir={directory}/data", f"--tmpdir={directory}"),
                *("--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"),
                "--innodb-log-file-size=4M",
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            start_new_session=True,  # a Ctrl-C is ours to handle
            cwd=directory,
            env=_ENVIRONMENT,
            check=False,
            **account,
        )
        if done.returncode != 0:
            output = (done.stdout + done.stderr).decode(errors="replace")
            raise RuntimeError(f"mariadb-install-db failed: {output[-LOG_TAIL:]}")
        # Run before the first connection is let in; removed when the server is ready.
        first = directory / "first.sql"
        first.touch(mode=0o600)
        ours = "User = 'root' AND Host = '127.0.0.1'"
        first.write_text(
            f"DELETE FROM mysql.global_priv WHERE User <> 'mariadb.sys' AND NOT ({ours});\n"  # noqa: S608 - constants
            "FLUSH PRIVILEGES;\n"
            f"ALTER USER root@'127.0.0.1' IDENTIFIED BY '{self._password}';\n"
        )
        if account:
            os.chown(first, account["user"], account["group"])


def is_installed() -> bool:
    """Whether there is a MariaDB server for `mariadb` to run."""
    return shutil.which("mariadbd", path=_SEARCHED) is not None


def _find(program: str) -> str:
    found = shutil.which(program, path=_SEARCHED)
    if found is None:
        raise RuntimeError(f"there is no {program} here; to install MariaDB: {INSTALL}")
    return found
