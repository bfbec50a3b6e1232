"""How samples are taken: contenders in turns, so that a busy moment of the machine hits all of them."""

from __future__ import annotations

import multiprocessing
import threading
import timeit
from typing import TYPE_CHECKING, Any

import pyperf

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

SHORTEST = 0.002  # seconds of one sample: far above the clock's resolution, far below a rival's time slice


def in_processes(take: Callable[[int], dict[str, list[float]]], rounds: int, processes: int) -> dict[str, list[float]]:
    """Let several processes take samples, one after the other; return those of all.

    Where objects lie in memory, and what strings hash to, differs from process to process, and with it the
    nanoseconds that a read takes.
    """
    samples: dict[str, list[float]] = {}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for taken in pool.imap(take, [rounds] * processes):
            for name, values in taken.items():
                samples.setdefault(name, []).extend(values)
    return samples


def in_turns(measure: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Let each contender be measured once a round; return the samples of each."""
    samples: dict[str, list[float]] = {name: [] for name in measure}
    for _ in range(rounds):
        for name, take in measure.items():
            samples[name].append(take())
    return samples


def statement(code: str, **names: Any) -> Callable[[], float]:
    """Return a function that measures the seconds one execution of a statement takes."""
    timer = timeit.Timer(code, timer=pyperf.perf_counter, globals=names)
    loops = 1
    while loops < 1_000_000 and timer.timeit(loops) < SHORTEST:  # noqa: PLR2004 - it is not endless
        loops *= 2
    return lambda: timer.timeit(loops) / loops


def awaiting(read: Callable[[str], Any], name: str, loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Return a function that measures the seconds one awaited call takes, within one task."""
    loops = 10_000

    async def run() -> float:
        start = pyperf.perf_counter()
        for _ in range(loops):
            await read(name)
        return float(pyperf.perf_counter() - start) / loops

    return lambda: loop.run_until_complete(run())


def at_once(count: int, work: Callable[[], object]) -> float:
    """Return the seconds that so many threads take for their work, from the first start to the last end."""
    threads = [threading.Thread(target=work) for _ in range(count)]
    start = pyperf.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return float(pyperf.perf_counter() - start)
