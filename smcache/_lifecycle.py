# ruff: noqa: SLF001 - what is called here is there for this module
"""What happens to the caches of a process that forks, as gunicorn does with ``--preload``, or that Lambda restores.

SnapStart starts many environments from one snapshot of a process, days later. How old the values in it are by then,
no clock tells: https://docs.aws.amazon.com/lambda/latest/dg/snapstart-runtime-hooks-python.html
"""

from __future__ import annotations

import functools
import importlib
import os
import threading
import weakref
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from smcache.aio import AsyncSecretCache
    from smcache.cache import SecretCache

    Cache: TypeAlias = SecretCache | AsyncSecretCache

_caches: weakref.WeakSet[Cache] = weakref.WeakSet()
_held: list[Cache] = []  # while the process forks: the child must not see half a decision
_forking = threading.Lock()  # the list is that of one fork at a time


def follow_process(cache: Cache) -> None:
    """Have the cache start anew in forked children and after a restore, for as long as it lives."""
    with _forking:  # no set may grow while it is gone through
        _caches.add(cache)
    _register_with_snapstart()


@functools.cache
def _register_with_snapstart() -> None:
    try:
        from snapshot_restore_py import register_after_restore  # noqa: PLC0415 - part of Lambda's runtime
    except ImportError:
        return
    register_after_restore(_after_restore)


def _after_restore() -> None:
    for cache in list(_caches):
        cache._doubt_values()


def _before_fork() -> None:
    if _caches:  # another thread may be importing it: the child would have half of it for ever
        importlib.import_module("smcache._retry")
    _forking.acquire()
    for cache in list(_caches):
        cache._hold()
        _held.append(cache)


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop()._let_go()
    _forking.release()


def _after_fork_in_child() -> None:
    while _held:
        _held.pop()._start_anew_in_child()
    _forking.release()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
