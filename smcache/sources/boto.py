"""BotoSource: Secrets Manager through botocore, and its errors in our words."""

from __future__ import annotations

import logging
import threading
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, cast

from smcache import __version__
from smcache._core import AWSCURRENT
from smcache.errors import (
    AccessDenied,
    CacheClosed,
    DecryptionFailed,
    InvalidArgument,
    MalformedResponse,
    NotConfigured,
    RequestRejected,
    SecretCacheError,
    SecretDeleted,
    SecretNotFound,
    SourceFailed,
    Throttled,
    Unavailable,
)
from smcache.secret import Secret
from smcache.sources import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from botocore.exceptions import ClientError

__all__ = ["BotoSource"]

# By AWS's error code. Sources: botocore's service model of secretsmanager, its retry lists
# (retries/standard.py), and "Common Error Types" of the API reference. Some of AWS's own samples write
# DecryptionFailureException and InternalServiceErrorException.
ERRORS_BY_CODE: dict[str, type[SecretCacheError]] = {
    "AccessDeniedException": AccessDenied,
    "AccessDenied": AccessDenied,
    "NotAuthorized": AccessDenied,
    "ResourceNotFoundException": SecretNotFound,
    "DecryptionFailure": DecryptionFailed,
    "DecryptionFailureException": DecryptionFailed,
    "InternalServiceError": Unavailable,
    "InternalServiceErrorException": Unavailable,
    "InternalFailure": Unavailable,
    "ServiceUnavailable": Unavailable,
    "RequestTimeout": Unavailable,
    "RequestTimeoutException": Unavailable,
    "Throttling": Throttled,
    "ThrottlingException": Throttled,
    "ThrottledException": Throttled,
    "RequestThrottled": Throttled,
    "RequestThrottledException": Throttled,
    "RequestLimitExceeded": Throttled,
    "TooManyRequestsException": Throttled,
    "BandwidthLimitExceeded": Throttled,
    "LimitExceededException": Throttled,
    "SlowDown": Throttled,
    "ExpiredToken": NotConfigured,
    "ExpiredTokenException": NotConfigured,
    "UnrecognizedClientException": NotConfigured,
    "InvalidClientTokenId": NotConfigured,
    "InvalidSignatureException": NotConfigured,
    "SignatureDoesNotMatch": NotConfigured,
    "IncompleteSignature": NotConfigured,
    "MissingAuthenticationToken": NotConfigured,
    "MissingAuthenticationTokenException": NotConfigured,
    "RequestExpired": NotConfigured,
}
OPERATIONS = {"GetSecretValue", "DescribeSecret", "BatchGetSecretValue"}
HOLD_ARNS = {"SecretId", "SecretIdList", "ARN", "SecretValues", "Errors"}  # of requests and answers
TOO_MANY_REQUESTS = 429
SERVER_ERROR = 500
ONLY_CURRENT = (AWSCURRENT,)  # the labels of nearly all versions in a cache: one object for them
LONGEST_MESSAGE = 300  # a proxy's error page is not worth more


class BotoSource:
    """Secrets Manager through a botocore client: the one given, or one made on first use.

    The client made here takes the usual settings (environment, profile, ``AWS_ENDPOINT_URL``), sends each request
    once, so that the cache sees, counts and repeats them itself, and gives up early enough for a second try.

    Args:
        client: Any boto3 or botocore client with ``get_secret_value``; its own retries are respected and counted.
        fetch_timeout: How long a fetch may take in all, in seconds.
        region: Of the client made here; by default as botocore finds it.
        primary: The region of the ARNs that come in and go out, where this one has replicas.

    Raises:
        InvalidArgument: The client has no ``get_secret_value``.
    """

    def __init__(
        self, client: Any = None, *, fetch_timeout: float = 10.0, region: str | None = None, primary: str | None = None
    ) -> None:
        if client is not None:
            check_client(client)
            keep_out_of_logs()
        self._client = client
        self._is_ours = client is None
        self._fetch_timeout = fetch_timeout
        self._region = region
        self._primary = primary
        self._making = threading.Lock()
        self._is_closed = False

    def fetch(self, secret_id: str, stage: str | None, version_id: str | None) -> Answer[Secret]:
        """Return one version by GetSecretValue; see ``Source.fetch``."""
        return self._call("get_secret_value", secret_id, wanted(secret_id, stage, version_id), secret_from)

    def describe(self, secret_id: str) -> Answer[Mapping[str, str]]:
        """Return the version id under each staging label, by DescribeSecret; see ``VersionSource.describe``."""
        return self._call("describe_secret", secret_id, {"SecretId": secret_id}, versions_from)

    def fetch_batch(self, secret_ids: Sequence[str]) -> Answer[Mapping[str, Secret | SecretCacheError]]:
        """Return up to 20 secrets by BatchGetSecretValue; see ``BatchSource.fetch_batch``."""
        ids = list(secret_ids)
        return self._call("batch_get_secret_value", "", {"SecretIdList": ids}, lambda told, _: batch_from(told, ids))

    def start_anew_in_child(self) -> None:
        """Make another client after a fork; the connections of this one are the parent's, and stay open there."""
        self._making = threading.Lock()
        if self._is_ours:
            self._client = None

    def close(self) -> None:
        """Close the client's connections, if the client was made here; one that is being made is not used any more."""
        self._is_closed = True
        if self._is_ours:
            client, self._client = self._client, None
            if client is not None:
                client.close()

    def _call(
        self,
        method: str,
        secret_id: str,
        parameters: Mapping[str, Any],
        parse: Callable[[Mapping[str, Any], str], Any],
    ) -> Answer[Any]:
        response: Any = None
        try:
            response = getattr(self._ready_client(), method)(**in_region(parameters, self._region))
            return Answer(parse(in_region(response, self._primary), secret_id), 1 + hidden_retries(response))
        except SecretCacheError as error:
            failure = error.with_traceback(None)
        except Exception as error:  # noqa: BLE001 - whatever a client raises is translated and kept as the cause
            failure = translate(error, secret_id)
        response = None  # a traceback shows its frames' locals
        raise failure

    def _ready_client(self) -> Any:
        with self._making:
            if self._client is None:
                make_config, get_session = import_botocore()
                keep_out_of_logs()
                config = make_config(**client_settings(self._fetch_timeout))
                session = without_listing_services(get_session())
                self._client = session.create_client("secretsmanager", region_name=self._region, config=config)
            if self._is_closed:
                self.close()
                raise CacheClosed("the source has been closed")
            return self._client


def import_botocore() -> tuple[Callable[..., Any], Callable[[], Any]]:
    """Return botocore's ``Config`` and ``get_session``. The first time takes 0.2 s, and only those who need it pay."""
    from botocore.config import Config  # noqa: PLC0415
    from botocore.session import get_session  # noqa: PLC0415

    return Config, get_session


class _AnyService(list[str]):
    def __contains__(self, name: object) -> bool:
        return True


def without_listing_services(session: Any) -> Any:
    """Return the session, whose clients look for their own model only.

    Before it loads a model, botocore looks through the directories of all its 430 services, which takes 15 ms, to see
    whether there is one of that name. It raises the same kind of error if there is none when it loads it.
    """
    session.get_component("data_loader").list_available_services = lambda _: _AnyService()
    return session


def check_client(client: object) -> None:
    """Refuse what is no client of Secrets Manager.

    Raises:
        InvalidArgument: It has no ``get_secret_value``.
    """
    if not callable(getattr(client, "get_secret_value", None)):
        raise InvalidArgument(
            f"client= has no get_secret_value: {type(client).__name__}", hint='pass boto3.client("secretsmanager")'
        )


def client_settings(fetch_timeout: float) -> dict[str, Any]:
    """Return the arguments of botocore's ``Config`` for a client made here."""
    return {
        "user_agent_extra": f"smcache/{__version__}",
        "retries": {"mode": "standard", "total_max_attempts": 1},
        "connect_timeout": fetch_timeout / 4,
        "read_timeout": fetch_timeout / 2,
    }


def wanted(secret_id: str, stage: str | None, version_id: str | None) -> dict[str, str]:
    """Return the parameters of GetSecretValue."""
    parameters = {"SecretId": secret_id, "VersionStage": stage, "VersionId": version_id}
    return {name: value for name, value in parameters.items() if value is not None}


def in_region(message: Any, region: str | None) -> Any:
    """Return a request or an answer with the ARNs of its secrets in a region; None leaves them as they are.

    A replica has the ARN of its primary but for the region:
    https://docs.aws.amazon.com/secretsmanager/latest/userguide/replicate-secrets.html
    """
    if region is None:
        return message
    if isinstance(message, list):
        return [in_region(part, region) for part in message]
    if isinstance(message, dict):
        return {name: in_region(part, region) if name in HOLD_ARNS else part for name, part in message.items()}
    if isinstance(message, str) and message.startswith("arn:"):
        parts = message.split(":", 4)
        return ":".join([*parts[:3], region, *parts[4:]])
    return message


def secret_from(response: Mapping[str, Any], secret_id: str) -> Secret:
    """Return the secret in an answer of GetSecretValue or in one part of a batch.

    Raises:
        MalformedResponse: The answer lacks the value or the version.
    """
    value = response.get("SecretString")
    if value is None:
        value = response.get("SecretBinary")
    version_id = response.get("VersionId")
    if not isinstance(value, (str, bytes)) or not isinstance(version_id, str):
        missing = "VersionId" if isinstance(value, (str, bytes)) else "value"
        raise MalformedResponse(f"the answer of AWS has no {missing}", secret_id=secret_id)
    name = response.get("Name") or secret_id
    made = response.get("CreatedDate")
    stages = tuple(response.get("VersionStages") or ())
    return Secret(
        value,
        name=secret_id if name == secret_id else name,  # one string, not two
        arn=response.get("ARN") or "",
        version_id=version_id,
        stages=ONLY_CURRENT if stages == ONLY_CURRENT else stages,
        # botocore gives each time a time zone object of its own, of 460 bytes.
        created_at=made.astimezone(timezone.utc) if isinstance(made, datetime) else None,
    )


def versions_from(response: Mapping[str, Any], secret_id: str) -> Mapping[str, str]:
    """Return the version id under each staging label, from an answer of DescribeSecret.

    Raises:
        SecretDeleted: The secret is marked for deletion, for which DescribeSecret still succeeds.
    """
    if response.get("DeletedDate") is not None:
        raise SecretDeleted("the secret is marked for deletion", secret_id=secret_id)
    versions = response.get("VersionIdsToStages") or {}
    return {stage: version_id for version_id, stages in versions.items() for stage in stages}


def batch_from(response: Mapping[str, Any], secret_ids: Sequence[str]) -> Mapping[str, Secret | SecretCacheError]:
    """Return what an answer of BatchGetSecretValue says of each id, whether name or ARN."""
    found: dict[str, Secret | SecretCacheError] = {}
    for value in response.get("SecretValues", ()):
        try:
            secret = secret_from(value, "")
        except MalformedResponse:
            continue
        for secret_id in secret_ids:
            # An ARN may be given without its dash and six random characters; others may go on from there.
            if secret_id in (secret.name, secret.arn, secret.arn[:-7]):
                found[secret_id] = secret
    for error in response.get("Errors", ()):
        secret_id = str(error.get("SecretId", ""))
        code, message = str(error.get("ErrorCode", "")), str(error.get("Message", ""))
        found[secret_id] = _error_kind(code, message, 400)(message, secret_id=secret_id, code=code)
    return found


def translate(error: Exception, secret_id: str) -> SecretCacheError:
    """Return what a client raised in our words, with the original as its cause."""
    from botocore import exceptions as aws  # noqa: PLC0415 - heavy; whoever gets here has a client
    from botocore.parsers import ResponseParserError  # noqa: PLC0415

    failure: SecretCacheError
    if isinstance(error, aws.ClientError):
        failure = _from_client_error(error, secret_id)
    elif isinstance(error, (aws.HTTPClientError, aws.ConnectionError, aws.IncompleteReadError, OSError)):
        failure = Unavailable(f"no answer from AWS: {error}", secret_id=secret_id, code=type(error).__name__)
    elif isinstance(error, (ResponseParserError, UnicodeError)):
        # The text and the attributes of these hold the body they could not parse: no cause, no text.
        return MalformedResponse("the answer of AWS cannot be parsed", secret_id=secret_id)
    elif isinstance(error, aws.ParamValidationError):
        failure = RequestRejected(str(error), secret_id=secret_id, code=type(error).__name__, requests=0)
    elif isinstance(error, aws.BotoCoreError):  # of credentials, profiles, regions, endpoints
        failure = NotConfigured(str(error), secret_id=secret_id, code=type(error).__name__, requests=0)
    else:
        failure = SourceFailed(f"the client raised {type(error).__name__}", secret_id=secret_id)
    failure.__cause__ = _alone(error)
    return failure


def _alone(error: Exception) -> Exception:
    """Strip an error of the request, and of the errors and frames behind it: these hold tokens and parts of bodies."""
    from botocore import exceptions as aws  # noqa: PLC0415 - see translate

    if isinstance(error, aws.HTTPClientError):
        held: Any = error
        held.request = held.response = None
        held.kwargs.pop("error", None)
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _from_client_error(error: ClientError, secret_id: str) -> SecretCacheError:
    told = cast("dict[str, Any]", error.response)
    code = str(told.get("Error", {}).get("Code", ""))
    message = str(told.get("Error", {}).get("Message", ""))[:LONGEST_MESSAGE]
    if error.operation_name not in OPERATIONS:  # STS, say, which was asked for credentials
        return NotConfigured(f"{error.operation_name}: {message}", secret_id=secret_id, code=code, requests=0)
    status = told.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    kind = _error_kind(code, message, status)
    return kind(message, secret_id=secret_id, code=code, requests=1 + hidden_retries(told))


def _error_kind(code: str, message: str, status: int) -> type[SecretCacheError]:
    # Only the message tells a deleted secret: "... it was marked for deletion" (moto: "marked deleted").
    if code == "InvalidRequestException" and "marked" in message and "delet" in message:
        return SecretDeleted
    if code in ERRORS_BY_CODE:
        return ERRORS_BY_CODE[code]
    if status == TOO_MANY_REQUESTS:
        return Throttled
    if status >= SERVER_ERROR:
        return Unavailable
    # Where an answer names no error, botocore puts the status: it is a proxy's or a gateway's, and AWS has not spoken.
    return MalformedResponse if code == str(status) else RequestRejected


def hidden_retries(response: Mapping[str, Any]) -> int:
    """Return how often the client itself repeated the request."""
    retries = response.get("ResponseMetadata", {}).get("RetryAttempts", 0)
    return retries if isinstance(retries, int) else 0


def keep_out_of_logs() -> None:
    """Keep values out of botocore's own log, which at level DEBUG prints whole response bodies."""
    logging.getLogger("botocore.parsers").addFilter(_redact_body)


def _redact_body(record: logging.LogRecord) -> bool:
    if str(record.msg).startswith("Response body"):
        record.args = ("[redacted by smcache]",)
    return True
