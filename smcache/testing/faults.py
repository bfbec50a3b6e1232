"""What the Secrets Manager test server can be told to do wrong.

The shapes on the wire are those of AWS's JSON 1.1 protocol: an error is ``{"__type": code, "message":
text}`` with a 4xx or 5xx status (https://smithy.io/2.0/aws/protocols/aws-json-1_1-protocol.html).
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

__all__ = [
    "Fault",
    "Hold",
    "Injection",
    "answer",
    "deny",
    "drop",
    "hang",
    "latency",
    "malformed",
    "server_error",
    "tcp_reset",
    "throttle",
]


@dataclass(frozen=True)
class Fault:
    """What happens to one request. Made by the functions of this module.

    Attributes:
        end: how the request ends: with an answer, with its connection closed or reset, or never.
        status: HTTP status of the answer.
        body: the answer as sent; None means the real one, from moto.
        delay: seconds before it ends.
    """

    end: Literal["answer", "drop", "reset", "hang"] = "answer"
    status: int = 200
    body: bytes | None = None
    delay: float = 0.0


def throttle(message: str = "Rate exceeded") -> Fault:
    """The request is over the quota: 400 ThrottlingException."""
    return deny("ThrottlingException", message)


def server_error(status: int = 500) -> Fault:
    """AWS is in trouble.

    Args:
        status: 500 is Secrets Manager's InternalServiceError; any other 5xx is ServiceUnavailable,
            which is what AWS's front ends send with 503.

    Raises:
        ValueError: the status is not a 5xx.
    """
    if not 500 <= status <= 599:  # noqa: PLR2004 - that is what 5xx means
        raise ValueError(f"a server error has a status from 500 to 599, not {status}")
    if status == 500:  # noqa: PLR2004 - as above
        return _error(status, "InternalServiceError", "An error occurred on the server side.")
    return _error(status, "ServiceUnavailable", "The service is temporarily unavailable.")


def deny(code: str = "AccessDeniedException", message: str = "not authorized to perform this action") -> Fault:
    """AWS understood and says no: status 400 with any error code.

    Args:
        code: AccessDeniedException, ResourceNotFoundException, DecryptionFailure, ExpiredTokenException,
            UnrecognizedClientException, InvalidRequestException, ...
        message: part of the meaning for some codes. A deleted secret is InvalidRequestException with "You
            can't perform this operation on the secret because it was marked for deletion."
    """
    return _error(400, code, message)


def latency(seconds: float) -> Fault:
    """The real answer, so many seconds later."""
    if not seconds >= 0:
        raise ValueError(f"a latency is zero seconds or more, not {seconds}")
    return Fault(delay=seconds)


def drop() -> Fault:
    """The connection is closed (TCP FIN) without an answer."""
    return Fault(end="drop")


def tcp_reset() -> Fault:
    """The connection is reset (TCP RST) without an answer, as by a firewall or a crashed proxy."""
    return Fault(end="reset")


def hang() -> Fault:
    """No answer until the fault is removed or the server stops; then the connection is closed."""
    return Fault(end="hang")


def malformed(body: bytes = b"<html>not what you asked for</html>", status: int = 200) -> Fault:
    """A body that is not JSON, as a proxy or a filter sends it, also with 403 or 404.

    With 200, botocore takes it for an answer without any field; otherwise, for an error whose code is the status.
    """
    return Fault(body=body, status=status)


def answer(body: Mapping[str, Any]) -> Fault:
    """200 with this body as JSON, e.g. an answer that carries no value."""
    return Fault(body=json.dumps(body).encode())


def _error(status: int, code: str, message: str) -> Fault:
    return Fault(status=status, body=json.dumps({"__type": code, "message": message}).encode())


class Injection:
    """A fault in place, made by `SecretsManager.inject`; as a context manager it is removed at the end.

    Attributes:
        fault: the fault.
        times: how many requests it hits in all; None for no limit.
        operation: the operation it hits; None for all.
        secret_id: the SecretId it hits; None for all.
        region: the region whose requests it hits; None for all.
        used: how many requests it has hit.
    """

    def __init__(
        self, fault: Fault, times: int | None, operation: str | None, secret_id: str | None, region: str | None
    ) -> None:
        self.fault = fault
        self.times = times
        self.operation = operation
        self.secret_id = secret_id
        self.region = region
        self.used = 0
        self._removed = threading.Event()

    def remove(self) -> None:
        """Hit no further request, and end the wait of those that it delays."""
        self._removed.set()

    def hits(self, operation: str, secret_ids: frozenset[str], region: str) -> bool:
        """Whether it applies to a request."""
        return (
            not self._removed.is_set()
            and (self.times is None or self.used < self.times)
            and self.operation in (None, operation)
            and (self.secret_id is None or self.secret_id in secret_ids)
            and self.region in (None, region)
        )

    def wait(self, seconds: float | None = None) -> None:
        """Wait so long, or until it is removed; None for no limit."""
        self._removed.wait(seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class Hold:
    """Requests wait at the server, made by `SecretsManager.hold`; as a context manager it ends by releasing.

    Attributes:
        operation: the operation that is held; None for all.
        arrived: how many requests have been held.
    """

    def __init__(self, operation: str | None) -> None:
        self.operation = operation
        self.arrived = 0
        self._arrival = threading.Condition()
        self._released = threading.Event()

    def wait_for(self, n: int, timeout: float = 10.0) -> None:
        """Block until n requests have arrived and are being held.

        Raises:
            TimeoutError: fewer came within `timeout` seconds.
        """
        with self._arrival:
            if not self._arrival.wait_for(lambda: self.arrived >= n, timeout):
                raise TimeoutError(f"{self.arrived} of {n} requests arrived within {timeout} s")

    def release(self) -> None:
        """Let the held requests go on, and hold no further one."""
        self._released.set()

    def admit(self, operation: str) -> None:
        """Keep a request waiting, if it is to be held."""
        if self._released.is_set() or self.operation not in (None, operation):
            return
        with self._arrival:
            self.arrived += 1
            self._arrival.notify_all()
        self._released.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
