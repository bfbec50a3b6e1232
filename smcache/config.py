"""CacheConfig: how long values live, and how hard AWS is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from smcache.errors import InvalidArgument

__all__ = ["CacheConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheConfig:
    """Settings of a cache, checked when they are made. Every duration is a float in seconds.

    Attributes:
        ttl: How long a value is fresh, before jitter. 0 asks AWS at every read (still one request at a time).
        jitter: The largest share of ``ttl`` taken off, at random per fetch, so that fleets spread. 0 to 1. A
            fleet that starts at once asks again within 24 s with 0.1; with 0.3 within 72 s, for 2 % more requests.
        refresh_after: The share of the shortened TTL after which the first reader starts a refresh in the
            background. 0 to 1; 1 refreshes only when the value has expired, and readers wait for it.
        max_stale: How long past its TTL a value is still served while AWS is unavailable.
        negative_ttl: How long an error is remembered when there is no value to serve.
        fetch_timeout: The longest a fetch may take, retries included. Who can be served an old value waits a second.
        max_size: How many values are kept; the least recently used goes first.
        check_version_first: Ask DescribeSecret whether the version has changed before fetching the value. Two
            requests instead of one when it has; for those whose KMS bill or plaintext traffic matters more.
        rotation_window: How long a rejected credential waits for a rotation under way to finish.
        auth_cooldown: How long a rejection that no rotation explains causes no further requests; doubles
            each time it happens again.
        max_auth_cooldown: Where that doubling ends.

    Raises:
        InvalidArgument: A value is no number, NaN, or out of its range.
    """

    ttl: float = 300.0
    jitter: float = 0.1
    refresh_after: float = 0.8
    max_stale: float = 86_400.0
    negative_ttl: float = 5.0
    fetch_timeout: float = 10.0
    max_size: int = 1024
    check_version_first: bool = False
    rotation_window: float = 60.0
    auth_cooldown: float = 5.0
    max_auth_cooldown: float = 300.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "check_version_first":
                _require(isinstance(value, bool), field.name, value, "True or False")
            elif field.name == "max_size":
                _require(_is_number(value, int) and value >= 1, field.name, value, "a whole number from 1")
            elif field.name in ("jitter", "refresh_after"):
                _require(_is_number(value) and 0 <= value <= 1, field.name, value, "a share from 0 to 1")
            else:
                _require(_is_number(value) and value >= 0, field.name, value, "seconds, 0 or more")
        _require(0 < self.fetch_timeout < math.inf, "fetch_timeout", self.fetch_timeout, "more than 0, and finite")
        _require(self.rotation_window < math.inf, "rotation_window", self.rotation_window, "a finite time")
        least = self.auth_cooldown
        _require(self.max_auth_cooldown >= least, "max_auth_cooldown", self.max_auth_cooldown, f"{least} or more")


def _is_number(value: object, kind: type | tuple[type, ...] = (int, float)) -> bool:
    # A NaN differs from itself; math.isnan refuses huge whole numbers.
    return isinstance(value, kind) and not isinstance(value, bool) and value == value  # noqa: PLR0124


def _require(holds: bool, name: str, value: object, expected: str) -> None:  # noqa: FBT001 - an assertion's condition
    if not holds:
        raise InvalidArgument(f"CacheConfig({name}={value!r}): expected {expected}")
