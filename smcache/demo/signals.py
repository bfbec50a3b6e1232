"""Ctrl-C and SIGTERM end the demo between two steps, never inside one: no traceback, nothing left behind."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from typing_extensions import Self

__all__ = ["Interrupted", "Signals"]

TICK = 0.1  # seconds


class Interrupted(Exception):
    """A signal asks the demo to end."""


class Signals:
    """Takes SIGINT and SIGTERM in the main thread for the length of a ``with`` block.

    A handler that raises could do so in a finalizer or an import's callback, where Python prints the traceback
    and goes on. This one takes a note.

    Attributes:
        caught: The number of the first signal, or None.
    """

    def __init__(self) -> None:
        self.caught: int | None = None

    def check(self) -> None:
        """Raise Interrupted if there was a signal."""
        if self.caught is not None:
            raise Interrupted

    def pause(self, seconds: float, tick: Callable[[], object]) -> None:
        """Sleep, calling ``tick`` now and then, and raise Interrupted soon after a signal."""
        until = time.perf_counter() + seconds
        self.check()
        while (left := until - time.perf_counter()) > 0:
            time.sleep(min(left, TICK))
            self.check()
            tick()

    def _note(self, number: int, _: FrameType | None) -> None:
        self.caught = self.caught or number

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
