# ruff: noqa: SLF001 - what is called here is there for this module
"""What happens to the caches of a process that forks, as gunicorn does with ``--preload``."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smcache.cache import SecretCache

_caches: weakref.WeakSet[SecretCache] = weakref.WeakSet()
_held: list[SecretCache] = []  # while the process forks: the child must not see half a decision


def start_anew_after_fork(cache: SecretCache) -> None:
    """Have the cache start anew in forked children, for as long as it lives."""
    _caches.add(cache)


def _before() -> None:
    for cache in list(_caches):
        cache._hold()
        _held.append(cache)


def _after_in_parent() -> None:
    while _held:
        _held.pop()._let_go()


def _after_in_child() -> None:
    while _held:
        _held.pop()._start_anew_in_child()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
