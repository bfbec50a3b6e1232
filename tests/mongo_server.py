"""A fake MongoDB, which demands passwords as the real one does.

A fake, because no mongod is to be had here: neither Debian nor PyPI carries one. What matters is real: pymongo
speaks OP_MSG to it over TCP (https://github.com/mongodb/specifications, "OP_MSG"), logs in with SCRAM-SHA-256
(RFC 7677), and is refused as MongoDB refuses: code 18 for a password or a user that is wrong, 13 for a command
without the right or the login. Sessions that are open stay logged in when a password changes. It stores nothing.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import secrets
import socketserver
import struct
import threading
from typing import TYPE_CHECKING, Any

import bson

if TYPE_CHECKING:
    from collections.abc import Iterator

_OP_MSG = 2013
_HEADER = struct.Struct("<iiii")  # length, request id, response to, opcode
_BEFORE_BODY = struct.Struct("<IB")  # flags; kind of the section
_ITERATIONS = 4096  # the fewest that pymongo accepts
_HELLO = {
    "ok": 1,
    "helloOk": True,
    "isWritablePrimary": True,
    "ismaster": True,
    "minWireVersion": 0,
    "maxWireVersion": 21,
    "maxBsonObjectSize": 16 * 2**20,
    "maxMessageSizeBytes": 48 * 2**20,
    "maxWriteBatchSize": 100_000,
}


class Failed(Exception):
    """What MongoDB answers in place of a result."""

    def __init__(self, code: int, name: str, message: str) -> None:
        self.answer = {"ok": 0, "code": code, "codeName": name, "errmsg": message}


class Mongo:
    """The users of a running server, and its login failures."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[str, tuple[bytes, bytes, bytes]] = {}  # salt, stored key, server key
        self._rejected: dict[str, int] = {}
        self._logins: dict[str, int] = {}
        self.host = "127.0.0.1"
        self.port = 0

    def create_user(self, user: str, password: str) -> None:
        """Create a user, or change a password: the old one is refused from now on."""
        salt = os.urandom(16)
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _ITERATIONS)
        stored_key = hashlib.sha256(_mac(salted, b"Client Key")).digest()
        with self._lock:
            self._keys[user] = salt, stored_key, _mac(salted, b"Server Key")

    def keys(self, user: str) -> tuple[bytes, bytes, bytes]:
        with self._lock:
            return self._keys.get(user) or (bytes(16), b"", b"")

    def count(self, user: str, *, accepted: bool) -> None:
        with self._lock:
            counts = self._logins if accepted else self._rejected
            counts[user] = counts.get(user, 0) + 1

    def logins(self, user: str) -> int:
        """Return how many logins of a user were accepted."""
        return self._logins.get(user, 0)

    def rejected(self, user: str) -> int:
        """Return how many logins of a user were refused."""
        return self._rejected.get(user, 0)

    def secret(self, user: str, password: str) -> dict[str, Any]:
        """Return what AWS's secrets of DocumentDB hold."""
        login = {"username": user, "password": password}
        return {"engine": "mongo", **login, "host": self.host, "port": self.port, "dbname": "admin", "ssl": False}


@contextlib.contextmanager
def mongo() -> Iterator[Mongo]:
    """Run a server on a port of its own."""
    users = Mongo()

    class Connection(_Connection):
        server_users = users

    with _Server(("127.0.0.1", 0), Connection) as server:
        users.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield users
        finally:
            server.shutdown()
            thread.join(30)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1000


class _Connection(socketserver.StreamRequestHandler):
    server_users: Mongo

    def handle(self) -> None:
        self._user = ""
        self._scram = _Scram(self.server_users)
        with contextlib.suppress(ConnectionError):
            while head := self.rfile.read(_HEADER.size):
                length, request_id, _, opcode = _HEADER.unpack(head)
                assert opcode == _OP_MSG
                body = self.rfile.read(length - _HEADER.size)
                command = bson.decode(body[_BEFORE_BODY.size :])  # no driver sends a second section for these
                try:
                    answer = {"ok": 1, **self._answer(command)}
                except Failed as failed:
                    answer = failed.answer
                message = _BEFORE_BODY.pack(0, 0) + bson.encode(answer)
                self.wfile.write(_HEADER.pack(_HEADER.size + len(message), 0, request_id, _OP_MSG) + message)

    def _answer(self, command: dict[str, Any]) -> dict[str, Any]:
        name = next(iter(command))
        match name:
            case "hello" | "ismaster" | "isMaster":
                asked = "saslSupportedMechs" in command
                return {**_HELLO, "saslSupportedMechs": ["SCRAM-SHA-256"]} if asked else _HELLO
            case "saslStart":
                return self._scram.start(command["payload"])
            case "saslContinue":
                answer = self._scram.proceed(command["payload"])
                self._user = self._scram.user
                return answer
            case "ping" | "endSessions":  # for those, too, who have not logged in
                return {}
        if not self._user:
            raise Failed(13, "Unauthorized", f"Command {name} requires authentication")
        if name != "connectionStatus":
            raise Failed(13, "Unauthorized", f"not authorized on {command['$db']} to execute command")
        return {"authInfo": {"authenticatedUsers": [{"user": self._user, "db": "admin"}], "authenticatedUserRoles": []}}


class _Scram:
    """The server's half of one SCRAM-SHA-256 conversation (RFC 5802, 3 and 5)."""

    def __init__(self, users: Mongo) -> None:
        self._users = users
        self.user = ""

    def start(self, payload: bytes) -> dict[str, Any]:
        self._first = payload.decode().removeprefix("n,,")
        fields = _fields(self._first)
        self._name = fields["n"].replace("=2C", ",").replace("=3D", "=")
        self._nonce = fields["r"] + secrets.token_urlsafe(18)
        salt, self._stored_key, self._server_key = self._users.keys(self._name)
        self._challenge = f"r={self._nonce},s={base64.b64encode(salt).decode()},i={_ITERATIONS}"
        return {"conversationId": 1, "done": False, "payload": self._challenge.encode()}

    def proceed(self, payload: bytes) -> dict[str, Any]:
        without_proof, _, proof = payload.decode().rpartition(",p=")
        said = f"{self._first},{self._challenge},{without_proof}".encode()
        signature = _mac(self._stored_key, said)
        client_key = bytes(a ^ b for a, b in zip(signature, base64.b64decode(proof), strict=True))
        right = hmac.compare_digest(hashlib.sha256(client_key).digest(), self._stored_key)
        accepted = right and _fields(without_proof)["r"] == self._nonce
        self._users.count(self._name, accepted=accepted)
        if not accepted:
            raise Failed(18, "AuthenticationFailed", "Authentication failed.")
        self.user = self._name
        verifier = base64.b64encode(_mac(self._server_key, said))
        return {"conversationId": 1, "done": True, "payload": b"v=" + verifier}


def _mac(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, "sha256")


def _fields(message: str) -> dict[str, str]:
    return dict(field.split("=", 1) for field in message.split(",") if "=" in field)
