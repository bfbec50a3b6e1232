"""A secret's value shows itself only when it is asked for, and never changes."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import pprint
import traceback
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pytest

from smcache import InvalidArgument, NoSuchKey, NotJSON, Secret, WrongKind
from smcache.secret import SecretFields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from smcache import SecretCacheError

CANARY = "hunter2-canary"
OBJECT = json.dumps({"username": "app", "password": CANARY, "tls": {"key": CANARY}, "hosts": ["a", {"pw": CANARY}]})


def secret(value: str | bytes = OBJECT) -> Secret:
    return Secret(value, name="prod/db", version_id="v1", arn="arn:x", stages=["AWSCURRENT"])


# --- what it holds ------------------------------------------------------------------------------------------


def test_a_secret_tells_its_particulars() -> None:
    made = datetime(2026, 1, 1, tzinfo=timezone.utc)
    one = Secret("x", name="n", version_id="v", arn="a", stages=iter(["AWSCURRENT", "mine"]), created_at=made)
    assert (one.name, one.version_id, one.arn, one.stages, one.created_at) == (
        "n",
        "v",
        "a",
        ("AWSCURRENT", "mine"),
        made,
    )
    bare = Secret("x", name="n", version_id="v")
    assert (bare.arn, bare.stages, bare.created_at) == ("", (), None)


@pytest.mark.parametrize("value", ["", "plain", OBJECT, "\x00", "ü" * 100])
def test_text_is_had_as_text_and_not_as_bytes(value: str) -> None:
    assert secret(value).string == value
    with pytest.raises(WrongKind, match=r"is a string, not binary.*read \.string"):
        _ = secret(value).binary


@pytest.mark.parametrize("value", [b"", b"\xff\x00", OBJECT.encode()])
def test_bytes_are_had_as_bytes_and_not_as_text_or_json(value: bytes) -> None:
    assert secret(value).binary == value
    with pytest.raises(WrongKind, match=r"is binary, not a string.*read \.binary"):
        _ = secret(value).string
    with pytest.raises(WrongKind):
        secret(value).json()
    with pytest.raises(WrongKind):
        _ = secret(value)["password"]


@pytest.mark.parametrize("value", [None, 1, bytearray(CANARY.encode()), memoryview(CANARY.encode()), {"pw": CANARY}])
def test_another_type_of_value_is_refused_and_not_shown(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="str or bytes, not " + type(value).__name__) as caught:
        Secret(value, name="prod/db", version_id="v1")
    assert hides_the_canary(caught.value)


# --- JSON ---------------------------------------------------------------------------------------------------


def test_json_is_parsed_once() -> None:
    one = secret()
    assert one.json() is one.json()
    assert one["password"] == CANARY
    assert one["tls"]["key"] == CANARY
    assert one["hosts"] == ("a", {"pw": CANARY})
    assert one.json().get("port") is None
    assert dict(one.json())["username"] == "app"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        (CANARY, "is not JSON"),
        ("{'password': 'hunter2-canary'}", "is not JSON"),
        ('{"password": "hunter2-canary"', "is not JSON"),
        ('\ufeff{"password": "hunter2-canary"}', "is not JSON"),
        ("[" * 100_000 + CANARY, "is not JSON"),
        ('{"a":' * 100_000 + CANARY, "is not JSON"),
        ('{"pin": ' + "1" * 5000 + "}", "is not JSON"),
        (f'"{CANARY}"', "not an object"),
        (f'["{CANARY}"]', "not an object"),
        ("1234", "not an object"),
        ("null", "not an object"),
        ("true", "not an object"),
    ],
    ids=range(13),
)
def test_what_is_no_json_object_is_a_clear_error_that_shows_nothing_of_it(text: str, message: str) -> None:
    for read in (secret(text).json, lambda: secret(text)["password"]):
        with pytest.raises(NotJSON, match=message) as caught:
            read()
        assert caught.value.secret_id == "prod/db"
        assert caught.value.hint
        assert hides_the_canary(caught.value)
        assert text not in str(caught.value) or not text
        assert caught.value.__context__ is caught.value.__cause__ is None


def test_the_number_that_is_the_whole_secret_is_not_shown() -> None:
    digits = secret("7357" * 2)
    with pytest.raises(NotJSON) as caught:
        digits.json()
    assert digits.string not in "".join(traceback.format_exception(caught.value))


def test_a_missing_key_names_the_keys_there_are_and_no_value() -> None:
    with pytest.raises(NoSuchKey) as caught:
        _ = secret()["passwrd"]
    assert "no key 'passwrd'; the secret has 'hosts', 'password', 'tls', 'username'" in str(caught.value)
    assert caught.value.secret_id == "prod/db"
    assert hides_the_canary(caught.value)
    with pytest.raises(KeyError):
        _ = secret()["tls"]["cert"]
    with pytest.raises(NoSuchKey, match="the secret has none"):
        _ = secret("{}")["password"]


def hides_the_canary(error: SecretCacheError) -> bool:
    """Look for the canary in all that hangs on an exception: arguments, chain, and our frames' locals."""
    pending: list[BaseException | None] = [error]
    seen = list[BaseException]()
    while pending:
        link = pending.pop()
        if link is None or link in seen:
            continue
        seen.append(link)
        pending += [link.__cause__, link.__context__]
        shown = [str(link), repr(link), repr(link.args), repr(vars(link)), *map(repr, local_values(link))]
        if any(CANARY in text for text in shown):
            return False
    return True


def local_values(error: BaseException) -> Iterator[object]:
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if is_ours(frame):
            yield from frame.f_locals.values()


def is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith("smcache")


def test_the_search_for_the_canary_finds_it() -> None:
    try:
        json.loads(CANARY)
    except ValueError as cause:
        error = NotJSON("x")
        error.__cause__ = cause
        error.args = (cause.args,)
        vars(error)["doc"] = getattr(cause, "doc", "")
    assert not hides_the_canary(error)


# --- redaction ----------------------------------------------------------------------------------------------

SHOWN: dict[str, Callable[[Any], str]] = {
    "repr": repr,
    "str": str,
    "ascii": ascii,
    "format": format,
    "f-string": lambda it: f"{it}",
    "f-string !r": lambda it: f"{it!r}",
    "%s": lambda it: "%s" % (it,),  # noqa: UP031 - what is tried
    "%r": lambda it: "%r" % (it,),  # noqa: UP031 - what is tried
    "in a list": lambda it: repr([it]),
    "in a dict": lambda it: repr({"s": it}),
    "pprint": lambda it: pprint.pformat(it, width=20),
}


@pytest.mark.parametrize("show", SHOWN.values(), ids=SHOWN)
@pytest.mark.parametrize(
    "value", [secret(), secret(CANARY), secret(CANARY.encode()), secret().json(), secret()["tls"], secret()["hosts"]]
)
def test_no_way_of_showing_it_shows_a_value(value: object, show: Callable[[object], str]) -> None:
    shown = show(value)
    assert CANARY not in shown
    assert "redacted" in shown


def test_what_is_shown_says_which_secret_it_is() -> None:
    assert repr(secret()) == "<Secret 'prod/db' version 'v1' AWSCURRENT string [redacted]>"
    assert " binary " in repr(secret(b"x"))
    assert f"{secret():>100}" == repr(secret()).rjust(100)
    assert repr(secret()["tls"]) == "<fields ['key'] [redacted]>"


def test_a_parsed_secret_stays_hidden() -> None:
    one = secret()
    one.json()
    assert CANARY not in repr(one)


def test_logging_shows_no_value(caplog: pytest.LogCaptureFixture) -> None:
    one = secret()
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("test").info("%s %r", one, one.json())
        try:
            _ = one["passwrd"]
        except NoSuchKey:
            logging.getLogger("test").exception("failed with %s", one)
    assert CANARY not in caplog.text
    assert caplog.text.count("redacted") == 3


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", [secret(), secret().json(), [secret()], {"tls": secret()["tls"]}])
def test_it_is_not_pickled_and_says_so(value: object, protocol: int) -> None:
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(value, protocol)


def test_a_copy_is_the_same_object() -> None:
    one = secret()
    assert copy.copy(one) is copy.deepcopy(one) is one
    assert copy.copy(one.json()) is copy.deepcopy(one.json()) is one.json()
    assert copy.deepcopy({"s": one})["s"] is one


# --- immutability -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["name", "version_id", "stages", "_value", "_fields", "string", "anything"])
def test_no_attribute_can_be_set_or_deleted(name: str) -> None:
    one = secret()
    with pytest.raises(AttributeError, match="immutable"):
        setattr(one, name, "x")
    with pytest.raises(AttributeError, match="immutable"):
        delattr(one, name)
    assert one.string == OBJECT


CHANGES: dict[str, Callable[[Any], object]] = {
    "setitem": lambda fields: fields.__setitem__("password", "x"),
    "delitem": lambda fields: fields.__delitem__("password"),
    "ior": lambda fields: fields.__ior__({"password": "x"}),
    "update": lambda fields: fields.update(password="x"),
    "setdefault": lambda fields: fields.setdefault("new", "x"),
    "pop": lambda fields: fields.pop("password", None),
    "popitem": lambda fields: fields.popitem(),
    "clear": lambda fields: fields.clear(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("nested", [False, True])
def test_the_fields_are_read_only_at_every_depth(change: Callable[[Any], object], *, nested: bool) -> None:
    one = secret()
    with pytest.raises(TypeError, match="read-only"):
        change(one["hosts"][1] if nested else one.json())
    assert one.json() == secret().json()


def test_a_secret_is_not_a_container_to_iterate() -> None:
    with pytest.raises(TypeError, match="not iterable"):
        list(secret())
    with pytest.raises(TypeError):
        _ = "password" in secret()  # type: ignore[operator]
    with pytest.raises(TypeError):
        len(secret())  # type: ignore[arg-type]


def test_secrets_are_told_apart_by_identity() -> None:
    one, other = secret(), secret()
    assert one != other
    assert len({one, other, one}) == 2


def test_fields_are_a_dict_for_those_who_want_one() -> None:
    fields = secret().json()
    assert isinstance(fields, SecretFields)
    assert isinstance(fields, dict)
    assert sorted(fields) == ["hosts", "password", "tls", "username"]
