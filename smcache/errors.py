"""Everything smcache raises, by who must act.

    SecretCacheError
    ├── InvalidArgument (ValueError)    the caller: the call or the configuration is wrong
    ├── CacheClosed                     the caller: the cache was used after close()
    ├── WrongLoop (RuntimeError)        the caller: AsyncSecretCache was used outside its event loop
    ├── MissingExtra (ImportError)      the caller: an optional dependency is not installed
    ├── Denied                          AWS has answered, and asking again changes nothing
    │   ├── AccessDenied                  who writes the policies
    │   ├── SecretNotFound                who wrote the name, or the region
    │   ├── SecretDeleted                 who deleted the secret
    │   ├── DecryptionFailed              who administers the KMS key
    │   └── RequestRejected               the caller: AWS does not accept the request
    ├── Unavailable                     nobody, or operations: a cached value is served meanwhile
    │   ├── Throttled                     operations: too many requests
    │   ├── FetchTimeout                  operations: AWS did not answer in time
    │   ├── MalformedResponse             operations: something between us and AWS
    │   ├── NotConfigured                 who deploys: no usable AWS credentials or region
    │   └── SourceFailed                  who wrote the source or the client
    ├── SecretValueError                who wrote the secret's value
    │   ├── WrongKind                     it is binary and not a string, or the reverse
    │   ├── NotJSON                       it is no JSON object
    │   └── NoSuchKey (KeyError)          it lacks the key
    └── NoOtherVersion                  renew() found nothing but the rejected version

Each error has a ``code`` (AWS's own where AWS spoke), a ``hint`` that says what to do, the ``secret_id``
it is about, and AWS's error as its ``__cause__``. None holds a secret's value. Each raise is a new object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

__all__ = [
    "AccessDenied",
    "CacheClosed",
    "DecryptionFailed",
    "Denied",
    "FetchTimeout",
    "InvalidArgument",
    "MalformedResponse",
    "MissingExtra",
    "NoOtherVersion",
    "NoSuchKey",
    "NotConfigured",
    "NotJSON",
    "RequestRejected",
    "SecretCacheError",
    "SecretDeleted",
    "SecretNotFound",
    "SecretValueError",
    "SourceFailed",
    "Throttled",
    "Unavailable",
    "WrongKind",
    "WrongLoop",
]


class SecretCacheError(Exception):
    """What everything smcache raises is.

    Attributes:
        message: What is wrong, without the hint.
        code: AWS's error code where AWS spoke, otherwise the name of the class.
        hint: What to do about it.
        secret_id: The secret as the caller named it; empty where no single secret is concerned.
        requests: How many requests the failed attempt sent, hidden retries of the client included.
    """

    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, secret_id: str = "", code: str = "", hint: str = "", requests: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.secret_id = secret_id
        self.code = code or type(self).__name__
        self.hint = hint or self.default_hint
        self.requests = requests

    def __str__(self) -> str:
        about = f"{self.secret_id!r}: " if self.secret_id else ""
        code = "" if self.code == type(self).__name__ else f" [{self.code}]"
        hint = f". Hint: {self.hint}" if self.hint else ""
        return f"{about}{self.message.rstrip('.')}{code}{hint}"

    def _fields(self) -> dict[str, Any]:
        return {
            "secret_id": self.secret_id,
            "code": self.code,
            "hint": self.hint,
            "requests": self.requests,
        }

    def __reduce__(self) -> tuple[Callable[..., SecretCacheError], tuple[object, ...]]:
        # Exceptions pickle by their positional arguments alone, which would lose the rest.
        return _rebuild, (type(self), self.message, self._fields())

    def fresh(self) -> Self:
        """Return a new object that says the same: raising one object twice grows its traceback for ever."""
        again = _rebuild(type(self), self.message, self._fields())
        again.__cause__ = self.__cause__
        return again


_Error = TypeVar("_Error", bound=SecretCacheError)


def _rebuild(kind: type[_Error], message: str, fields: dict[str, Any]) -> _Error:
    error = kind.__new__(kind, message)
    SecretCacheError.__init__(error, message, **fields)
    return error


class InvalidArgument(SecretCacheError, ValueError):
    """The call or the configuration is wrong; nothing was done."""


class CacheClosed(SecretCacheError):
    """The cache was used after ``close()``."""

    default_hint = "make one cache for the life of the process and close it last"


class WrongLoop(SecretCacheError, RuntimeError):
    """``AsyncSecretCache`` was used without a running asyncio loop, or from a second one at the same time."""


class MissingExtra(SecretCacheError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs smcache[{extra}]", hint=f"pip install 'smcache[{extra}]'")


class Denied(SecretCacheError):
    """AWS has answered, and asking again changes nothing: a cached value lives out its TTL and is gone."""


class AccessDenied(Denied):
    """AWS refuses to give the value to this identity."""

    default_hint = (
        "three policies must agree: IAM (secretsmanager:GetSecretValue on this ARN), the secret's own "
        "resource policy, and the KMS key (kms:Decrypt, the one often forgotten; the AWS-managed key "
        "aws/secretsmanager cannot be used from another account)"
    )


class SecretNotFound(Denied):
    """There is no such secret, version or staging label here."""

    default_hint = (
        "check the spelling, the region of the client, white space around the name, and that the "
        "version or label exists; a secret without a value answers the same"
    )


class SecretDeleted(Denied):
    """The secret is marked for deletion; AWS gives out no value of it."""

    default_hint = "restore it (RestoreSecret) within its recovery window, or stop asking for it"


class DecryptionFailed(Denied):
    """Secrets Manager cannot decrypt the value with its KMS key."""

    default_hint = "check that the secret's KMS key is enabled, not pending deletion, and allows kms:Decrypt"


class RequestRejected(Denied):
    """AWS does not accept the request as it was sent."""

    default_hint = "check the secret id, and that a version id and a stage belong together"


class Unavailable(SecretCacheError):
    """AWS could not be asked: network, timeout, 5xx or throttling. A cached value is served meanwhile."""

    default_hint = "nothing to do if it passes; otherwise check the network path to Secrets Manager"
    retryable: ClassVar[bool] = True


class Throttled(Unavailable):
    """AWS answered that requests come too fast."""

    default_hint = "raise the TTL, or share one cache per process; the quota is per account and region"


class FetchTimeout(Unavailable):
    """AWS did not answer within ``fetch_timeout``."""


class MalformedResponse(Unavailable):
    """The answer is none that Secrets Manager gives."""

    default_hint = "look for a proxy, an emulator or a stub between this process and Secrets Manager"


class NotConfigured(Unavailable):
    """This process has no usable AWS credentials or no region."""

    default_hint = "set credentials and a region (environment, profile or instance role); renew expired ones"
    retryable = False


class SourceFailed(Unavailable):
    """The source or client the cache was given raised something that is no AWS error."""

    default_hint = "see the cause: it is an error in the source or client given to the cache"
    retryable = False


class SecretValueError(SecretCacheError):
    """The value is there, but it is not what was asked for."""


class WrongKind(SecretValueError):
    """A string was asked of a binary secret, or the reverse."""


class NotJSON(SecretValueError):
    """The value is no JSON object."""

    default_hint = 'store it as a JSON object such as {"username": ..., "password": ...}, or read .string'


class NoSuchKey(SecretValueError, KeyError):
    """The JSON object lacks the key."""


class NoOtherVersion(SecretCacheError):
    """AWS has no version but the one that was rejected."""

    default_hint = "the server and Secrets Manager disagree on the password: rotate the secret or correct it"
