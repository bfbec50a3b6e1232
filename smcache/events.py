"""What happens to the secrets of a cache, as told to the listeners of ``cache.subscribe``.

No event holds a value but ``Rotated``, whose two ``Secret`` objects show theirs to nobody who does not ask for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from smcache.secret import Secret

__all__ = [
    "AuthFailed",
    "AuthRecovered",
    "Denied",
    "Event",
    "Fetched",
    "Recovered",
    "Rotated",
    "ServedStale",
    "Throttled",
]


@dataclass(frozen=True, slots=True)
class Fetched:
    """A fetch of one secret has ended, retries included. A batch that fails as a whole says nothing of its secrets.

    Attributes:
        secret_id: The secret as the caller named it.
        stage: The staging label asked for; empty for a pinned version, which is read whatever its labels.
        version_id: The version that came; empty if none did.
        seconds: How long it took.
        code: Empty if it succeeded; otherwise AWS's error code, or ours where AWS did not speak.
    """

    secret_id: str
    stage: str
    version_id: str
    seconds: float
    code: str


@dataclass(frozen=True, slots=True)
class Rotated:
    """AWSCURRENT was found on another version than before."""

    secret_id: str
    old: Secret
    new: Secret


@dataclass(frozen=True, slots=True)
class Throttled:
    """AWS refused a request because they come too fast. ``secret_id`` is empty for a batch."""

    secret_id: str
    operation: str


@dataclass(frozen=True, slots=True)
class ServedStale:
    """A value past its TTL was served for the first time, because AWS is unavailable; ``Recovered`` ends it."""

    secret_id: str
    stage: str
    version_id: str


@dataclass(frozen=True, slots=True)
class Denied:
    """AWS has said no, for the first time since it last said yes; ``Recovered`` ends it. Never of AWSPENDING.

    Attributes:
        secret_id: The secret as the caller named it.
        stage: The staging label asked for.
        code: AWS's error code, such as ``AccessDeniedException``.
    """

    secret_id: str
    stage: str
    code: str


@dataclass(frozen=True, slots=True)
class Recovered:
    """AWS gives the value again, after ``ServedStale`` or ``Denied``."""

    secret_id: str
    stage: str
    version_id: str


@dataclass(frozen=True, slots=True)
class AuthFailed:
    """A server has rejected this version of a credential."""

    secret_id: str
    version_id: str


@dataclass(frozen=True, slots=True)
class AuthRecovered:
    """After such a failure, the same call succeeded with this version."""

    secret_id: str
    version_id: str


Event: TypeAlias = Fetched | Rotated | Throttled | ServedStale | Denied | Recovered | AuthFailed | AuthRecovered
