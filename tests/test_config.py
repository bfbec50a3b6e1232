"""CacheConfig refuses at construction what could not work later."""

from __future__ import annotations

import dataclasses
import math
from decimal import Decimal
from typing import Any

import pytest

from smcache import CacheConfig, InvalidArgument

DURATIONS = [
    "ttl",
    "max_stale",
    "negative_ttl",
    "fetch_timeout",
    "rotation_window",
    "auth_cooldown",
    "max_auth_cooldown",
]
SHARES = ["jitter", "refresh_after"]
NO_NUMBERS: list[object] = [None, "5", b"5", True, False, [], math.nan, 1j, Decimal(5), object]


def test_the_defaults_are_those_of_the_design() -> None:
    assert dataclasses.asdict(CacheConfig()) == {
        "ttl": 300.0,
        "jitter": 0.1,
        "refresh_after": 0.8,
        "max_stale": 86_400.0,
        "negative_ttl": 5.0,
        "fetch_timeout": 10.0,
        "max_size": 1024,
        "check_version_first": False,
        "rotation_window": 60.0,
        "auth_cooldown": 5.0,
        "max_auth_cooldown": 300.0,
    }


def test_every_setting_is_tried_below() -> None:
    names = {field.name for field in dataclasses.fields(CacheConfig)}
    assert names == {*DURATIONS, *SHARES, "max_size", "check_version_first"}


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize("value", [*NO_NUMBERS, -1, -0.001, -math.inf])
def test_a_duration_is_a_number_of_seconds_from_0(name: str, value: object) -> None:
    refused(name, value)


@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("value", [*NO_NUMBERS, -0.001, 1.001, math.inf])
def test_a_share_lies_between_0_and_1(name: str, value: object) -> None:
    refused(name, value)


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0, -1, 1.5, 2.0, math.inf])
def test_the_size_is_a_whole_number_from_1(value: object) -> None:
    refused("max_size", value)


@pytest.mark.parametrize("value", [None, 0, 1, "yes"])
def test_the_switch_is_a_bool(value: object) -> None:
    refused("check_version_first", value)


@pytest.mark.parametrize("value", [0, 0.0, math.inf])
def test_a_fetch_timeout_is_finite_and_more_than_0(value: float) -> None:
    refused("fetch_timeout", value)


@pytest.mark.parametrize("name", ["jitter", "refresh_after"])
def test_a_whole_number_too_large_for_a_float_is_refused_like_any_other(name: str) -> None:
    refused(name, 10**400)


@pytest.mark.parametrize(
    "settings",
    [
        *({name: 0} for name in DURATIONS if name not in ("fetch_timeout", "max_auth_cooldown")),
        *({name: 2.5} for name in DURATIONS if name != "max_auth_cooldown"),
        *({name: math.inf} for name in DURATIONS if name not in ("fetch_timeout", "auth_cooldown", "rotation_window")),
        {"auth_cooldown": 0, "max_auth_cooldown": 0},
        {"auth_cooldown": 7, "max_auth_cooldown": 7},
        {"jitter": 0, "refresh_after": 1},
        {"jitter": 1, "refresh_after": 0},
        {"max_size": 1},
        {"check_version_first": True},
    ],
    ids=str,
)
def test_the_ends_of_each_range_are_in_it(settings: dict[str, Any]) -> None:
    config = CacheConfig(**settings)
    assert {name: getattr(config, name) for name in settings} == settings


def test_a_cooldown_longer_than_its_maximum_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="max_auth_cooldown=300"):
        CacheConfig(auth_cooldown=600, max_auth_cooldown=300)


def test_settings_are_named_not_counted_and_never_changed() -> None:
    with pytest.raises(TypeError):
        CacheConfig(300)  # type: ignore[call-arg]
    with pytest.raises(dataclasses.FrozenInstanceError):
        CacheConfig().ttl = 1  # type: ignore[misc]
    with pytest.raises(TypeError, match="tll"):
        CacheConfig(tll=1)  # type: ignore[call-arg]


def test_equal_settings_are_equal() -> None:
    assert CacheConfig(ttl=5) == CacheConfig(ttl=5) != CacheConfig(ttl=6)
    assert dataclasses.replace(CacheConfig(ttl=5), jitter=0).ttl == 5


def refused(name: str, value: object) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(InvalidArgument) as caught:
        CacheConfig(**settings)
    assert f"CacheConfig({name}={value!r}): expected " in str(caught.value)
