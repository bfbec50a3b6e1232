"""API keys and bearer tokens for requests, from a cache: a rotated one is noticed by its 401 and replaced."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from requests.auth import AuthBase
from requests.exceptions import UnrewindableBodyError
from requests.sessions import SessionRedirectMixin
from requests.utils import rewind_body

from smcache._core import Key, check_key
from smcache.integrations._http import Attempts, header_value, is_unauthorized

if TYPE_CHECKING:
    from collections.abc import Callable

    from requests import PreparedRequest, Response

    from smcache.cache import SecretCache
    from smcache.secret import Secret

__all__ = ["SecretAuth"]


class SecretAuth(AuthBase):
    """Put a secret into a header of each request, and another version of it after a 401.

    `SecretAuth(cache, "prod/api", "token")` sends `Authorization: Bearer <token>`, and
    `SecretAuth(cache, "prod/api", "key", header="X-Api-Key")` sends `X-Api-Key: <key>`.

    A request that is answered with 401 is sent again with another version of the secret, once for each that there
    is, as `retry_on_auth_error` does it: AWSCURRENT as AWS has it now, then the AWSPENDING of a rotation under way.
    What the server takes, later requests start from; 429 and 5xx say nothing of that. A key that is simply
    wrong costs one request, not two. A request whose body cannot be read twice is not sent again: its 401 is returned
    at once, and the next request has the other version. A redirect to another host does not get the header, whatever
    its name.

    Args:
        cache: Where the secret comes from.
        secret_id: Its name or ARN.
        value: The key of the JSON secret that holds it, or a function that makes the header's whole value from a
            `Secret`. Without it, the whole string of the secret.
        header: The header's name. In `Authorization`, what no function made is preceded by `Bearer`.
        auth_result: Tells whether a response means that the credential was rejected; by default, whether its status
            is 401. For an API that answers 403: `lambda response: response.status_code in {401, 403}`.

    Raises:
        InvalidArgument: The id is none that AWS could accept.

    A request raises what `cache.get` raises, and SecretValueError if the header cannot hold the value.
    """

    def __init__(
        self,
        cache: SecretCache,
        secret_id: str,
        value: str | Callable[[Secret], str] | None = None,
        *,
        header: str = "Authorization",
        auth_result: Callable[[Response], bool] = is_unauthorized,
    ) -> None:
        check_key(Key(secret_id))
        self._cache = cache
        self._secret_id = secret_id
        self._value = value
        self._header = header
        self._auth_result = auth_result

    def __call__(self, r: PreparedRequest) -> PreparedRequest:
        """Put the secret into a request that is about to be sent."""
        attempts = Attempts(self._cache, self._secret_id)
        r.headers[self._header] = self._line(attempts.start())
        r.register_hook("response", functools.partial(self._look, attempts, r.url or ""))
        return r

    def _look(self, attempts: Attempts, home: str, response: Response, **how_sent: Any) -> Response:
        """Look at an answer; send its request again, while it is refused and there is another version."""
        request = response.request
        if _is_elsewhere(home, request.url or ""):
            return response
        if response.is_redirect:  # says nothing of the secret; requests copies the headers to where it leads
            if _is_elsewhere(home, urljoin(response.url, response.headers["location"])):
                request.headers.pop(self._header, None)
            return response
        secret = attempts.secret or attempts.start()  # it has ended when a prepared request is sent once more
        while self._auth_result(response):
            repeatable = _rewound(request)
            if request.headers.get(self._header) == self._line(secret):
                other = attempts.refused(repeatable=repeatable)
                if other is None:
                    return response
                secret = other
            elif not repeatable:
                return response
            request.headers[self._header] = self._line(secret)  # no copy, as HTTPDigestAuth: redirects are made from it
            response = _sent_again(response, how_sent)
        attempts.ended(response.status_code)
        return response

    def _line(self, secret: Secret) -> str:
        return header_value(secret, self._value, self._header)


def _is_elsewhere(home: str, url: str) -> bool:
    """Whether requests itself would keep Authorization from a URL."""
    return SessionRedirectMixin().should_strip_auth(home, url)


def _sent_again(refused: Response, how_sent: dict[str, Any]) -> Response:
    _ = refused.content  # read to its end, so that the connection can be used again
    refused.close()
    response: Response = refused.connection.send(refused.request, **how_sent)
    response.history.append(refused)
    return response


def _rewound(request: PreparedRequest) -> bool:
    """Bring the body back to its beginning; False if that cannot be done."""
    if request.body is None or isinstance(request.body, str | bytes):
        return True
    try:
        rewind_body(request)
    except UnrewindableBodyError:
        return False
    return True
