"""A secret's value shows itself nowhere but where it was asked for.

``conftest`` hunts for the same canary in everything the whole suite prints, logs and reports.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import io
import json
import logging
import pickle
import pprint
import socket
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from rich.console import Console
from rich.pretty import Pretty

import smcache
from smcache import SecretCacheError, SecretValueError, _url
from smcache.integrations import _http, _mysql
from smcache.testing import answer, deny, malformed, server_error, throttle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Clock, MakeCache

    from smcache.testing import Fault, PostgreSQL, SecretsManager

NAME = "prod/db"


def shown_by(error: BaseException) -> str:
    """Return all that an error report may show: the chain, its attributes, the locals of all frames but a test's."""
    shown = []
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        each = pending.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        pending += [each.__cause__, each.__context__]
        shown += [str(each), repr(each), repr(each.args), repr(vars(each))]
        for frame, _ in traceback.walk_tb(each.__traceback__):
            if frame.f_code.co_filename != __file__:
                shown.append(pprint.pformat(dict(frame.f_locals)))
    return "\n".join(shown)


def locals_of_ours(error: BaseException) -> str:
    """Return the locals of our frames, as an error report shows them."""
    report = traceback.TracebackException.from_exception(error, capture_locals=True)
    ours = [frame.locals for frame in report.stack if "/smcache/" in frame.filename]
    assert ours
    return repr(ours)


def shown_by_use(use: Callable[[Any], object], secret: smcache.Secret) -> str:
    try:
        use(secret)
    except (SecretCacheError, TypeError) as error:
        return shown_by(error)
    return ""


@pytest.fixture
def nothing_shown(canary: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    with caplog.at_level(logging.DEBUG):
        yield
    logged = [caplog.handler.format(record) for record in caplog.get_records("call")]
    printed = capfd.readouterr()
    assert logged, "at this level botocore logs something"
    assert canary not in "\n".join([*logged, printed.out, printed.err])


@pytest.mark.usefixtures("nothing_shown")
def test_a_cache_at_work_shows_no_value(aws: SecretsManager, make_cache: MakeCache, canary: str) -> None:
    aws.create(NAME, {"password": canary, "nested": {"more": [canary]}})
    cache = make_cache(check_version_first=True)
    secret = cache.get(NAME)
    fields = cache.get_json(NAME)
    assert fields["password"] == canary
    cache.on_rotation(NAME, lambda old, new: 1 / 0)
    aws.put(NAME, {"password": canary + "2"})
    cache.refresh(NAME)
    cache.prefetch([NAME, "missing"])
    rich_text = io.StringIO()
    Console(file=rich_text).print(secret, cache, Pretty(secret))
    console_text = rich_text.getvalue()
    shown = [
        *(repr(thing) for thing in (secret, fields, fields["nested"], cache, cache._core.hot)),
        *(str(thing) for thing in (secret, fields)),
        *(f"{thing} {thing!r} {thing:>20}" for thing in (secret, str(fields))),
        f"{secret} {fields!r}",
        pprint.pformat([secret, {"secret": secret}]),
        repr(cache.metrics.snapshot()),
        repr(vars(cache.metrics)),
        repr(copy.copy(secret)),
        repr(copy.deepcopy([secret, fields])),
        console_text,
    ]
    assert canary not in "\n".join(shown)


def test_nothing_that_holds_a_value_is_pickled_or_dumped(
    aws: SecretsManager, make_cache: MakeCache, canary: str
) -> None:
    aws.create(NAME, {"password": canary})
    cache = make_cache()
    for thing in (cache, smcache.AsyncSecretCache(), cache.get(NAME), cache.get_json(NAME)):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError, match="not pickled"):
                pickle.dumps(thing, protocol)
    with pytest.raises(TypeError):
        json.dumps(cache.get(NAME))


@pytest.mark.usefixtures("nothing_shown")
@pytest.mark.parametrize("fault", ["deny", "throttle", "500", "broken", "cut", "no version", "not utf-8", "error page"])
def test_no_error_shows_a_value(aws: SecretsManager, make_cache: MakeCache, canary: str, fault: str) -> None:
    faults: dict[str, Fault] = {
        "deny": deny(),
        "throttle": throttle(),
        "500": server_error(),
        "broken": malformed(canary.encode()),
        "cut": malformed(f'{{"SecretString": "{canary}'.encode()),
        "no version": answer({"Name": NAME, "SecretString": canary}),
        "not utf-8": malformed(b'{"SecretString": "' + canary.encode() + b'\xff"}'),
        "error page": malformed(b"<html>" + canary.encode()),
    }
    aws.create(NAME, {"password": canary})
    cache = make_cache()
    cache.get(NAME)
    aws.inject(faults[fault], times=None)
    with pytest.raises(SecretCacheError) as caught:
        cache.refresh(NAME)
    assert canary not in shown_by(caught.value)
    assert canary not in shown_by(pickle.loads(pickle.dumps(caught.value)))  # noqa: S301 - our own


@pytest.mark.parametrize("framing", ["content-length: 5000\r\n\r\n", "transfer-encoding: chunked\r\n\r\n1388\r\n"])
@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_no_error_keeps_the_beginning_of_an_answer_or_the_token_of_its_request(
    canary: str, clock: Clock, monkeypatch: pytest.MonkeyPatch, kind: str, framing: str
) -> None:
    """The connection ends in the middle of a body, of which the errors of http.client and aiohttp keep a part."""

    def break_off(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the test has ended
            while True:
                connection, _ = listener.accept()
                with connection:
                    request = connection.recv(65_536)
                    while request and not request.endswith(b"}"):
                        request = connection.recv(65_536)
                    connection.sendall(f'HTTP/1.1 200 OK\r\n{framing}{{"SecretString": "{canary}"'.encode())

    def read() -> None:
        with smcache.SecretCache(clock=clock, sleep=clock.sleep) as cache:
            cache.get(NAME)

    async def read_in_loop() -> None:
        async with smcache.AsyncSecretCache(clock=clock, sleep=clock.async_sleep) as cache:
            await cache.get(NAME)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        monkeypatch.setenv("AWS_SESSION_TOKEN", f"token {canary}")
        serving = threading.Thread(target=break_off, args=(listener,), daemon=True)
        serving.start()
        with pytest.raises(smcache.Unavailable) as caught:
            read() if kind == "threads" else asyncio.run(read_in_loop())
        listener.shutdown(socket.SHUT_RDWR)
        serving.join(30)
    assert canary not in shown_by(caught.value)


@pytest.mark.usefixtures("nothing_shown")
def test_no_error_about_a_value_shows_it(aws: SecretsManager, make_cache: MakeCache, canary: str) -> None:
    aws.create("text", canary)
    aws.create("list", json.dumps([canary]))
    aws.create("deep", "[" * 100_000 + canary)
    aws.create("fields", {"key": canary})
    aws.create("bytes", canary.encode())
    cache = make_cache()
    uses: list[Callable[[Any], object]] = [
        lambda s: s.string,
        lambda s: s.binary,
        lambda s: s.json(),
        lambda s: s["nokey"],
        iter,
    ]
    for name in ("text", "list", "deep", "fields", "bytes"):
        secret = cache.get(name)
        for use in uses:
            shown = shown_by_use(use, secret)
            assert canary not in shown, name
    for wrong in (bytearray(canary.encode()), [canary], None):
        with pytest.raises(SecretCacheError) as caught:
            smcache.Secret(wrong, name="x", version_id="1")  # type: ignore[arg-type]
        assert canary not in shown_by(caught.value)


def url(secret: smcache.Secret) -> str:
    return secret.url()


def libpq_arguments(secret: smcache.Secret) -> dict[str, Any]:
    return _url.arguments(secret, _url.LIBPQ, {})


def mysql_arguments(secret: smcache.Secret) -> dict[str, Any]:
    return _mysql.arguments(secret, {})


def header(secret: smcache.Secret) -> str:
    return _http.header_value(secret, "password", "X-Api-Key")


WHOLE = {"engine": "postgres", "host": "h", "username": "u"}


@pytest.mark.parametrize(
    ("use", "fields", "make_password"),
    [
        (url, {"engine": "postgres", "username": "u"}, str),
        (url, {"engine": "postgres", "host": "h"}, str),
        (url, {**WHOLE, "engine": "none"}, str),
        *((use, {**WHOLE, "port": "x"}, str) for use in (url, libpq_arguments, mysql_arguments)),
        *((use, {**WHOLE, "port": "9" * 5000}, str) for use in (url, libpq_arguments)),
        *((use, {**WHOLE, "host": 5}, str) for use in (url, libpq_arguments, mysql_arguments)),
        *((use, {**WHOLE, "dbname": 5}, str) for use in (url, libpq_arguments, mysql_arguments)),
        *((use, {**WHOLE, "username": 5}, str) for use in (url, libpq_arguments, mysql_arguments)),
        *((use, {"host": "h", "engine": "redis", "username": 5}, str) for use in (url, libpq_arguments)),
        *((use, WHOLE, lambda canary: [canary]) for use in (url, libpq_arguments, mysql_arguments, header)),
        *((use, WHOLE, lambda canary: {"nested": canary}) for use in (url, libpq_arguments, mysql_arguments, header)),
        (mysql_arguments, {"username": "u"}, str),
        (header, {}, lambda canary: canary + "\n"),
        (header, {}, lambda canary: canary + "é"),
    ],
)
def test_an_error_about_a_field_shows_no_other(
    canary: str, use: Callable[[smcache.Secret], object], fields: dict[str, Any], make_password: Callable[[str], object]
) -> None:
    secret = smcache.Secret(json.dumps({**fields, "password": make_password(canary)}), name=NAME, version_id="v" * 32)
    with pytest.raises(SecretValueError) as caught:
        use(secret)
    assert canary not in locals_of_ours(caught.value)
    assert canary not in shown_by(caught.value)


@pytest.mark.parametrize("use", [url, libpq_arguments, mysql_arguments])
def test_a_missing_password_shows_no_username(canary: str, use: Callable[[smcache.Secret], object]) -> None:
    secret = smcache.Secret(json.dumps({**WHOLE, "username": canary}), name=NAME, version_id="v" * 32)
    with pytest.raises(SecretValueError, match="no key 'password'") as caught:
        use(secret)
    assert canary not in locals_of_ours(caught.value)


@pytest.mark.usefixtures("nothing_shown")
def test_a_rejected_credential_shows_no_value(
    aws: SecretsManager, pg: PostgreSQL, make_cache: MakeCache, canary: str
) -> None:
    aws.create(NAME, pg.secret("canary_role", canary))
    cache = make_cache()

    @cache.retry_on_auth_error(NAME)
    def connect(secret: smcache.Secret) -> Any:
        return psycopg.connect(
            host=secret["host"], port=secret["port"], user=secret["username"], password=secret["password"]
        )

    with pytest.raises(psycopg.OperationalError) as caught:
        connect()
    assert canary not in locals_of_ours(caught.value)
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        sys.excepthook(type(caught.value), caught.value, caught.value.__traceback__)
    assert canary not in printed.getvalue()
