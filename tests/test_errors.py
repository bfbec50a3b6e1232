"""One tree of errors; each survives pickling, and each raise is a new object."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest

from smcache import errors
from smcache.errors import (
    AccessDenied,
    Denied,
    InvalidArgument,
    MissingExtra,
    NoSuchKey,
    NotConfigured,
    SecretCacheError,
    SourceFailed,
    Throttled,
    Unavailable,
)

ALL: list[type[SecretCacheError]] = [
    value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, SecretCacheError)
]
PLAIN = [kind for kind in ALL if kind is not MissingExtra]


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    drawn: dict[str, tuple[str, str | None]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    (?P<rails>[│├└─ ]*)(?P<name>[A-Z]\w+)(?: \((?P<builtin>\w+)\))?", line)
        if found:
            depth = len(found["rails"]) // 4
            path[depth:] = [found["name"]]
            drawn[found["name"]] = (path[depth - 1] if depth else "Exception", found["builtin"])
    real = {
        kind.__name__: (kind.__bases__[0].__name__, *(base.__name__ for base in kind.__bases__[1:])) for kind in ALL
    }
    assert {name: tuple(filter(None, bases)) for name, bases in drawn.items()} == real


def test_every_error_is_public() -> None:
    assert errors.__all__ == sorted(kind.__name__ for kind in ALL)


@pytest.mark.parametrize("kind", ALL)
def test_every_error_says_whose_it_is(kind: type[SecretCacheError]) -> None:
    assert kind.__doc__


def full(kind: type[SecretCacheError]) -> SecretCacheError:
    return kind("it broke", secret_id="prod/db", code="SomeException", hint="mend it", requests=3)


@pytest.mark.parametrize("kind", PLAIN)
def test_an_error_carries_what_it_was_given(kind: type[SecretCacheError]) -> None:
    error = full(kind)
    assert (error.message, error.secret_id, error.code, error.hint, error.requests) == (
        "it broke",
        "prod/db",
        "SomeException",
        "mend it",
        3,
    )
    assert error.args == ("it broke",)
    assert str(error) == "'prod/db': it broke [SomeException]. Hint: mend it"


@pytest.mark.parametrize("kind", PLAIN)
def test_an_error_without_particulars_has_the_code_and_the_hint_of_its_class(kind: type[SecretCacheError]) -> None:
    error = kind("it broke")
    assert (error.secret_id, error.code, error.hint, error.requests) == ("", kind.__name__, kind.default_hint, 1)
    assert str(error) == "it broke" + (f". Hint: {kind.default_hint}" if kind.default_hint else "")


@pytest.mark.parametrize("error", [*map(full, PLAIN), MissingExtra("the demo", "demo")], ids=lambda error: error.code)
def test_an_error_survives_pickling_and_copying_whole(error: SecretCacheError) -> None:
    copies = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]  # noqa: S301 - our own bytes
    for again in [*copies, copy.copy(error), copy.deepcopy(error)]:
        same(again, error)


@pytest.mark.parametrize("error", [*map(full, PLAIN), MissingExtra("the demo", "demo")], ids=lambda error: error.code)
def test_fresh_is_a_new_object_with_the_same_particulars_and_cause_and_no_traceback(error: SecretCacheError) -> None:
    error.__cause__ = cause = OSError("AWS's own")
    with pytest.raises(SecretCacheError):
        raise error
    again = error.fresh()
    same(again, error)
    assert again.__cause__ is cause
    assert again.__traceback__ is None
    assert error.__traceback__ is not None


def same(again: SecretCacheError, error: SecretCacheError) -> None:
    assert again is not error
    assert type(again) is type(error)
    assert vars(again).keys() == vars(error).keys()
    assert {k: v for k, v in vars(again).items() if k != "__notes__"} == vars(error)
    assert (again.args, str(again)) == (error.args, str(error))


def test_raising_fresh_ones_grows_no_traceback() -> None:
    remembered = Unavailable("down")

    def frames() -> int:
        with pytest.raises(Unavailable) as caught:
            raise remembered.fresh()
        return len(caught.traceback)

    assert [frames() for _ in range(5)] == [1] * 5


def test_a_missing_extra_gives_the_pip_line() -> None:
    error = MissingExtra("the demo", "demo")
    assert str(error) == "the demo needs smcache[demo]. Hint: pip install 'smcache[demo]'"
    assert isinstance(error, ImportError)


def test_a_missing_key_reads_like_a_sentence_and_not_like_a_KeyError() -> None:  # noqa: N802 - the class
    assert str(NoSuchKey("no key 'a'")) == "no key 'a'"
    assert isinstance(NoSuchKey("x"), KeyError)


def test_a_wrong_argument_is_a_ValueError() -> None:  # noqa: N802 - the class
    assert issubclass(InvalidArgument, ValueError)


def test_access_denied_names_all_three_layers() -> None:
    for layer in ("IAM", "resource policy", "kms:Decrypt", "AWS-managed key"):
        assert layer in AccessDenied.default_hint


@pytest.mark.parametrize("kind", [kind for kind in ALL if issubclass(kind, Unavailable)])
def test_what_passes_by_itself_is_asked_again_and_what_does_not_is_not(kind: type[Unavailable]) -> None:
    assert kind.retryable == (kind not in (NotConfigured, SourceFailed))


def test_denied_and_unavailable_have_nothing_in_common() -> None:
    assert not [kind for kind in ALL if issubclass(kind, Denied) and issubclass(kind, Unavailable)]
    assert issubclass(Throttled, Unavailable)
