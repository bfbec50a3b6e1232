"""Who is to hear of a rotation; the same for both drivers, which call them outside every lock."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, TypeAlias

from smcache.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable

    from smcache._core import Rotation
    from smcache.secret import Secret

    Callback: TypeAlias = Callable[[Secret, Secret], Any]

logger = logging.getLogger("smcache")


class Listeners:
    """The callbacks of ``on_rotation``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: tuple[tuple[str, Callback], ...] = ()

    def add(self, secret_id: str, callback: Callback) -> Callable[[], None]:
        """Add a callback; return a function that takes it off again.

        Raises:
            InvalidArgument: The callback cannot be called.
        """
        if not callable(callback):
            raise InvalidArgument(f"on_rotation() takes a function, not {type(callback).__name__}")
        listener = (secret_id, callback)
        with self._lock:
            self._all = (*self._all, listener)

        def cancel() -> None:
            with self._lock:
                self._all = tuple(other for other in self._all if other is not listener)

        return cancel

    def concerned(self, rotation: Rotation) -> list[Callback]:
        """Return the callbacks to call with the old and the new version; log the rotation."""
        new = rotation.new
        logger.info("%s rotated from version %s to %s", new.name, rotation.old.version_id, new.version_id)
        return [callback for name, callback in self._all if name in (rotation.key.secret_id, new.name, new.arn)]


def log_failed_callback(rotation: Rotation, error: Exception) -> None:
    """Log that a callback failed; it goes no further."""
    logger.error("an on_rotation callback of %s failed", rotation.new.name, exc_info=error)
