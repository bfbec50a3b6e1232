"""Which region is asked, when there are replicas of the secrets; pure state, like ``_core``, for both drivers.

The first region is the primary. Only its no is a no: a replica may lack a secret that has not been replicated. A
region that was unavailable is left alone for a while, longer each time, and then one request finds out.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from smcache._core import FIRST_BACKOFF, MAX_BACKOFF
from smcache.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from smcache.errors import SecretCacheError

PRIMARY = 0


class Regions:
    """The regions of one cache, in the order of preference."""

    def __init__(self, count: int, claim: float, backoff: Callable[[int, float, float], float]) -> None:
        self._count = count
        self._share = claim / count  # seconds that a request to one of them may take
        self._claim = claim  # seconds for which one request finds out, and the others go elsewhere
        self._backoff = backoff
        self._failures = [0] * count
        self._retry_at = [-math.inf] * count
        self._silent_since = [math.inf] * count  # when the first request left to which nothing has come back

    def order(self, now: float) -> list[int]:
        """Return all regions, those first which are not known to be unavailable."""
        for region, since in enumerate(self._silent_since):
            if now - since >= self._share:
                self._unavailable(region, now)
        order = sorted(range(self._count), key=lambda region: now < self._retry_at[region])
        if self._failures[order[0]]:
            self._retry_at[order[0]] = now + self._claim
        return order

    def asked(self, region: int, now: float) -> None:
        """Take in that a request leaves; one that hangs may never end."""
        self._silent_since[region] = min(self._silent_since[region], now)

    def ended(self, region: int, error: SecretCacheError | None, now: float) -> bool:
        """Take in how a request to a region ended; return whether the next region is to be asked."""
        if isinstance(error, Unavailable):
            self._unavailable(region, now)
            return True
        self._failures[region] = 0
        self._retry_at[region] = -math.inf
        self._silent_since[region] = math.inf
        return error is not None and region != PRIMARY

    def _unavailable(self, region: int, now: float) -> None:
        self._failures[region] += 1
        self._retry_at[region] = now + self._backoff(self._failures[region], FIRST_BACKOFF, MAX_BACKOFF)
        self._silent_since[region] = math.inf
