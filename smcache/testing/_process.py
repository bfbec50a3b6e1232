"""What the servers of the kit share: how their processes are started, watched over and stopped."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

START_TIMEOUT = 30.0  # seconds
STOP_TIMEOUT = 10.0  # seconds; an immediate shutdown takes a few hundredths
LOG_TAIL = 2000  # characters

# No PG* or other variable of the caller, messages in English, and no search for the local time zone.
ENVIRONMENT = {"PATH": os.defpath, "TZ": "UTC"}

# The server's guardian. It reads a pipe that only our process can write to, so it learns of the end of our
# process even from SIGKILL, when nothing of ours runs any more; then it stops the server and removes its
# directory. PR_SET_PDEATHSIG would be Linux only, needs a preexec_fn, which is not safe with threads, and
# fires when the *thread* that started the server ends. File descriptor 3, since sh gives background
# commands /dev/null as standard input.
_GUARD = """
exec 3<&0
"$@" 3<&- </dev/null &
server=$!
{ read -r _ <&3; kill -%s "$server"; } 2>/dev/null &
watch=$!
exec 3<&-
wait "$server"
kill "$watch" 2>/dev/null
rm -rf "$0"
"""


class GuardedProcess:
    """A server's process and its directory, which are gone when it is stopped, and when our process ends.

    Attributes:
        directory: the server's own; None before it has one.
        guard: the guardian's process; None while none runs.
    """

    def __init__(self, name: str, signal_to_stop: Literal["QUIT", "KILL"]) -> None:
        self._name = name
        self._guardian = _GUARD % signal_to_stop
        self._owner = os.getpid()
        self.directory: Path | None = None
        self.guard: subprocess.Popen[bytes] | None = None

    def start(self, attempt: Callable[[], bool]) -> None:
        """Call `attempt`, which makes the directory and calls `run`, until it is True; stop if it raises."""
        atexit.register(self.stop)
        try:
            while not attempt():
                self._end()
        except BaseException:
            self.stop()
            raise

    def run(
        self, command: list[str], *, is_ready: Callable[[str], bool], env: Mapping[str, str], account: Mapping[str, Any]
    ) -> bool:
        """Run the server in its directory until `is_ready` says so of its log; False if its port was taken meanwhile.

        Raises:
            RuntimeError: it ended, or took too long; with the end of its log.
        """
        with tempfile.TemporaryFile() as log:
            self.guard = subprocess.Popen(  # noqa: S603 - our own command
                ["/bin/sh", "-c", self._guardian, str(self.directory), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=env,
                start_new_session=True,  # Ctrl-C in the terminal is for us, not for the server
                **account,
            )
            deadline = time.monotonic() + START_TIMEOUT
            while True:
                ended = self.guard.poll() is not None
                # Not `seek`: the server writes where this file stands.
                lines = os.pread(log.fileno(), 1_000_000, 0).decode(errors="replace")
                if is_ready(lines):
                    return True
                if ended and "Address already in use" in lines:
                    return False
                if ended or time.monotonic() > deadline:
                    raise RuntimeError(f"{self._name} did not start; its log ends with:\n{lines[-LOG_TAIL:]}")
                time.sleep(0.01)

    def stop(self) -> None:
        """Stop the server and remove its directory. A second call does nothing."""
        if os.getpid() != self._owner:  # a forked child ends: the server is not its own
            return
        atexit.unregister(self.stop)
        self._end()

    def _end(self) -> None:
        guard, self.guard = self.guard, None
        if guard is not None:
            try:
                guard.communicate(b"\n", timeout=STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                os.killpg(guard.pid, signal.SIGKILL)
                guard.communicate()
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def random_password() -> str:
    """Return a password for the superuser of a server."""
    return secrets.token_urlsafe(24)


def account_of_server() -> dict[str, Any]:
    """Return who runs a server, as arguments of subprocess: some refuse to run as root."""
    if os.geteuid() != 0:
        return {}
    import pwd  # noqa: PLC0415 - not on Windows, where the rest of the kit works

    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
