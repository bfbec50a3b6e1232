"""What the servers of the kit share: how their processes are started, watched over and stopped."""

from __future__ import annotations

import os
import secrets
import socket
from typing import Any, Literal

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


def guardian(signal: Literal["QUIT", "KILL"]) -> str:
    """Return the program of a server's guardian, for `sh -c`: it takes the directory, then the server's command."""
    return _GUARD % signal


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
