"""moto's Secrets Manager behind a small HTTP/1.1 server. Imported late: moto and Flask take most of a second.

The server is the standard library's, because werkzeug's closes every connection after one answer, and
because dropping, resetting and holding requests needs the socket. moto itself is asked in this process,
as a WSGI application, one request at a time: it is not thread-safe.

Where moto 5.2.5 differs from AWS, as measured:

Corrected here:
    - its notion of the current version does not follow UpdateSecretVersionStage. GetSecretValue without a
      stage, BatchGetSecretValue and the next PutSecretValue then work on an old version; after the latter
      *two* versions are AWSCURRENT.
    - "not found" has the HTTP status 404; with AWS every client error of this protocol is a 400.
    - it words the error for a deleted secret differently, and the words are all that tells it from others.

Left as it is:
    - RotateSecret without a Lambda function moves AWSCURRENT at once, to a version without a value: use
      `smcache.testing.rotate`.
    - AWSPENDING stays on the promoted version after finishSecret, as long as nobody removes it; AWS's
      backend removes it at the end of a rotation (aws-secrets-manager-rotation-lambdas#145). `rotate` does.
    - PutSecretValue with the token of an AWSPENDING version replaces its value (with AWS it is an error,
      ResourceExistsException).
    - PutSecretValue of a new AWSCURRENT takes all other labels off the version that was current.
    - CreatedDate has whole seconds. VersionIdsToStages also lists versions without labels.
    - an empty string is no value. BatchGetSecretValue takes more than 20 ids, and fails as a whole for one
      secret without a value.
"""

import contextlib
import itertools
import json
import re
import socket
import struct
import sys
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from moto.backends import get_backend
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.secretsmanager.models import FakeSecret
from werkzeug.test import Client

_DELETED_MOTO = re.compile(rb'An error occurred \(InvalidRequestException\)[^"]* marked deleted\.')
_DELETED_AWS = b"You can't perform this operation on the secret because it was marked for deletion."
_accounts = itertools.count(123456789012)


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    path: str
    headers: list[tuple[str, str]]
    operation: str  # "GetSecretValue"
    user_agent: str
    body: bytes

    @property
    def region(self) -> str:
        """The region it was signed for; empty if it was not."""
        signature = dict(self.headers).get("Authorization", "")
        # After the key and the date: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html
        found = re.search(r"Credential=[^/]*/[^/]*/([^/]*)/", signature)
        return found[1] if found else ""


@dataclass(frozen=True)
class Reply:
    """What a client gets: an answer, or a connection that ends without one."""

    end: Literal["answer", "drop", "reset"] = "answer"
    status: int = 200
    body: bytes = b""


class Moto:
    """moto's Secrets Manager with an AWS account of its own, so that servers do not see each other.

    moto's state belongs to the process: another user of moto that resets it empties this one too.
    """

    def __init__(self) -> None:
        self.account = str(next(_accounts))
        self._app = Client(DomainDispatcherApplication(create_backend_app))
        self._lock = threading.Lock()

    def ask(self, request: Request) -> Reply:
        """What moto answers."""
        headers = [*request.headers, ("x-moto-account-id", self.account)]
        with self._lock:
            try:
                answer = self._app.post(request.path, headers=headers, data=request.body)
                status = answer.status_code
                body = _DELETED_MOTO.sub(_DELETED_AWS, answer.get_data())
                if request.operation == "UpdateSecretVersionStage":
                    self._follow_current()
            except Exception as error:  # noqa: BLE001 - a bug of moto's is an answer, not the end of the server
                failure = {"__type": "InternalFailure", "message": f"moto failed: {error!r}"}
                return Reply(status=500, body=json.dumps(failure).encode())
        return Reply(status=400 if status == HTTPStatus.NOT_FOUND else status, body=body)

    def forget(self) -> None:
        """Forget all secrets."""
        with self._lock:
            get_backend("secretsmanager").pop(self.account, None)

    def _follow_current(self) -> None:
        for backend in get_backend("secretsmanager")[self.account].values():
            for secret in backend.secrets.values():
                if isinstance(secret, FakeSecret):
                    for version_id, version in secret.versions.items():
                        if "AWSCURRENT" in version["version_stages"]:
                            secret.set_default_version_id(version_id)


class HTTPServer(ThreadingHTTPServer):
    """Serves on a free port of 127.0.0.1, in daemon threads, until `stop`."""

    request_queue_size = 1024  # a thundering herd connects at once

    def __init__(self, respond: Callable[[Request], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.respond = respond
        self._connections: dict[socket.socket, threading.Thread] = {}
        # A short poll, since stopping waits for one.
        self._main = threading.Thread(target=self.serve_forever, args=(0.02,), name="smcache-testing", daemon=True)
        self._main.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread that `stop` can find."""
        thread = threading.Thread(
            target=self.process_request_thread,
            args=(request, client_address),
            name="smcache-testing-connection",
            daemon=True,
        )
        self._connections = {s: t for s, t in self._connections.items() if t.is_alive()}
        self._connections[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        """Close a connection, without the FIN of a `shutdown()`: it would be sent before a reset."""
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def stop(self) -> None:
        """Close everything and wait for the threads."""
        self.shutdown()
        self._main.join()
        self.server_close()
        for connection in self._connections:
            with contextlib.suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)  # ends the wait for a next request
        for thread in self._connections.values():
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: HTTPServer
    protocol_version = "HTTP/1.1"  # keep-alive
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body leave in one packet

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        reply = self.server.respond(
            Request(
                path=self.path,
                headers=self.headers.items(),
                operation=self.headers.get("X-Amz-Target", "").rpartition(".")[2],
                user_agent=self.headers.get("User-Agent", ""),
                body=body,
            )
        )
        if reply.end == "answer":
            self.send_response(reply.status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("x-amzn-RequestId", str(uuid.uuid4()))
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)
            return
        self.close_connection = True
        if reply.end == "reset":  # closing with unsent data to linger for no time sends a RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is http.server's
        """Print nothing."""
