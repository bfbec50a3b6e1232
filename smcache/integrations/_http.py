# ruff: noqa: SLF001 - the steps of `SecretCache._recover`, for clients that turn it inside out
"""What the HTTP integrations share: the header, and the versions of a secret to try.

An HTTP client asks for the header first and shows the answer later, so it cannot be a function that
`retry_on_auth_error` calls. These classes take such clients through the same steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from smcache._core import Key, check_key
from smcache.errors import SecretValueError

if TYPE_CHECKING:
    from collections.abc import Callable

    from smcache._recovery import Call
    from smcache.aio import AsyncSecretCache
    from smcache.cache import SecretCache
    from smcache.secret import Secret

_UNAUTHORIZED = 401  # asks for other credentials; 403 does not (RFC 9110, 15.5.2 and 15.5.4)
_TOO_MANY_REQUESTS = 429
_SERVER_ERRORS = 500  # and above

Value: TypeAlias = "str | Callable[[Secret], str] | None"


def header_value(secret: Secret, value: Value, header: str) -> str:
    """Return what the header says of a secret.

    Raises:
        SecretValueError: The secret lacks the key, or a header cannot hold its value.
    """
    line = _line(secret, value, header)
    if line is None:
        raise SecretValueError(
            f"what goes into the header {header!r} is no line of printable ASCII characters",
            secret_id=secret.name,
            hint="look for white space around it, such as the newline that `echo` adds",
        )
    return line


def _line(secret: Secret, value: Value, header: str) -> str | None:
    """Return what the header says, or None: a frame that raises would show the value among its locals."""
    text: object = value(secret) if callable(value) else secret.string if value is None else secret[value]
    # Checked here, because http.client and h11 quote a value that they refuse.
    if not isinstance(text, str) or not text.isascii() or not text.isprintable() or text.strip() != text or not text:
        return None
    return f"Bearer {text}" if header.lower() == "authorization" and not callable(value) else text


def _says_nothing(status: int) -> bool:
    """Tell whether a status may come from somebody who has not looked at the credential."""
    return status == _TOO_MANY_REQUESTS or status >= _SERVER_ERRORS


def is_unauthorized(response: Any) -> bool:
    """Tell whether a response of either library asks for other credentials."""
    return bool(response.status_code == _UNAUTHORIZED)


class Attempts:
    """The versions to send one request with, for threads: `start`, then `refused` or `ended`.

    Attributes:
        secret: The version being tried; None before the first and after the last.
    """

    def __init__(self, cache: SecretCache, secret_id: str) -> None:
        self._cache = cache
        self._key = check_key(Key(secret_id))
        self._call: Call
        self.secret: Secret | None = None

    def start(self) -> Secret:
        """Return the version to begin with: the one that the server takes, as far as the cache knows.

        Raises:
            SecretCacheError: There is none, as `SecretCache.get` says.
        """
        self._call, first = self._cache._first(self._key)
        self.secret = first
        return first

    def refused(self, *, repeatable: bool) -> Secret | None:
        """Take in that the server refused the version; return another for a request that can be repeated, or None."""
        if self.secret is None:
            return None
        if repeatable:
            self.secret = self._cache._next(self._call, self._key, self.secret, "rejected")
        else:  # another version, which may have to be waited for, is of no use
            self._cache._refused(self._call, self.secret, "rejected")
            self.secret = None
        return self.secret

    def ended(self, status: int) -> None:
        """Take in an answer that does not refuse the version."""
        if self.secret is not None and not _says_nothing(status):
            self._cache._accepted(self._call, self._key, self.secret)
        self.secret = None


class AsyncAttempts:
    """`Attempts` for asyncio."""

    def __init__(self, cache: AsyncSecretCache, secret_id: str) -> None:
        self._cache = cache
        self._key = check_key(Key(secret_id))
        self._call: Call
        self.secret: Secret | None = None

    async def start(self) -> Secret:
        """Return the version to begin with: the one that the server takes, as far as the cache knows.

        Raises:
            SecretCacheError: There is none, as `AsyncSecretCache.get` says.
        """
        self._call, first = await self._cache._first(self._key)
        self.secret = first
        return first

    async def refused(self, *, repeatable: bool) -> Secret | None:
        """Take in that the server refused the version; return another for a request that can be repeated, or None."""
        if self.secret is None:
            return None
        if repeatable:
            self.secret = await self._cache._next(self._call, self._key, self.secret, "rejected")
        else:  # another version, which may have to be waited for, is of no use
            self._cache._refused(self._call, self.secret, "rejected")
            self.secret = None
        return self.secret

    def ended(self, status: int) -> None:
        """Take in an answer that does not refuse the version."""
        if self.secret is not None and not _says_nothing(status):
            self._cache._accepted(self._call, self._key, self.secret)
        self.secret = None
