"""API keys and bearer tokens for httpx, from a cache: a rotated one is noticed by its 401 and replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

from smcache._core import Key, check_key
from smcache.aio import AsyncSecretCache
from smcache.cache import SecretCache
from smcache.errors import InvalidArgument
from smcache.integrations._http import AsyncAttempts, Attempts, header_value, is_unauthorized

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

    from smcache.secret import Secret

__all__ = ["SecretAuth"]


class SecretAuth(httpx.Auth):
    """Put a secret into a header of each request, and another version of it after a 401.

    `SecretAuth(cache, "prod/api", "token")` sends `Authorization: Bearer <token>`, and
    `SecretAuth(cache, "prod/api", "key", header="X-Api-Key")` sends `X-Api-Key: <key>`.

    A request that is answered with 401 is sent again with another version of the secret, once for each that there
    is, as `retry_on_auth_error` does it: AWSCURRENT as AWS has it now, then the AWSPENDING of a rotation under way.
    What the server takes, later requests start from; 429 and 5xx say nothing of that. A key that is simply
    wrong costs one request, not two. A request whose body is a stream is not sent again: its 401 is returned at once,
    and the next request has the other version.

    When `follow_redirects` leads to another host, httpx takes off the header Authorization and keeps all others
    (https://github.com/encode/httpx, `Client._redirect_headers`): with a header of your own, do not follow them.

    Args:
        cache: A `SecretCache` for `httpx.Client`, an `AsyncSecretCache` for `httpx.AsyncClient`.
        secret_id: The secret's name or ARN.
        value: The key of the JSON secret that holds it, or a function that makes the header's whole value from a
            `Secret`. Without it, the whole string of the secret.
        header: The header's name. In `Authorization`, what no function made is preceded by `Bearer`.
        auth_result: Tells whether a response, its body not yet read, means that the credential was rejected; by
            default, whether its status is 401. For an API that answers 403:
            `lambda response: response.status_code in {401, 403}`.

    Raises:
        InvalidArgument: The id is none that AWS could accept; or when used: the cache is of the other kind.

    A request raises what `cache.get` raises, and SecretValueError if the header cannot hold the value.
    """

    def __init__(
        self,
        cache: SecretCache | AsyncSecretCache,
        secret_id: str,
        value: str | Callable[[Secret], str] | None = None,
        *,
        header: str = "Authorization",
        auth_result: Callable[[httpx.Response], bool] = is_unauthorized,
    ) -> None:
        check_key(Key(secret_id))
        self._cache = cache
        self._secret_id = secret_id
        self._value = value
        self._header = header
        self._auth_result = auth_result

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send a request for `httpx.Client`."""
        if not isinstance(self._cache, SecretCache):
            raise InvalidArgument("httpx.Client needs a SecretCache", hint="or use httpx.AsyncClient")
        attempts = Attempts(self._cache, self._secret_id)
        secret: Secret | None = attempts.start()
        while secret is not None:
            self._put(secret, request)
            response = yield request
            if not self._was_asked(response):
                return
            if not self._auth_result(response):
                attempts.ended(response.status_code)
                return
            secret = attempts.refused(repeatable=_can_be_repeated(request))

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Send a request for `httpx.AsyncClient`."""
        if not isinstance(self._cache, AsyncSecretCache):
            raise InvalidArgument("httpx.AsyncClient needs an AsyncSecretCache", hint="or use httpx.Client")
        attempts = AsyncAttempts(self._cache, self._secret_id)
        secret: Secret | None = await attempts.start()
        while secret is not None:
            self._put(secret, request)
            response = yield request
            if not self._was_asked(response):
                return
            if not self._auth_result(response):
                attempts.ended(response.status_code)
                return
            secret = await attempts.refused(repeatable=_can_be_repeated(request))

    def _put(self, secret: Secret, request: httpx.Request) -> None:
        request.headers[self._header] = header_value(secret, self._value, self._header)

    def _was_asked(self, response: httpx.Response) -> bool:
        """Whether it answers a request with our header, which a redirect may have taken off."""
        return self._header in response.request.headers


def _can_be_repeated(request: httpx.Request) -> bool:
    return isinstance(request.stream, httpx.ByteStream)  # its bytes are in memory
