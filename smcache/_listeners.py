"""Who is to hear of what has happened; the same for both drivers.

The core files events while its driver decides. Once the lock is free again the driver hands them over here (``take``),
and delivers them one by one (``upcoming``, ``concerned``) where nobody waits for it, so that a listener that is slow,
or raises, delays no reader, no fetch and no recovery.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

from smcache.errors import InvalidArgument
from smcache.events import Denied, Recovered, Rotated, ServedStale

if TYPE_CHECKING:
    from collections.abc import Callable

    from smcache.events import Event
    from smcache.secret import Secret

    Listener: TypeAlias = Callable[[Any], Any]

logger = logging.getLogger("smcache")

MAX_WAITING = 10_000  # events; for listeners that are slower than what happens, the oldest are dropped
CHANGES = (Rotated, ServedStale, Denied, Recovered)

#: When the event that a listener is told happened, in nanoseconds since 1970: it may be told much later.
happened_at: contextvars.ContextVar[int] = contextvars.ContextVar("smcache_happened_at")


class Happened(deque[Any]):
    """Events as they are filed, each with its context: who takes them over may be another reader."""

    def append(self, event: Event, /) -> None:
        """File an event; listeners find the trace or the request in which it happened."""
        context = contextvars.copy_context()
        context.run(happened_at.set, time.time_ns())
        super().append((event, context))


class Listeners:
    """The listeners of one cache, and the events they have not been told yet."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler or a finaliser may call the cache while we are inside
        self._all: tuple[tuple[tuple[type, ...], Listener], ...] = ((CHANGES, log_change),)
        self._waiting: deque[tuple[Event, contextvars.Context]] = deque(maxlen=MAX_WAITING)
        self._delivering = False

    def add(self, listener: Listener, *kinds: type) -> Callable[[], None]:
        """Add a listener to events of these kinds, or of all; return a function that takes it off again.

        Raises:
            InvalidArgument: The listener cannot be called.
        """
        if not callable(listener):
            raise InvalidArgument(f"a listener is a function, not {type(listener).__name__}")
        entry = (kinds or (object,), listener)
        with self._lock:
            self._all = (*self._all, entry)

        def cancel() -> None:
            with self._lock:
                self._all = tuple(other for other in self._all if other is not entry)

        return cancel

    def take(self, events: deque[Any]) -> bool:
        """Take over what has happened; return whether the caller must see to it that it is delivered."""
        with self._lock:
            while events:
                event, context = events.popleft()
                if any(isinstance(event, kinds) for kinds, _ in self._all):
                    self._waiting.append((event, context))
            if self._delivering or not self._waiting:
                return False
            self._delivering = True
            return True

    def upcoming(self) -> tuple[Event, contextvars.Context] | None:
        """Return the next event to deliver, or None: whoever delivers is done."""
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._delivering = False
            return None

    def concerned(self, event: Event) -> list[Listener]:
        """Return whom to tell of an event."""
        return [listener for kinds, listener in self._all if isinstance(event, kinds)]

    def stopped(self) -> None:
        """Take in that whoever delivers was stopped: the next event has somebody deliver what is left."""
        with self._lock:
            self._delivering = False

    def start_anew(self) -> None:
        """Forget what is to be delivered: it is left to the parent process."""
        self._lock = threading.RLock()
        self._waiting.clear()
        self._delivering = False


def rotation_listener(secret_id: str, callback: Callable[[Secret, Secret], object]) -> Listener:
    """Return a listener that calls ``callback(old, new)`` when this secret has rotated.

    Raises:
        InvalidArgument: The callback cannot be called.
    """
    if not callable(callback):
        raise InvalidArgument(f"on_rotation() takes a function, not {type(callback).__name__}")

    def tell(event: Rotated) -> object:
        if secret_id in (event.secret_id, event.new.name, event.new.arn, event.new.arn[:-7]):
            return callback(event.old, event.new)
        return None

    return tell


def log_change(event: Event) -> None:
    """Log that the state of a secret has changed."""
    match event:
        case Rotated(secret_id, old, new):
            logger.info("%s rotated from version %s to %s", secret_id, old.version_id, new.version_id)
        case ServedStale(secret_id, stage, version_id):
            logger.warning("%s is stale: AWS is unavailable, %s %s is served on", secret_id, stage, version_id)
        case Denied(secret_id, stage, code):
            logger.error("%s was denied by AWS (%s): %s", secret_id, stage, code)
        case Recovered(secret_id, stage, version_id):
            logger.info("%s has recovered: %s is version %s", secret_id, stage, version_id)


def log_failed_listener(event: Event, error: BaseException) -> None:
    """Log that a listener failed; it goes no further."""
    logger.error("a listener failed on %s of %s", type(event).__name__, event.secret_id, exc_info=error)
