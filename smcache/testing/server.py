"""A Secrets Manager for tests: moto's, over real HTTP, with faults to order."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from smcache.testing.faults import Hold, Injection

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mypy_boto3_secretsmanager import SecretsManagerClient

    from smcache.testing._wire import Reply, Request
    from smcache.testing.faults import Fault

__all__ = ["SecretsManager", "secrets_manager"]

_USER_AGENTS_KEPT = 10_000


@contextlib.contextmanager
def secrets_manager() -> Iterator[SecretsManager]:
    """Run a Secrets Manager on a free port of 127.0.0.1 for the length of a `with` block.

    It lives in this process and is gone, with its threads and sockets, when the block ends, however it
    ends. Several may run at once; each has an AWS account of its own. Their data are moto's, which belong
    to the process: `moto.mock_aws`, when it starts, empties them. `smcache/testing/_wire.py` lists where
    moto differs from AWS.

    Raises:
        MissingExtra: moto or Flask is not installed.
    """
    server = SecretsManager()
    try:
        yield server
    finally:
        server.stop()


class SecretsManager:
    """A running server, made by `secrets_manager`.

    Attributes:
        endpoint_url: "http://127.0.0.1:PORT".
        region: the region of `client` and `environ`.
        environ: environment variables that lead any AWS SDK to this server, for `monkeypatch.setenv` or a
            subprocess.
    """

    region = "us-east-1"

    def __init__(self) -> None:
        try:
            # Late: moto takes most of a second and is in an extra.
            from smcache.testing import _wire  # noqa: PLC0415
        except ImportError as error:
            from smcache.errors import MissingExtra  # noqa: PLC0415 - needed in this one case

            raise MissingExtra("the Secrets Manager test server", "testing") from error
        self._lock = threading.Lock()
        self._requests: Counter[str] = Counter()
        self._user_agents: deque[str] = deque(maxlen=_USER_AGENTS_KEPT)
        self._injections: list[Injection] = []
        self._holds: list[Hold] = []
        self._clients: list[SecretsManagerClient] = []
        self._stopped = threading.Event()
        self._wire = _wire
        self._moto = _wire.Moto()
        self._ask("ListSecrets", {})  # moto's first answer takes 0.3 s, which no test should see
        self._http = _wire.HTTPServer(self._respond)
        self.endpoint_url = f"http://127.0.0.1:{self._http.server_port}"
        self.environ = {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ENDPOINT_URL_SECRETS_MANAGER": self.endpoint_url,  # it wins over the one above
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_SESSION_TOKEN": "testing",
            "AWS_DEFAULT_REGION": self.region,
            "AWS_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def requests(self) -> Counter[str]:
        """How many requests arrived, by operation: a copy. It includes those that a fault answered."""
        with self._lock:
            return self._requests.copy()

    @property
    def user_agents(self) -> list[str]:
        """The User-Agent of each request, oldest first: the last 10,000."""
        with self._lock:
            return list(self._user_agents)

    def client(self, **kwargs: Any) -> SecretsManagerClient:
        """A boto3 client of this server, with made-up credentials and without retries.

        Args:
            kwargs: arguments of `boto3.client`; a `config` is merged over ours.
        """
        import boto3  # noqa: PLC0415 - half a second
        from botocore.config import Config  # noqa: PLC0415 - as above

        ours = Config(retries={"total_max_attempts": 1}, proxies={}, max_pool_connections=50)
        client: SecretsManagerClient = boto3.client(
            "secretsmanager",
            **{
                "endpoint_url": self.endpoint_url,
                "region_name": self.region,
                "aws_access_key_id": "testing",
                "aws_secret_access_key": "testing",
                **kwargs,
                "config": ours.merge(kwargs.get("config") or Config()),
            },
        )
        self._clients.append(client)
        return client

    def create(self, name: str, value: str | bytes | Mapping[str, Any]) -> str:
        """Create a secret without a request over HTTP: not counted, and no fault hits it.

        Args:
            name: its name.
            value: a string, bytes, or a mapping, which is stored as JSON.

        Returns:
            Its ARN.

        Raises:
            botocore.exceptions.ClientError: moto refused, e.g. ResourceExistsException.
        """
        return str(self._ask("CreateSecret", {"Name": name, **_value(value)})["ARN"])

    def put(self, name: str, value: str | bytes | Mapping[str, Any]) -> str:
        """Give a secret a new AWSCURRENT version, as `create` does: at once, not counted.

        Returns:
            The id of the version.

        Raises:
            botocore.exceptions.ClientError: moto refused, e.g. ResourceNotFoundException.
        """
        return str(self._ask("PutSecretValue", {"SecretId": name, **_value(value)})["VersionId"])

    def inject(
        self,
        fault: Fault,
        times: int | None = 1,
        operation: str | None = "GetSecretValue",
        secret_id: str | None = None,
        region: str | None = None,
    ) -> Injection:
        """Let a fault hit the next requests. Of several that apply, the one injected first is used up first.

        Args:
            fault: see `smcache.testing.faults`.
            times: how many requests it hits; None for all until it is removed.
            operation: the operation it hits; None for all.
            secret_id: the SecretId, as in the request, that it hits; of BatchGetSecretValue, any in the
                list. None for all.
            region: the region whose requests it hits: the server answers for all of them. None for all.
        """
        injection = Injection(fault, times, operation, secret_id, region)
        with self._lock:
            self._injections.append(injection)
        return injection

    def hold(self, operation: str | None = "GetSecretValue") -> Hold:
        """Make requests wait at the server until `Hold.release`; they are answered as of then.

        Args:
            operation: the operation that waits; None for all.
        """
        hold = Hold(operation)
        with self._lock:
            self._holds.append(hold)
        return hold

    def reset(self) -> None:
        """Forget secrets, faults, holds and counts."""
        self._end_waits()
        self._moto.forget()
        with self._lock:
            self._requests.clear()
            self._user_agents.clear()

    def stop(self) -> None:
        """Stop at once: requests that wait lose their connection. A second call does nothing."""
        with self._lock:
            if self._stopped.is_set():
                return
            self._stopped.set()
        self._end_waits()
        self._http.stop()
        self._moto.forget()
        for client in self._clients:
            client.close()

    def _end_waits(self) -> None:
        with self._lock:
            injections, self._injections = self._injections, []
            holds, self._holds = self._holds, []
        for injection in injections:
            injection.remove()
        for hold in holds:
            hold.release()

    def _ask(self, operation: str, body: Mapping[str, Any]) -> dict[str, Any]:
        from botocore.exceptions import ClientError  # noqa: PLC0415 - half a second

        credential = f"testing/20200101/{self.region}/secretsmanager/aws4_request"
        headers = [
            ("X-Amz-Target", f"secretsmanager.{operation}"),
            ("Content-Type", "application/x-amz-json-1.1"),
            ("Authorization", f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host, Signature=0"),
        ]
        reply = self._moto.ask(self._wire.Request("/", headers, operation, "", json.dumps(body).encode()))
        answer: dict[str, Any] = json.loads(reply.body)
        if "__type" in answer:
            message = answer.get("message", "")
            raise ClientError({"Error": {"Code": answer["__type"], "Message": message}}, operation)
        return answer

    def _respond(self, request: Request) -> Reply:
        with self._lock:
            self._requests[request.operation] += 1
            self._user_agents.append(request.user_agent)
            holds = list(self._holds)
        for hold in holds:
            hold.admit(request.operation)
        injection = self._take(request)
        if self._stopped.is_set():
            return self._wire.Reply(end="drop")
        if injection is None:
            return self._moto.ask(request)
        fault = injection.fault
        if fault.end == "hang":
            injection.wait()
            return self._wire.Reply(end="drop")
        if fault.delay:
            injection.wait(fault.delay)
        if self._stopped.is_set():
            return self._wire.Reply(end="drop")
        if fault.end == "answer" and fault.body is None:
            return self._moto.ask(request)
        return self._wire.Reply(fault.end, fault.status, fault.body or b"")

    def _take(self, request: Request) -> Injection | None:
        try:
            body = json.loads(request.body)
            secret_ids = frozenset([body.get("SecretId"), *body.get("SecretIdList", ())])
        except (ValueError, TypeError, AttributeError):  # not a request of Secrets Manager
            secret_ids = frozenset()
        with self._lock:
            for injection in self._injections:
                if injection.hits(request.operation, secret_ids, request.region):
                    injection.used += 1
                    return injection
        return None


def _value(value: str | bytes | Mapping[str, Any]) -> dict[str, str]:
    if isinstance(value, bytes):
        return {"SecretBinary": base64.b64encode(value).decode()}
    if isinstance(value, str):
        return {"SecretString": value}
    return {"SecretString": json.dumps(dict(value))}
