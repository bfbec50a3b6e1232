"""Where a cache takes time and chance from, unless it is told otherwise."""

from __future__ import annotations

import functools
import os
import random
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


#: Not that of the module: environments that Lambda restores from one snapshot would all draw the same.
default_jitter: Callable[[], float] = random.SystemRandom().random


LEAST_FREEZE = 0.5  # seconds; less lies between the readings of two clocks


def default_clock() -> Callable[[], float]:
    """Return a clock that goes on while the process is stopped, and is indifferent to the time of day being set.

    ``time.monotonic`` stands still while a laptop sleeps, on Linux and macOS (clock_gettime(2): CLOCK_BOOTTIME "also
    includes any time that the system is suspended"; on macOS CLOCK_MONOTONIC does).
    """
    if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:
        return thawing_clock(time.monotonic, time.time)
    including_sleep = "CLOCK_MONOTONIC" if sys.platform == "darwin" else "CLOCK_BOOTTIME"
    if not hasattr(time, including_sleep):
        return time.monotonic  # Windows, where it goes on
    clock = functools.partial(time.clock_gettime, getattr(time, including_sleep))
    try:
        clock()
    except OSError:  # a sandbox without it
        return time.monotonic
    return clock


def thawing_clock(monotonic: Callable[[], float], time_of_day: Callable[[], float]) -> Callable[[], float]:
    """Return a clock for Lambda, which freezes the whole machine between invocations: no clock in it goes on.

    Afterwards only the time of day is put right. So where it leaps ahead of ``monotonic``, that counts as time that has
    passed; where it is set back, nothing has.
    """
    ahead = time_of_day() - monotonic()
    frozen = 0.0

    def clock() -> float:
        nonlocal ahead, frozen
        now = monotonic()
        leap = time_of_day() - now - ahead
        if leap < 0 or leap > LEAST_FREEZE:  # a shorter freeze is counted with the next ones
            ahead += leap
            frozen += max(0.0, leap)
        return now + frozen

    return clock
